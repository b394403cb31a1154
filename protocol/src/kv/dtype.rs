//! Element types of the KV cache, and what a row of each looks like.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Element type of cached keys and values. Must be equal on both sides of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// OCP 8-bit float, E4M3 without infinities (largest finite value 448), with
    /// one f32 scale for the keys and one for the values of each head of each
    /// token: `value = element * scale`. All scales of a row come behind all of
    /// its elements (see [`KvShape`](super::KvShape)).
    Fp8,
}

/// A KV element type that this build does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown kv dtype {0:?}, expected f32, bf16, f16 or fp8")]
pub struct UnknownDtype(pub String);

// === impl KvDtype ===

impl KvDtype {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::Fp8];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 => 1,
        }
    }

    /// Bytes of the scale of one head's key or value; 0 for elements that are values.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 0,
            Self::Fp8 => 4,
        }
    }

    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KvDtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        let known = Self::ALL.into_iter().find(|dtype| dtype.as_str() == name);
        known.ok_or_else(|| UnknownDtype(name.to_owned()))
    }
}
