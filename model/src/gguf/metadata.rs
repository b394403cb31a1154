//! Metadata of a GGUF file by key and type.

use std::collections::BTreeMap;

use crate::error::FormatError;

/// A value of the metadata.
#[derive(Debug, PartialEq)]
pub enum Value {
    /// Any whole number.
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    /// Whole numbers, or booleans as 0 and 1.
    Ints(Vec<i128>),
    Floats(Vec<f32>),
}

/// All values, asked for by key; errors name the key.
#[derive(Debug)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

/// Which layers do something.
pub enum Pattern {
    /// All but every n-th.
    Interval(usize),
    Listed(Vec<bool>),
}

// === impl Metadata ===

impl Metadata {
    pub fn new(values: BTreeMap<String, Value>) -> Self {
        Self { values }
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || FormatError::Value { key: key.to_owned(), found: value.describe(), expected };
        read(value).ok_or_else(wrong).map(Some)
    }

    pub fn optional_text(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.optional(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Result<&str, FormatError> {
        self.optional_text(key)?.ok_or_else(|| missing(key))
    }

    pub fn texts(&self, key: &str) -> Result<&[String], FormatError> {
        let texts = self.optional(key, "an array of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        });
        texts?.ok_or_else(|| missing(key))
    }

    pub fn optional_ints(&self, key: &str) -> Result<Option<&[i128]>, FormatError> {
        self.optional(key, "an array of whole numbers", |value| match value {
            Value::Ints(ints) => Some(ints.as_slice()),
            _ => None,
        })
    }

    pub fn optional_floats(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        self.optional(key, "an array of numbers", |value| match value {
            Value::Floats(floats) => Some(floats.as_slice()),
            _ => None,
        })
    }

    /// A size, or a list of yes and no.
    pub fn optional_pattern(&self, key: &str) -> Result<Option<Pattern>, FormatError> {
        self.optional(key, "a size or an array of booleans", |value| match value {
            Value::Int(int) => usize::try_from(*int).ok().map(Pattern::Interval),
            Value::Ints(ints) => Some(Pattern::Listed(ints.iter().map(|int| *int != 0).collect())),
            _ => None,
        })
    }

    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.optional(key, "a boolean", |value| match value {
            Value::Bool(bool) => Some(*bool),
            _ => None,
        })
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, FormatError> {
        self.optional(key, "a size", |value| match value {
            Value::Int(int) => usize::try_from(*int).ok(),
            _ => None,
        })
    }

    pub fn size(&self, key: &str) -> Result<usize, FormatError> {
        self.optional_size(key)?.ok_or_else(|| missing(key))
    }

    /// Fails if the key is there and says something else.
    pub fn expect_size(&self, key: &str, size: usize, expected: &'static str) -> Result<(), FormatError> {
        match self.optional_size(key)? {
            Some(found) if found != size => {
                Err(FormatError::Value { key: key.to_owned(), found: found.to_string(), expected })
            }
            _ => Ok(()),
        }
    }

    pub fn token(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.optional(key, "a token", |value| match value {
            Value::Int(int) => u32::try_from(*int).ok(),
            _ => None,
        })
    }

    pub fn optional_float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        self.optional(key, "a number", |value| match value {
            Value::Float(float) => Some(*float as f32),
            _ => None,
        })
    }

    pub fn float(&self, key: &str) -> Result<f32, FormatError> {
        self.optional_float(key)?.ok_or_else(|| missing(key))
    }
}

fn missing(key: &str) -> FormatError {
    FormatError::Missing { key: key.to_owned() }
}

// === impl Value ===

impl Value {
    /// Short enough for a message.
    fn describe(&self) -> String {
        match self {
            Self::Int(int) => int.to_string(),
            Self::Float(float) => float.to_string(),
            Self::Bool(bool) => bool.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::Texts(texts) => format!("an array of {} strings", texts.len()),
            Self::Ints(ints) => format!("an array of {} numbers", ints.len()),
            Self::Floats(floats) => format!("an array of {} numbers", floats.len()),
        }
    }
}
