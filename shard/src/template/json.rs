//! JSON as Python's `json.dumps` writes it, which models were trained on: a space after commas and colons, and no
//! escapes for characters outside ASCII.

use std::io::{self, Write};

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::MAX_OUTPUT_BYTES;
use super::sandbox::Limited;

/// `value` as JSON, on one line or indented by so many spaces; no more than a prompt may have, since a value that holds
/// itself twice, some forty times over, would never end.
pub(super) fn format(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut json = Limited::new(MAX_OUTPUT_BYTES);
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut json, OneLine)),
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
        }
    };
    let error = |problem: String| Error::new(ErrorKind::BadSerialization, problem);
    written.map_err(|source| error(source.to_string()))?;
    json.into_text().ok_or_else(|| error("no UTF-8".to_owned()))
}

/// Python's default separators.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    #[test]
    fn json_is_spaced_as_python_does_it() {
        let value = Value::from(Serde(serde_json::json!({"a": [1, 2.5, null], "ü": {"<b>": "\"x\""}})));
        let one_line = "{\"a\": [1, 2.5, null], \"ü\": {\"<b>\": \"\\\"x\\\"\"}}";
        assert_eq!(format(&value, None).unwrap(), one_line);
        let value = Value::from(Serde(serde_json::json!({"a": [1], "b": {}})));
        assert_eq!(format(&value, Some(2)).unwrap(), "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }
}
