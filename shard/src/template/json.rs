//! JSON as Python's `json.dumps` writes it, which models were trained on: a space after commas and colons, and no
//! escapes for characters outside ASCII unless they are asked for.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::MAX_OUTPUT_BYTES;
use super::sandbox::Limited;

/// Most spaces that a level is indented by.
const MAX_INDENT: usize = 16;

/// The options of Python's function that templates use.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// Spaces of a level; `None` writes one line.
    indent: Option<usize>,
    /// Between two items.
    item_separator: String,
    /// Between a key and its value.
    key_separator: String,
    /// Whether characters outside ASCII are written as escapes.
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Style {
    /// Takes the options out of a filter's arguments.
    pub(super) fn of(options: &Kwargs) -> Result<Style, Error> {
        let indent = options.get::<Option<usize>>("indent")?.map(|indent| indent.min(MAX_INDENT));
        let item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            match options.get::<Option<Vec<Value>>>("separators")?.as_deref() {
                None => (item.to_owned(), ": ".to_owned()),
                Some([item, key]) => (item.to_string(), key.to_string()),
                Some(_) => return Err(error("`separators` are two texts")),
            };
        let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
        let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        options.assert_all_used()?;
        Ok(Style { indent, item_separator, key_separator, ensure_ascii, sort_keys })
    }
}

/// `value` as JSON; no more than a prompt may have, since a value that holds itself twice, some forty times over, would
/// never end.
pub(super) fn format(value: &Value, style: &Style) -> Result<String, Error> {
    if !style.sort_keys {
        return written(value, style);
    }
    let any_order = written(value, &Style { sort_keys: false, ..style.clone() })?;
    let mut value: serde_json::Value = serde_json::from_str(&any_order).map_err(error)?;
    value.sort_all_objects();
    written(&value, style)
}

fn written(value: &impl Serialize, style: &Style) -> Result<String, Error> {
    let mut json = Limited::new(MAX_OUTPUT_BYTES);
    let formatter = Python { style, level: 0, has_items: false };
    value.serialize(&mut Serializer::with_formatter(&mut json, formatter)).map_err(error)?;
    json.into_text().ok_or_else(|| error("no UTF-8"))
}

fn error(problem: impl ToString) -> Error {
    Error::new(ErrorKind::BadSerialization, problem.to_string())
}

/// Writes as Python does.
struct Python<'s> {
    style: &'s Style,
    /// Lists and objects around what is written.
    level: usize,
    /// Whether the innermost of them has any item.
    has_items: bool,
}

impl Python<'_> {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        (self.level, self.has_items) = (self.level + 1, false);
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.item_separator.as_bytes())?;
        }
        self.line(writer)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if self.has_items {
            self.line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.style.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.level).try_for_each(|_| writer.write_all(&b" ".repeat(indent)))
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.style.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                write!(writer, "{c}")?;
            } else {
                c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }
}
