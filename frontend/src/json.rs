//! JSON, strictly: no key twice, bounded depth, bounded number of values.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;

/// Arrays and objects within each other. Real calls stay below a dozen.
const MAX_DEPTH: usize = 64;

/// Values of one body: small ones cost ten times their bytes in memory. Room for a prompt of 200 thousand token ids.
const MAX_VALUES: usize = 1 << 18;

/// What one parse has seen so far.
#[derive(Default)]
struct Seen {
    values: Cell<usize>,
    duplicate: RefCell<Option<String>>,
}

/// A value at some depth.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    seen: &'a Seen,
}

/// Reads a body that must be one object.
///
/// # Errors
/// When it is not, or when it goes beyond a limit.
pub fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let seen = Seen::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict { depth: 0, seen: &seen }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| match seen.duplicate.take() {
            Some(key) => ApiError::invalid(key, "given twice"),
            None => ApiError::Json { message: error.to_string() },
        })?;
    match parsed {
        Value::Object(object) => Ok(object),
        _ => Err(ApiError::Json { message: "the body must be an object".into() }),
    }
}

// === impl Strict ===

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("more than {MAX_DEPTH} levels deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn count<E: Error>(self) -> Result<(), E> {
        let values = self.seen.values.get() + 1;
        self.seen.values.set(values);
        if values > MAX_VALUES {
            return Err(E::custom(format_args!("more than {MAX_VALUES} values")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
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
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let error = A::Error::custom(format_args!("duplicate key {key:?}"));
                self.seen.duplicate.replace(Some(key));
                return Err(error);
            }
            object.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_hold() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_err());
        assert!(parse(nested(100_000).as_bytes()).is_err());
        let long = |values: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(values - 1));
        assert!(parse(long(MAX_VALUES - 2).as_bytes()).is_ok());
        assert!(parse(long(MAX_VALUES - 1).as_bytes()).is_err());
    }

    #[test]
    fn a_key_given_twice_is_named_at_any_depth() {
        let error = parse(br#"{"a":[{"b":1,"b":1}]}"#).unwrap_err();
        assert_eq!(error, ApiError::invalid("b", "given twice"));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json_on_plain_objects(text in r#"\{"a":(-?[0-9]{1,3}(\.[0-9]{1,3})?(e[0-9])?|"[a-z\\"]{0,4}"|\[[0-9,]{0,5}\]|null|true)[\} ]{0,2}"#) {
            let theirs = serde_json::from_str::<Map<String, Value>>(&text).ok();
            prop_assert_eq!(parse(text.as_bytes()).ok(), theirs);
        }
    }
}
