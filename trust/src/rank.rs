//! What an operator may do.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// What the holder of an operator's key may do. Each rank may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    /// See everything.
    Viewer,
    /// Drain nodes, change their roles, cancel requests.
    Operator,
    /// Set limits, flush caches.
    Admin,
}

/// A word that is no rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no rank: viewer, operator or admin")]
pub struct UnknownRank {
    /// As it was given.
    pub word: String,
}

// === impl Rank ===

impl Rank {
    const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// In files of keys.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Rank {
    type Err = UnknownRank;

    fn from_str(word: &str) -> Result<Self, UnknownRank> {
        let known = Self::ALL.into_iter().find(|rank| rank.as_str() == word);
        known.ok_or_else(|| UnknownRank { word: word.to_owned() })
    }
}
