//! Keeps the text of control tokens inside message content from becoming control tokens.
//!
//! Content and template are joined by an arbitrary program (templates trim, split, search), so where
//! content ends up cannot be known from lengths, and encoding the parts apart would change how text
//! merges across their borders. Instead the telling characters of content, those of which control
//! tokens are made ("<", "|", ...), are each replaced by a private-use character before rendering
//! and put back afterwards: wherever the template moved it, a control token that contains one is
//! not a control token. One character for one, so lengths, trimming and splitting on spaces are as
//! before.
//!
//! A template that searches content for such characters ("</think>") would behave differently. The
//! caller sees that by comparing with the plain rendering, and then lets the template's own string
//! literals stay readable inside content, unless they are part of a whole control token there.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use regex::{Captures, Regex};

use crate::error::TextError;

const FIRST_PRIVATE: u32 = 0xf0000;
const LAST_PRIVATE: u32 = 0x10fffd;

pub struct Marks {
    telling: Vec<char>,
    first_mark: u32,
    control: AhoCorasick,
}

impl Marks {
    /// None if no content has a telling character, so that there is nothing to mark.
    /// `rendered`: the plain rendering, whose characters are no marks either.
    pub fn new<'a>(
        control_texts: &[String],
        contents: impl Iterator<Item = &'a str> + Clone,
        rendered: &'a str,
    ) -> Result<Option<Self>, TextError> {
        let telling: BTreeSet<char> = control_texts.iter().flat_map(|t| telling_of(t)).collect();
        if !contents.clone().any(|content| content.contains(|c| telling.contains(&c))) {
            return Ok(None);
        }
        let taken: HashSet<u32> = contents
            .chain([rendered])
            .flat_map(str::chars)
            .map(u32::from)
            .filter(|code| *code >= FIRST_PRIVATE)
            .collect();
        let first_mark = free_block(&taken, telling.len() as u32).ok_or_else(|| {
            TextError::invalid("the messages use too many different private-use characters")
        })?;
        let control = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(control_texts.iter().filter(|text| !text.is_empty()))
            .map_err(|e| TextError::internal(e.to_string()))?;
        Ok(Some(Marks { telling: telling.into_iter().collect(), first_mark, control }))
    }

    /// Replaces every telling character by its mark; those inside one of `readable` only where they
    /// are part of a control token's text.
    pub fn mark(&self, content: &str, readable: &[String]) -> String {
        let readable = self.readable_ranges(content, readable);
        let mut marked = String::with_capacity(content.len() + 16);
        for (at, c) in content.char_indices() {
            let after = readable.partition_point(|range| range.end <= at);
            let stays = readable.get(after).is_some_and(|range| range.start <= at);
            marked.push(if stays { c } else { self.mark_of(c).unwrap_or(c) });
        }
        marked
    }

    /// Puts the telling characters back, and says where they are.
    pub fn remove(&self, marked: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(marked.len());
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for c in marked.chars() {
            let index = u32::from(c).checked_sub(self.first_mark);
            let Some(&telling) = index.and_then(|index| self.telling.get(index as usize)) else {
                text.push(c);
                continue;
            };
            let start = text.len();
            text.push(telling);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = text.len(),
                _ => ranges.push(start..text.len()),
            }
        }
        (text, ranges)
    }

    fn mark_of(&self, c: char) -> Option<char> {
        let index = self.telling.binary_search(&c).ok()?;
        char::from_u32(self.first_mark + index as u32)
    }

    fn readable_ranges(&self, content: &str, literals: &[String]) -> Vec<Range<usize>> {
        let literals = literals.iter().filter(|literal| !self.control.is_match(literal.as_str()));
        let literals = literals.filter(|literal| literal.contains(|c| self.mark_of(c).is_some()));
        let found = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(literals);
        let Ok(found) = found else { return Vec::new() };
        let mut control = self.control.find_iter(content).map(|m| m.range()).peekable();
        let mut ranges = Vec::new();
        for range in found.find_iter(content).map(|m| m.range()) {
            while control.next_if(|c| c.end <= range.start).is_some() {}
            if control.peek().is_none_or(|c| c.start >= range.end) {
                ranges.push(range);
            }
        }
        ranges
    }
}

/// The string literals in a template's tags and expressions.
pub fn literals_of(source: &str) -> Vec<String> {
    let pattern = r#"(?s)\{[{%].*?[}%]\}"#;
    let literal = r#"(?s)'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)""#;
    let (Ok(tag), Ok(literal)) = (Regex::new(pattern), Regex::new(literal)) else {
        return Vec::new();
    };
    let text = |found: Captures| {
        let quoted = found.get(1).or_else(|| found.get(2)).map_or("", |quoted| quoted.as_str());
        unescape(quoted)
    };
    let tags = tag.find_iter(source).map(|tag| tag.as_str());
    let found: BTreeSet<String> =
        tags.flat_map(|tag| literal.captures_iter(tag).map(text)).collect();
    found.into_iter().filter(|literal| !literal.is_empty()).collect()
}

fn unescape(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some('t')) => text.push('\t'),
            ('\\', Some('r')) => text.push('\r'),
            ('\\', Some(escaped)) => text.push(escaped),
            _ => text.push(c),
        }
    }
    text
}

/// Punctuation, or the first character where a token has none.
fn telling_of(control_text: &str) -> Vec<char> {
    let punctuation = |c: &char| !c.is_alphanumeric() && !c.is_whitespace();
    let telling: Vec<char> = control_text.chars().filter(punctuation).collect();
    match telling.is_empty() {
        true => control_text.chars().take(1).collect(),
        false => telling,
    }
}

/// The start of `count` private-use characters in a row of which none is taken.
fn free_block(taken: &HashSet<u32>, count: u32) -> Option<u32> {
    let mut start = FIRST_PRIVATE;
    for code in FIRST_PRIVATE..=LAST_PRIVATE {
        // The last two of a plane are not characters.
        if taken.contains(&code) || code & 0xfffe == 0xfffe {
            start = code + 1;
        } else if code + 1 - start == count {
            return Some(start);
        }
    }
    None
}
