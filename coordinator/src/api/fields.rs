//! Reading a request's JSON object field by field, so that every error names its field and nothing is left unread.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a JSON object that have not been read yet. `null` counts as absent everywhere.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Put before a field's name in errors: empty, or the path of this object with a dot.
    path: String,
}

impl Fields {
    /// The fields of a request's body.
    pub(crate) fn of_body(body: &[u8]) -> Result<Fields, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request("invalid_json", format!("the request's body is not valid JSON: {error}"))
        })?;
        match value {
            Value::Object(map) => Ok(Fields { map, path: String::new() }),
            other => {
                let message = format!("the request's body must be a JSON object, not {}", kind_of(&other));
                Err(ApiError::bad_request("invalid_json", message))
            }
        }
    }

    /// The fields of an object inside the request, whose place is `path`.
    pub(crate) fn of_value(value: Value, path: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The place of the field `name` in the request, as errors give it.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes a field of any type.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    /// Takes a boolean; absent is false.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong_type(&self.path(name), "true or false", &other)),
        }
    }

    /// Takes a whole number within `range`.
    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        let Value::Number(number) = &value else {
            return Err(wrong_type(&path, "a whole number", &value));
        };
        match whole_of(number) {
            Some(whole) if range.contains(&whole) => Ok(Some(whole)),
            Some(_) => Err(out_of_range(&path, range.start(), range.end(), &value)),
            None if number.is_f64() => Err(wrong_type(&path, "a whole number", &value)),
            None => Err(out_of_range(&path, range.start(), range.end(), &value)),
        }
    }

    /// Takes a number within `range`.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        number_of(&value, &self.path(name), range).map(Some)
    }

    /// Takes an object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        Fields::of_value(value, &self.path(name)).map(Some)
    }

    /// Takes a field that changes nothing as long as `neutral` holds of it, and refuses it otherwise.
    pub(crate) fn only(&mut self, name: &str, neutral: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.value(name) {
            Some(value) if !neutral(&value) => Err(ApiError::unsupported(&self.path(name))),
            _ => Ok(()),
        }
    }

    /// Takes all that is left, as it is.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Refuses whatever has not been read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = self.path(name);
                let message = format!("`{path}` is not a parameter that this server knows; leave it out");
                Err(ApiError::bad_param(&path, "unknown_parameter", message))
            }
        }
    }
}

/// The number as a whole one; also where it is written as `3.0`.
fn whole_of(number: &serde_json::Number) -> Option<i64> {
    /// Whole numbers up to here survive the way through a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_i64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)?;
        Some(float as i64)
    })
}

/// `value` as a number within `range`; `path` is its place in the request.
pub(crate) fn number_of(value: &Value, path: &str, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
    match value.as_f64() {
        None => Err(wrong_type(path, "a number", value)),
        Some(number) if range.contains(&number) => Ok(number as f32),
        Some(_) => Err(out_of_range(path, range.start(), range.end(), value)),
    }
}

/// The error for a value of the wrong type at `path`.
pub(crate) fn wrong_type(path: &str, wanted: &str, found: &Value) -> ApiError {
    let message = format!("`{path}` must be {wanted}, not {}", kind_of(found));
    ApiError::bad_param(path, "invalid_type", message)
}

/// The error for a required field that is not there.
pub(crate) fn missing(path: &str) -> ApiError {
    ApiError::bad_param(path, "missing_required_parameter", format!("`{path}` is missing; it is required"))
}

/// The error for a value that cannot be used, with what to do instead.
pub(crate) fn invalid(path: &str, why: impl Display) -> ApiError {
    ApiError::bad_param(path, "invalid_value", format!("`{path}` {why}"))
}

fn out_of_range(path: &str, low: impl Display, high: impl Display, found: &Value) -> ApiError {
    invalid(path, format_args!("must be between {low} and {high}, not {found}"))
}

/// What a JSON value is, in words; a short scalar is shown.
fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(items) if items.is_empty() => "an empty array".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::of_body(text.as_bytes()).unwrap()
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
        assert_eq!(fields(r#"{"a": 3.0}"#).whole("a", 0..=9), Ok(Some(3)));
        assert_eq!(fields(r#"{"a": null}"#).whole("a", 0..=9), Ok(None));
        for bad in ["3.5", "10", "-1", "1e300", "18446744073709551615", "\"3\"", "true"] {
            let error = fields(&format!(r#"{{"a": {bad}}}"#)).whole("a", 0..=9).unwrap_err();
            assert!(error.to_string().contains("`a`"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_left_unread_is_refused_by_its_path() {
        let mut outer = fields(r#"{"options": {"known": true, "other": 1, "none": null}}"#);
        let mut inner = outer.object("options").unwrap().unwrap();
        assert_eq!(inner.flag("known"), Ok(true));
        let error = inner.finish().unwrap_err();
        assert!(error.to_string().contains("`options.other`"), "{error}");
        assert_eq!(outer.finish(), Ok(()));
    }
}
