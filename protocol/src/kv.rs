//! Shape and states of the KV cache, and the two traits through which a
//! transfer touches pages without knowing the engine.
//!
//! - `dtype`: element types, [`KvDtype`]
//! - `heads`: who holds which heads, [`HeadShare`]

mod dtype;
mod heads;

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
};

use serde::{Deserialize, Serialize};

pub use dtype::{KvDtype, UnknownDtype};
pub use heads::{HeadShare, HeadsError, MAX_TP};

/// Shape of the KV cache. Canonical byte order everywhere (memory and wire) is
/// `[layer][token][row]`, so that one token of one layer is a contiguous row and
/// page size is a private matter of each side. A row is
/// `[K|V][kv_head][head_dim]` elements, little-endian, followed for a dtype
/// with scales by `[K|V][kv_head]` of them, f32, little-endian.
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

/// A box of KV: keys and values of `heads` for `tokens` in `layers`. Its bytes
/// are `[layer][token][row]`, of each row only these heads: their elements,
/// `[K|V][head][head_dim]`, then their scales if there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpan {
    /// Which layers.
    pub layers: Range<u32>,
    /// Absolute token positions in the sequence.
    pub tokens: Range<u32>,
    /// Of the model's KV heads.
    pub heads: Range<u32>,
}

/// Where a span lies in a card's memory, as its driver addresses it in this
/// process. Numbers only: a transport that knows cards makes copies of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpan {
    /// The card's number in this process.
    pub device: usize,
    /// Address and bytes of each piece, in canonical order.
    pub pieces: Vec<(u64, u64)>,
}

/// Pages that a handoff reads. Holding it keeps the pages from being freed
/// (state *sending*); dropping it lets go.
pub trait KvSource: Send + Sync {
    /// Calls `use_bytes` once with the span's bytes in canonical order, in as
    /// many slices as memory has pieces. Blocks only for a writer of the same
    /// page and layer. `use_bytes` may read on: what leaves in one write is held at once.
    ///
    /// # Errors
    /// Whatever `use_bytes` returns; `InvalidInput` when the span is not covered.
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Where the span lies on a card; none when it is in the machine's memory.
    /// The addresses are right as long as this is held.
    ///
    /// # Errors
    /// `InvalidInput` when the span is not covered.
    fn on_device(&self, _span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        Ok(None)
    }
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

    /// Where the span lies on a card; none when it is in the machine's memory.
    /// The addresses are right, and the pieces nobody else's, as long as this is held.
    ///
    /// # Errors
    /// `InvalidInput` when the span is not covered.
    fn on_device(&self, _span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        Ok(None)
    }

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

// === impl KvShape ===

impl KvShape {
    /// Elements of one token of one layer (keys and values).
    pub const fn row_elements(&self) -> usize {
        2 * self.kv_heads as usize * self.head_dim as usize
    }

    /// Bytes of one head's key or value of one token of one layer, its scale included.
    pub const fn head_bytes(&self) -> usize {
        self.head_dim as usize * self.dtype.bytes() + self.dtype.scale_bytes()
    }

    /// Bytes of one token of one layer.
    pub const fn row_bytes(&self) -> usize {
        2 * self.kv_heads as usize * self.head_bytes()
    }

    /// Where in a row its scales begin; the row's end for a dtype without.
    pub const fn scales_at(&self) -> usize {
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

    /// All heads of a rectangle.
    pub const fn span(&self, layers: Range<u32>, tokens: Range<u32>) -> KvSpan {
        KvSpan { layers, tokens, heads: 0..self.kv_heads }
    }

    /// Bytes of a span.
    pub fn span_bytes(&self, span: &KvSpan) -> usize {
        2 * span.heads.len() * self.head_bytes() * span.layers.len() * span.tokens.len()
    }

    /// Where in a row some of its heads are: one run of bytes for all of them,
    /// otherwise keys, values and, for a dtype with scales, those of keys and values.
    pub fn row_parts(&self, heads: &Range<u32>) -> Vec<Range<usize>> {
        if *heads == (0..self.kv_heads) {
            return vec![0..self.row_bytes()];
        }
        let run = |base: usize, width: usize| {
            base + heads.start as usize * width..base + heads.end as usize * width
        };
        let (kv_heads, scales_at) = (self.kv_heads as usize, self.scales_at());
        let (element, scale) = (self.head_dim as usize * self.dtype.bytes(), self.dtype.scale_bytes());
        let mut parts = vec![run(0, element), run(kv_heads * element, element)];
        if scale > 0 {
            parts.extend([run(scales_at, scale), run(scales_at + kv_heads * scale, scale)]);
        }
        parts
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_elements_and_then_scales() {
        let row = |dtype| {
            let shape = KvShape { layers: 1, kv_heads: 3, head_dim: 64, dtype, page_tokens: 16 };
            (shape.scales_at(), shape.row_bytes())
        };
        assert_eq!(KvDtype::ALL.map(row), [(1536, 1536), (768, 768), (768, 768), (384, 408)]);
    }

    #[test]
    fn parts_of_a_row_cover_it_once() {
        for dtype in KvDtype::ALL {
            let shape = KvShape { layers: 1, kv_heads: 6, head_dim: 8, dtype, page_tokens: 16 };
            let mut times = vec![0; shape.row_bytes()];
            for heads in [0..1, 1..4, 4..6] {
                let parts = shape.row_parts(&heads);
                let span = KvSpan { layers: 0..1, tokens: 0..1, heads };
                assert_eq!(parts.iter().map(ExactSizeIterator::len).sum::<usize>(), shape.span_bytes(&span));
                parts.into_iter().flatten().for_each(|at| times[at] += 1);
            }
            assert_eq!(times, vec![1; shape.row_bytes()], "{dtype}");
        }
    }

    #[test]
    fn dtypes_have_names() {
        assert_eq!(KvDtype::ALL.map(|dtype| dtype.as_str().parse().ok()), KvDtype::ALL.map(Some));
        assert!("int3".parse::<KvDtype>().is_err());
    }
}
