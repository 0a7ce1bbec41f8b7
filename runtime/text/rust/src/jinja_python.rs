//! What Hugging Face's Python adds to Jinja for chat templates, and what Jinja inherits of Python.

use std::ffi::CString;
use std::fmt::{Display, Formatter};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter as JsonFormatter, PrettyFormatter, Serializer};

pub fn install(environment: &mut Environment) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_iterable);
    environment.set_formatter(|output, state, value| match (value.kind(), value.is_true()) {
        (ValueKind::None, _) => output.write_str("None").map_err(Error::from),
        (ValueKind::Bool, true) => output.write_str("True").map_err(Error::from),
        (ValueKind::Bool, false) => output.write_str("False").map_err(Error::from),
        _ => escape_formatter(output, state, value),
    });
}

/// The template refused the conversation by `raise_exception`.
pub fn is_refusal(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Refusal>())
}

#[derive(Debug)]
struct Refusal;

impl std::error::Error for Refusal {}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("raise_exception")
    }
}

/// Jinja's tests ask what Python's iter() and len() accept: strings, mappings and undefined values
/// too, but not None.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Bytes | Iterable | Map | Seq | String | Undefined)
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Refusal))
}

/// The local time by C's strftime, as Python's datetime does it.
fn strftime_now(format: String) -> Result<String, Error> {
    let invalid = || Error::new(ErrorKind::InvalidOperation, "strftime_now: unusable format");
    if format.is_empty() {
        return Ok(format);
    }
    let format = CString::new(format).map_err(|_| invalid())?;
    let mut text = [0u8; 1024];
    // SAFETY: localtime_r fills `local` before strftime reads it; strftime writes at most
    // text.len() bytes and returns how many.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut local);
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &local)
    };
    if length == 0 {
        return Err(invalid());
    }
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// json.dumps(value, ensure_ascii=False, indent=indent).
fn tojson(value: Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // What json.dumps does anyway, or what only changes escapes.
    let _: (Option<bool>, Option<bool>) =
        (arguments.get("ensure_ascii")?, arguments.get("sort_keys")?);
    arguments.assert_all_used()?;
    let json = match indent {
        Some(spaces) if spaces <= 16 => {
            let indent = " ".repeat(spaces);
            to_json(&value, PrettyFormatter::with_indent(indent.as_bytes()))
        }
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent above 16")),
        None => to_json(&value, PythonSeparators),
    };
    Ok(Value::from(json?))
}

fn to_json(value: &Value, formatter: impl JsonFormatter) -> Result<String, Error> {
    let mut json = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut json, formatter);
    let failed = |e: String| Error::new(ErrorKind::BadSerialization, e);
    value.serialize(&mut serializer).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(json).map_err(|e| failed(e.to_string()))
}

/// `", "` between items and `": "` after keys.
struct PythonSeparators;

impl JsonFormatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
