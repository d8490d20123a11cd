//! JSON in which no name stands twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads an object. Nesting is limited (to 128 levels, by the parser).
///
/// # Errors
/// Where the text is no JSON, is not an object, or an object in it has two members of one name.
pub(super) fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(text) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(Strict(other)) => Err(format!("is {}, wanted an object", describe(&other))),
        Err(error) => Err(format!("cannot be read as JSON: {error}")),
    }
}

/// What a value is, for messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::Object(members) => format!("an object of {}", members.len()),
        other => other.to_string().chars().take(60).collect(),
    }
}

/// A value whose objects have no two members of one name.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Strict)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = values.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if all.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` stands twice in one object")));
            }
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_and_doubtful_ones_refused() {
        let read = object(br#"{"a": [1, -2, 0.5, null, true, "x"], "b": {"a": 1}}"#).unwrap();
        assert_eq!(Value::Object(read).to_string(), r#"{"a":[1,-2,0.5,null,true,"x"],"b":{"a":1}}"#);
        let nested = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        for (text, word) in [
            (r#"{"a": 1, "a": 2}"#, "`a` stands twice"),
            (r#"{"a": {"b": 1, "b": 1}}"#, "`b` stands twice"),
            ("[1]", "an array of 1"),
            ("{", "EOF"),
            (nested.as_str(), "recursion"),
        ] {
            let error = object(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
