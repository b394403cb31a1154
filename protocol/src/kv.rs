//! Shape and states of the KV cache, and the two traits through which a
//! transfer touches pages without knowing the engine.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Element type of cached keys and values. Must be equal on both sides of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// Shape of the KV cache. Canonical byte order everywhere (memory and wire):
/// `[layer][token][K|V][kv_head][head_dim]`, so that one token of one layer is
/// a contiguous row and page size is a private matter of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: u32,
    /// Key/value heads of a layer.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Element type.
    pub dtype: KvDtype,
    /// Tokens of a page on this node; peers may differ.
    pub page_tokens: u32,
}

/// A rectangle of KV: all K and V heads of `tokens` in `layers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpan {
    /// Which layers.
    pub layers: Range<u32>,
    /// Absolute token positions in the sequence.
    pub tokens: Range<u32>,
}

/// Pages that a handoff reads. Holding it keeps the pages from being freed
/// (state *sending*); dropping it lets go.
pub trait KvSource: Send + Sync {
    /// Calls `use_bytes` once with the span's bytes in canonical order, in as
    /// many slices as memory has pieces. Blocks only for a writer of the same
    /// page and layer.
    ///
    /// # Errors
    /// Whatever `use_bytes` returns; `InvalidInput` when the span is not covered.
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// Pages that a handoff fills. Holding it keeps the pages bound (state
/// *receiving*, or *quarantined* after [`quarantine`](Self::quarantine)).
pub trait KvSink: Send + Sync {
    /// Calls `fill` once with the span's memory in canonical order.
    ///
    /// # Errors
    /// Whatever `fill` returns; `InvalidInput` when the span is not covered.
    fn write(
        &self,
        span: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Token positions the sink's pages cover: spans must lie within.
    fn tokens(&self) -> Range<u32>;

    /// Marks the pages as waiting for the sender to fall silent. Idempotent.
    fn quarantine(&self);
}

/// What a page is doing. A page is in exactly one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Nobody's.
    Free,
    /// Held by the prefix cache only; may be evicted.
    Cached,
    /// Used by a sequence.
    Running,
    /// Bound to a handoff that fills it.
    Receiving,
    /// Pinned by a handoff that reads it.
    Sending,
    /// Its handoff ended, but a late write might still come.
    Quarantined,
}

/// Pages by state; the states sum to `total` at all times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// See [`PageState::Free`].
    pub free: u64,
    /// See [`PageState::Cached`].
    pub cached: u64,
    /// See [`PageState::Running`].
    pub running: u64,
    /// See [`PageState::Receiving`].
    pub receiving: u64,
    /// See [`PageState::Sending`].
    pub sending: u64,
    /// See [`PageState::Quarantined`].
    pub quarantined: u64,
    /// Size of the pool.
    pub total: u64,
    /// Promised and not yet bound: a count against free + cached, not a state.
    pub promised: u64,
}

// === impl KvDtype ===

impl KvDtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
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
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            other => Err(UnknownDtype(other.to_owned())),
        }
    }
}

/// A KV element type that this build does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown kv dtype {0:?}")]
pub struct UnknownDtype(pub String);

// === impl KvShape ===

impl KvShape {
    /// Elements of one token of one layer (keys and values).
    pub const fn row_elements(&self) -> usize {
        2 * self.kv_heads as usize * self.head_dim as usize
    }

    /// Bytes of one token of one layer.
    pub const fn row_bytes(&self) -> usize {
        self.row_elements() * self.dtype.bytes()
    }

    /// Bytes of one token in all layers.
    pub const fn token_bytes(&self) -> usize {
        self.row_bytes() * self.layers as usize
    }

    /// Pages that hold `tokens` tokens.
    pub const fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens as usize)
    }

    /// Bytes of a span.
    pub fn span_bytes(&self, span: &KvSpan) -> usize {
        self.row_bytes() * span.layers.len() * span.tokens.len()
    }
}

// === impl PageCounts ===

impl PageCounts {
    /// Whether every page is accounted for.
    pub const fn sums_to_total(&self) -> bool {
        self.free + self.cached + self.running + self.receiving + self.sending + self.quarantined
            == self.total
    }

    /// Whether nothing but cache is held.
    pub const fn is_idle(&self) -> bool {
        self.free + self.cached == self.total && self.promised == 0
    }
}
