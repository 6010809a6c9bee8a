//! The environment that Hugging Face's `apply_chat_template` gives a template.

use std::fmt;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use super::python::{self, JsonStyle};
use super::{MAX_STEPS, RECURSION_LIMIT};

/// A Jinja environment set up as transformers does: no HTML escaping, block tags eat their line
/// ends, `break` and `continue`, Python's string methods, values printed as Python prints them.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    // Only delimiters can make this fail, and those stay Jinja's own.
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(MAX_STEPS));
    env.set_recursion_limit(RECURSION_LIMIT);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _state, value| match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&python::to_str(value)?)?),
    });
    env.add_filter("tojson", to_json);
    env.add_filter("string", |value: Value| match value.as_str() {
        Some(_) => Ok(value),
        None => python::to_str(&value).map(Value::from),
    });
    env.add_function("raise_exception", raise_exception);
    env
}

/// What a template says when it refuses a conversation.
#[derive(Debug)]
pub(super) struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: Value) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Refusal(python::to_str(&message)?)))
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`; unlike
/// Jinja's own it escapes nothing for HTML.
fn to_json(value: Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let option = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(place) {
            Some(value) => Some(value.clone()),
            None => options.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let is_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = option(1, "indent")?.map(usize::try_from).transpose()?;
    let separators = option(2, "separators")?.map(|pair| {
        let part = |i: i64| pair.get_item(&Value::from(i)).map(|part| part.to_string());
        Ok::<_, Error>((part(0)?, part(1)?))
    });
    let sorts = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 64) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: indent is over 64",
        ));
    }
    let style = JsonStyle::new(indent, separators.transpose()?);
    let json = match sorts {
        false => python::json_dumps(&value, style)?,
        true => {
            // A list may hold the same list many times over: what is small here can be huge there.
            python::json_dumps(&value, style.clone())?;
            let plain = serde_json::to_value(&value)
                .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
            python::json_dumps(&python::sorted(plain), style)?
        }
    };
    Ok(if is_ascii { escape_ascii(&json) } else { json })
}

/// `ensure_ascii`: everything else as UTF-16 escapes.
fn escape_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

/// `strftime_now(format)` for a fixed moment, in UTC.
pub(super) fn strftime_now(unix_seconds: i64) -> Value {
    Value::from_function(move |format: String| -> Result<String, Error> {
        let failed = |e: jiff::Error| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now({format:?}): {e}"),
            )
        };
        let now = Timestamp::from_second(unix_seconds).map_err(failed)?;
        strtime::format(&format, &now.to_zoned(TimeZone::UTC)).map_err(failed)
    })
}
