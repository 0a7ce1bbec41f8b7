//! A checkpoint's chat template: a conversation to text, under limits of work, depth and output.

use std::io::{self, Write};
use std::ops::Range;

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde_json::{Map, Value as Json};

use crate::content_marks::{literals_of, Marks};
use crate::error::TextError;
use crate::jinja_python;

const NAME: &str = "chat template";
/// Instructions of one rendering, some 45 ns each; 20 000 messages of a short template fit.
const FUEL: u64 = 800_000;
/// In minijinja's units, of which a macro call takes several; fits a stack of 512 KiB.
const RECURSION_LIMIT: usize = 80;
const MAX_OUTPUT_BYTES: usize = 32 << 20;

pub struct Message<'a> {
    pub role: &'a str,
    pub content: &'a str,
}

pub struct Rendered {
    pub text: String,
    /// Ascending byte ranges that came from message content and must not be read as control tokens.
    pub literal: Vec<Range<usize>>,
}

pub struct ChatTemplate {
    environment: Environment<'static>,
    /// String literals of the template, with which it may look into content.
    literals: Vec<String>,
    special_tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// `source`: chat_template.jinja, if there is one; `config`: tokenizer_config.json or nothing.
    /// None if neither has a template.
    pub fn new(source: Option<&str>, config: &str) -> Result<Option<Self>, TextError> {
        let config = parse_config(config)?;
        let Some(source) = source.or_else(|| template_of(&config)).map(accept_generation_tags)
        else {
            return Ok(None);
        };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        jinja_python::install(&mut environment);
        let literals = literals_of(&source);
        environment.add_template_owned(NAME, source).map_err(to_error)?;
        let special_tokens = special_tokens_of(&config);
        Ok(Some(ChatTemplate { environment, literals, special_tokens }))
    }

    /// `control_texts`: the texts that the tokenizer would read as control tokens.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        control_texts: &[String],
    ) -> Result<Rendered, TextError> {
        for message in messages {
            check_role(message.role)?;
        }
        let render = |change: &dyn Fn(&str) -> String| {
            self.render_text(messages, add_generation_prompt, change)
        };
        let text = render(&|content| content.to_owned())?;
        let contents = messages.iter().map(|message| message.content);
        let Some(marks) = Marks::new(control_texts, contents, &text)? else {
            return Ok(Rendered { text, literal: Vec::new() });
        };
        if let Ok(marked) = render(&|content| marks.mark(content, &[])) {
            let (unmarked, literal) = marks.remove(&marked);
            if unmarked == text {
                return Ok(Rendered { text, literal });
            }
        }
        // The template looks into content for some of these characters: let it see its own words.
        let marked = render(&|content| marks.mark(content, &self.literals))?;
        let (text, literal) = marks.remove(&marked);
        Ok(Rendered { text, literal })
    }

    fn render_text(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        change: &dyn Fn(&str) -> String,
    ) -> Result<String, TextError> {
        let message = |m: &Message| {
            Value::from_iter([("role", m.role.to_owned()), ("content", change(m.content))])
        };
        let mut variables: Vec<(&str, Value)> = vec![
            ("messages", messages.iter().map(message).collect::<Vec<_>>().into()),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        for (name, token) in &self.special_tokens {
            variables.push((name, token.clone().into()));
        }
        let mut output = LimitedOutput(Vec::new());
        let template = self.environment.get_template(NAME).map_err(to_error)?;
        let rendered = template.render_captured_to(Value::from_iter(variables), &mut output);
        rendered.map_err(to_error)?;
        String::from_utf8(output.0).map_err(|e| TextError::internal(e.to_string()))
    }
}

struct LimitedOutput(Vec<u8>);

impl Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("output limit"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Templates build control tokens of roles, so a role must not be able to spell one out.
fn check_role(role: &str) -> Result<(), TextError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if role.is_empty() || role.len() > 64 || !role.chars().all(valid) {
        return Err(TextError::invalid(
            "a message's role must be 1 to 64 letters, digits, '_' or '-', such as \"user\"",
        ));
    }
    Ok(())
}

fn parse_config(config: &str) -> Result<Map<String, Json>, TextError> {
    if config.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(config)
        .map_err(|e| TextError::invalid(format!("tokenizer_config.json: {e}")))
}

/// `chat_template` is a string, or a list of {name, template} with one named "default".
fn template_of(config: &Map<String, Json>) -> Option<&str> {
    match config.get("chat_template")? {
        Json::String(template) => Some(template),
        Json::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str()
        }
        _ => None,
    }
}

/// Every `..._token` of the configuration, a string or {"content": string}.
fn special_tokens_of(config: &Map<String, Json>) -> Vec<(String, String)> {
    let text = |value: &Json| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        text.map(str::to_owned)
    };
    let tokens = config.iter().filter(|(name, _)| name.ends_with("_token"));
    tokens.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

/// `{% generation %}` only tells trainers which tokens the assistant wrote.
fn accept_generation_tags(source: &str) -> String {
    let tag = |name| Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}"));
    let (Ok(begin), Ok(end)) = (tag("generation"), tag("endgeneration")) else {
        return source.to_owned();
    };
    let source = begin.replace_all(source, "{%${1} if true ${2}%}");
    end.replace_all(&source, "{%${1} endif ${2}%}").into_owned()
}

fn to_error(error: minijinja::Error) -> TextError {
    let detail = error.detail().unwrap_or("");
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::exhausted("the chat template does too much work"),
        ErrorKind::WriteFailure => TextError::exhausted("the chat template's output is too long"),
        _ if detail == "recursion limit exceeded" => {
            TextError::exhausted("the chat template calls itself too deeply")
        }
        _ if jinja_python::is_refusal(&error) => TextError::invalid(detail),
        kind => TextError::invalid(format!("chat template: {kind}: {detail}{line}")),
    }
}
