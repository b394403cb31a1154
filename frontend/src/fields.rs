//! Typed fields out of a JSON object. What nobody takes is refused by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object being read. `null` means absent, as OpenAI's clients send it.
pub struct Fields {
    object: Map<String, Value>,
    /// How the object is called in messages; empty for the body itself.
    path: String,
}

// === impl Fields ===

impl Fields {
    /// The fields of a whole body.
    pub fn of_body(object: Map<String, Value>) -> Self {
        Self { object, path: String::new() }
    }

    /// The fields of an object within the body.
    pub fn of_value(value: Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, path }),
            _ => Err(ApiError::invalid(path, "must be an object")),
        }
    }

    /// The full name of a field.
    pub fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Takes a field as it is.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        #[cfg(test)]
        crate::openapi::tests::note(self.name(field));
        self.object.remove(field).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub fn require(&mut self, field: &str) -> Result<Value, ApiError> {
        self.take(field).ok_or_else(|| ApiError::Missing { param: self.name(field) })
    }

    pub fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(field, "must be a string")),
        }
    }

    /// A boolean, false if absent.
    pub fn boolean(&mut self, field: &str) -> Result<bool, ApiError> {
        self.boolean_or(field, false)
    }

    pub fn boolean_or(&mut self, field: &str, absent: bool) -> Result<bool, ApiError> {
        match self.take(field) {
            None => Ok(absent),
            Some(Value::Bool(value)) => Ok(value),
            Some(_) => Err(self.invalid(field, "must be a boolean")),
        }
    }

    /// An object within, to be read like this one; an empty one if absent.
    pub fn object(&mut self, field: &str) -> Result<Self, ApiError> {
        let object = self.take(field).unwrap_or_else(|| Value::Object(Map::new()));
        Self::of_value(object, self.name(field))
    }

    pub fn array(&mut self, field: &str) -> Result<Vec<Value>, ApiError> {
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.invalid(field, "must be an array")),
        }
    }

    /// An integer up to what a setting allows.
    pub fn limited(
        &mut self,
        field: &str,
        range: RangeInclusive<u32>,
        setting: &str,
    ) -> Result<Option<u32>, ApiError> {
        let (low, high) = (*range.start(), *range.end());
        self.integer(field, range).map_err(|_| {
            self.invalid(field, format!("must be an integer from {low} to {high} (frontend.{setting})"))
        })
    }

    /// At most as many entries as a setting allows.
    pub fn check_entries(
        &self,
        field: &str,
        entries: usize,
        (setting, limit): (&str, usize),
    ) -> Result<(), ApiError> {
        if entries <= limit {
            return Ok(());
        }
        Err(self.invalid(field, format!("must have at most {limit} entries (frontend.{setting})")))
    }

    pub fn integer(&mut self, field: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let found = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match found.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None if *range.end() == u32::MAX => {
                Err(self.invalid(field, format!("must be an integer, at least {}", range.start())))
            }
            None => {
                Err(self
                    .invalid(field, format!("must be an integer from {} to {}", range.start(), range.end())))
            }
        }
    }

    pub fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number as f32)),
            None => {
                Err(self
                    .invalid(field, format!("must be a number from {} to {}", range.start(), range.end())))
            }
        }
    }

    /// A number above zero, up to `high`.
    pub fn positive(&mut self, field: &str, high: f64) -> Result<Option<f32>, ApiError> {
        match self.number(field, 0.0..=high) {
            Ok(Some(number)) if number > 0.0 => Ok(Some(number)),
            Ok(None) => Ok(None),
            _ => Err(self.invalid(field, format!("must be a number above 0, at most {high}"))),
        }
    }

    /// Takes a field of which only the named values are supported, since they change nothing.
    pub fn only(&mut self, field: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(field) {
            Some(value) if !harmless.contains(&value) => {
                Err(ApiError::Unsupported { param: self.name(field) })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.object.iter().find(|(_, value)| !value.is_null()) {
            Some((field, _)) => Err(ApiError::Unsupported { param: self.name(field) }),
            None => Ok(()),
        }
    }

    pub fn invalid(&self, field: &str, message: impl Into<String>) -> ApiError {
        ApiError::invalid(self.name(field), message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of_value(value, "a".into()).unwrap()
    }

    #[test]
    fn null_is_absent_and_the_rest_is_refused_by_name() {
        assert_eq!(fields(json!({"x": null})).string("x"), Ok(None));
        assert_eq!(fields(json!({"x": null})).finish(), Ok(()));
        assert_eq!(fields(json!({"x": 1})).finish(), Err(ApiError::Unsupported { param: "a.x".into() }));
        assert_eq!(fields(json!({})).require("x"), Err(ApiError::Missing { param: "a.x".into() }));
    }

    #[test]
    fn integers_are_exact() {
        for bad in [json!(1.0), json!(-1), json!(u64::MAX), json!("1"), json!(4_294_967_296_u64), json!(true)]
        {
            assert!(fields(json!({ "x": bad })).integer("x", 0..=u32::MAX).is_err(), "{bad}");
        }
        assert_eq!(fields(json!({"x": 7})).integer("x", 0..=7), Ok(Some(7)));
        assert!(fields(json!({"x": 8})).integer("x", 0..=7).is_err());
    }

    #[test]
    fn numbers_keep_their_range() {
        assert_eq!(fields(json!({"x": 0})).number("x", 0.0..=1.0), Ok(Some(0.0)));
        assert!(fields(json!({"x": 1.001})).number("x", 0.0..=1.0).is_err());
        assert!(fields(json!({"x": 0})).positive("x", 1.0).is_err());
        assert_eq!(fields(json!({"x": 1})).positive("x", 1.0), Ok(Some(1.0)));
    }
}
