//! Values written the way Python writes them: templates are made for Jinja2, where printing a
//! value calls `str` and `tojson` calls `json.dumps`.
//!
//! Lists share what they hold, so a template of 100 bytes can make a value whose text would fill
//! any memory, at no cost in steps. Both writers therefore stop at a length and a depth.

use std::fmt;
use std::io::{self, Write as _};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::{Limited, MAX_OUTPUT_BYTES};

/// How deep values may be nested; Python's own limit is 1000, JSON requests are limited to 128.
const MAX_DEPTH: usize = 200;

/// A value's text would be longer than this many bytes.
#[derive(Debug)]
pub(super) struct TooLong(pub usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the text of a value is over {} bytes", self.0)
    }
}

impl std::error::Error for TooLong {}

/// `json.dumps(value, ensure_ascii=False, indent=indent, separators=…)`.
pub(super) fn json_dumps(value: &impl Serialize, style: JsonStyle) -> Result<String, Error> {
    write_limited(|out| {
        let mut serializer = serde_json::Serializer::with_formatter(out, style);
        value.serialize(&mut serializer).map_err(|e| {
            Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")).with_source(e)
        })
    })
}

/// What `write` writes, if it is not too long.
fn write_limited(
    write: impl FnOnce(&mut &mut Limited) -> Result<(), Error>,
) -> Result<String, Error> {
    let mut out = Limited::new(MAX_OUTPUT_BYTES);
    let written = write(&mut &mut out);
    if out.is_full {
        let error = Error::new(ErrorKind::InvalidOperation, "a value's text is too long");
        return Err(error.with_source(TooLong(out.limit)));
    }
    written?;
    String::from_utf8(out.bytes).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python's choice of separators and indentation.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonStyle {
    /// Spaces per level; `None`: all on one line.
    indent: Option<usize>,
    /// Between items, and between key and value; `None`: Python's default for this indentation.
    separators: Option<(String, String)>,
    depth: usize,
    /// Whether the array or object that is being closed has items.
    has_items: bool,
}

impl JsonStyle {
    pub fn new(indent: Option<usize>, separators: Option<(String, String)>) -> Self {
        Self {
            indent,
            separators,
            ..Self::default()
        }
    }

    fn break_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{:1$}", "", indent.saturating_mul(self.depth)),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        if self.depth == MAX_DEPTH {
            return Err(io::Error::other("value is nested too deeply"));
        }
        self.depth += 1;
        self.has_items = false;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.break_line(out)?;
        }
        self.has_items = true;
        out.write_all(bracket)
    }

    fn begin_item<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            let item = match &self.separators {
                Some((item, _)) => item,
                None if self.indent.is_some() => ",",
                None => ", ",
            };
            out.write_all(item.as_bytes())?;
        }
        self.break_line(out)
    }
}

impl Formatter for JsonStyle {
    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float_repr(value).as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        let colon = self.separators.as_ref().map_or(": ", |(_, colon)| colon);
        out.write_all(colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }
}

/// The value with every mapping's keys sorted (`sort_keys=True`).
pub(super) fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => Ok(String::new()),
        (_, Some(text)) => Ok(text.to_owned()),
        _ => write_limited(|out| write_repr(out, value, 0)),
    }
}

/// Writes `repr(value)`.
fn write_repr(out: &mut &mut Limited, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "value is nested too deeply",
        ));
    }
    match value.kind() {
        ValueKind::None => put(out, "None"),
        ValueKind::Bool => put(out, if value.is_true() { "True" } else { "False" }),
        ValueKind::String => put(out, &quoted(value.as_str().unwrap_or_default())),
        ValueKind::Number if !value.is_integer() => {
            put(out, &float_repr(f64::try_from(value.clone())?))
        }
        ValueKind::Seq => write_items(out, "[", "]", value, |out, item| {
            write_repr(out, &item, depth + 1)
        }),
        ValueKind::Map => write_items(out, "{", "}", value, |out, key| {
            write_repr(out, &key, depth + 1)?;
            put(out, ": ")?;
            write_repr(out, &value.get_item(&key)?, depth + 1)
        }),
        _ => put(out, &value.to_string()),
    }
}

fn put(out: &mut &mut Limited, text: &str) -> Result<(), Error> {
    let failed = |e: io::Error| Error::new(ErrorKind::WriteFailure, e.to_string());
    out.write_all(text.as_bytes()).map_err(failed)
}

fn write_items(
    out: &mut &mut Limited,
    open: &str,
    close: &str,
    value: &Value,
    mut write_item: impl FnMut(&mut &mut Limited, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    put(out, open)?;
    for (i, item) in value.try_iter()?.enumerate() {
        if i > 0 {
            put(out, ", ")?;
        }
        write_item(out, item)?;
    }
    put(out, close)
}

/// A string literal: single quotes, unless only they are inside.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() && (c as u32) < 0x100 => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `repr(float)`: the shortest digits that read back, in exponent form outside 1e-4..1e16.
fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return match value {
            v if v.is_nan() => "NaN".into(),
            v if v > 0.0 => "Infinity".into(),
            _ => "-Infinity".into(),
        };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent @ -4..16 => {
            let plain = format!("{value}");
            let is_whole = exponent >= 0 && !plain.contains('.');
            if is_whole { plain + ".0" } else { plain }
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::json;

    fn dumps(value: serde_json::Value, style: JsonStyle) -> String {
        json_dumps(&Value::from(Serde(value)), style).unwrap()
    }

    #[test]
    fn json_as_python_writes_it() {
        let value = json!({"b": [1, 2.0, "é<'\"\n"], "a": {}, "c": [], "d": [[], {"x": null}]});
        assert_eq!(
            dumps(value.clone(), JsonStyle::default()),
            r#"{"b": [1, 2.0, "é<'\"\n"], "a": {}, "c": [], "d": [[], {"x": null}]}"#
        );
        let indented = JsonStyle::new(Some(2), None);
        assert_eq!(
            dumps(json!({"a": {}, "d": [[], {"x": true}]}), indented),
            "{\n  \"a\": {},\n  \"d\": [\n    [],\n    {\n      \"x\": true\n    }\n  ]\n}"
        );
        let tight = JsonStyle::new(None, Some((",".into(), ":".into())));
        assert_eq!(
            dumps(json!({"a": 1, "b": [1, 2]}), tight),
            r#"{"a":1,"b":[1,2]}"#
        );
    }

    #[test]
    fn floats_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-1.5, "-1.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.1, "0.1"),
        ] {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn printing_as_python_does() {
        let value = json!([null, true, 1, 1.0, "it's", "a\"'\n\u{1}", {"k": [false]}]);
        assert_eq!(
            to_str(&Value::from(Serde(value))).unwrap(),
            r#"[None, True, 1, 1.0, "it's", 'a"\'\n\x01', {'k': [False]}]"#
        );
    }

    #[test]
    fn keys_sorted_at_every_level() {
        let value = sorted(json!({"b": {"d": 1, "c": 2}, "a": [{"z": 1, "y": 2}]}));
        assert_eq!(
            value.to_string(),
            r#"{"a":[{"y":2,"z":1}],"b":{"c":2,"d":1}}"#
        );
    }
}
