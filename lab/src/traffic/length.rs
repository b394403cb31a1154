//! How many.

use std::{fmt, str::FromStr};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// A number, always the same or drawn evenly: `128`, or `64:256` with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Length {
    least: usize,
    most: usize,
}

/// Text that is no [`Length`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number nor LEAST:MOST")]
pub struct LengthError(String);

// === impl Length ===

impl Length {
    /// Always the same.
    pub const fn fixed(length: usize) -> Self {
        Self { least: length, most: length }
    }

    /// From `least` to `most`, both included.
    pub const fn between(least: usize, most: usize) -> Self {
        Self { least, most }
    }

    /// Whether it may be drawn.
    pub fn contains(self, length: usize) -> bool {
        (self.least..=self.most).contains(&length)
    }

    /// One of them.
    pub fn draw(self, random: &mut impl Rng) -> usize {
        random.random_range(self.least..=self.most.max(self.least))
    }
}

impl FromStr for Length {
    type Err = LengthError;

    fn from_str(text: &str) -> Result<Self, LengthError> {
        let (least, most) = text.split_once(':').unwrap_or((text, text));
        match (least.trim().parse(), most.trim().parse()) {
            (Ok(least), Ok(most)) if least <= most => Ok(Self { least, most }),
            _ => Err(LengthError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Length {
    type Error = LengthError;

    fn try_from(text: String) -> Result<Self, LengthError> {
        text.parse()
    }
}

impl From<Length> for String {
    fn from(length: Length) -> Self {
        length.to_string()
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { least, most } if least == most => write!(f, "{least}"),
            Self { least, most } => write!(f, "{least}:{most}"),
        }
    }
}
