//! Pages of consecutive tokens, seen as bytes: what handoffs read and fill.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::Arc,
};

use baton_protocol::{DeviceSpan, KvSink, KvSource, KvSpan};
use parking_lot::Mutex;

use super::{Hold, KvPool, PageRef, Piece};

/// KV of `first_token..tokens_end` in pages of one pool. Holds the pages as
/// they came; a handoff sees them through [`KvSource`] and [`KvSink`].
pub struct PageSpan {
    pool: Arc<KvPool>,
    pages: Vec<PageRef>,
    tokens: Range<u32>,
    /// Which of the model's heads is the first of a row.
    first_head: u32,
    /// One more hold on every page once the handoff has ended in doubt.
    quarantine: Mutex<Vec<PageRef>>,
}

// === impl PageSpan ===

impl PageSpan {
    /// Pages of tokens from `first_token`, a multiple of the page size, to `tokens_end`.
    ///
    /// # Panics
    /// When the pages do not cover the tokens, or the first token is inside of a page.
    pub fn new(pool: Arc<KvPool>, pages: Vec<PageRef>, first_token: u32, tokens_end: u32) -> Self {
        let page_tokens = pool.shape().page_tokens;
        assert!(first_token.is_multiple_of(page_tokens), "token {first_token} does not start a page");
        let needed = pool.shape().pages_for(tokens_end.saturating_sub(first_token) as usize);
        assert!(pages.len() >= needed, "{} pages for tokens {first_token}..{tokens_end}", pages.len());
        let tokens = first_token..tokens_end;
        Self { pool, pages, tokens, first_head: 0, quarantine: Mutex::default() }
    }

    /// The same pages on a node whose rows hold the model's heads from `first_head`.
    pub fn from_head(self, first_head: u32) -> Self {
        Self { first_head, ..self }
    }

    /// Its pages in order.
    pub fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// Its pages in order, still held as they came.
    pub fn into_pages(self) -> Vec<PageRef> {
        self.pages
    }

    /// The span's pieces of memory in canonical order: by layer, then by token, then by part of a row.
    fn pieces(&self, span: &KvSpan) -> io::Result<Vec<Piece>> {
        let shape = self.pool.shape();
        let covered = span.tokens.start >= self.tokens.start && span.tokens.end <= self.tokens.end;
        let known = span.layers.start < span.layers.end && span.layers.end <= shape.layers;
        let held = self.first_head..self.first_head + shape.kv_heads;
        let here = held.start <= span.heads.start && span.heads.end <= held.end && !span.heads.is_empty();
        if !covered || !known || !here || span.tokens.is_empty() {
            let message = format!(
                "{span:?} is not within layers 0..{}, tokens {:?} and heads {held:?}",
                shape.layers, self.tokens
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let parts = shape.row_parts(&(span.heads.start - held.start..span.heads.end - held.start));
        let whole_rows = span.heads == held;
        let (page_tokens, row) = (shape.page_tokens as usize, shape.row_bytes());
        let start = (span.tokens.start - self.tokens.start) as usize;
        let end = (span.tokens.end - self.tokens.start) as usize;
        let mut pieces = Vec::with_capacity(span.layers.len() * (shape.pages_for(end) - start / page_tokens));
        for layer in span.layers.clone() {
            for index in start / page_tokens..end.div_ceil(page_tokens) {
                let base = index * page_tokens;
                let bytes = (start.max(base) - base) * row..(end.min(base + page_tokens) - base) * row;
                let piece = |bytes| Piece { layer: layer as usize, page: self.pages[index].id(), bytes };
                if whole_rows {
                    pieces.push(piece(bytes));
                } else {
                    let part = |at: usize| parts.iter().map(move |part| at + part.start..at + part.end);
                    pieces.extend(bytes.step_by(row).flat_map(part).map(piece));
                }
            }
        }
        Ok(pieces)
    }
}

impl KvSource for PageSpan {
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pool.memory().read(&self.pieces(span)?, use_bytes)
    }

    fn on_device(&self, span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        self.pool.memory().on_device(&self.pieces(span)?)
    }
}

impl KvSink for PageSpan {
    fn write(
        &self,
        span: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pool.memory().write(&self.pieces(span)?, fill)
    }

    fn on_device(&self, span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        self.pool.memory().on_device(&self.pieces(span)?)
    }

    fn tokens(&self) -> Range<u32> {
        self.tokens.clone()
    }

    fn quarantine(&self) {
        let mut quarantine = self.quarantine.lock();
        if quarantine.is_empty() {
            *quarantine = self.pages.iter().map(|page| page.held_as(Hold::Quarantined)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::{HeadShare, KvDtype, KvShape};
    use proptest::prelude::*;

    use super::*;
    use crate::kv::PoolConfig;

    fn span(page_tokens: u32, tokens: Range<u32>) -> (Arc<KvPool>, PageSpan) {
        let shape = KvShape { layers: 3, kv_heads: 1, head_dim: 2, dtype: KvDtype::Bf16, page_tokens };
        let span = over(shape, tokens);
        (Arc::clone(&span.pool), span)
    }

    fn over(shape: KvShape, tokens: Range<u32>) -> PageSpan {
        let config =
            PoolConfig { pages: 16, max_promised: 16, max_prefill: 16, max_decode: 16, zeroes: false };
        let pool = KvPool::new(shape, config);
        let needed = pool.shape().pages_for(tokens.len());
        // In reverse, so that neighbours in the span are not neighbours in memory.
        let pages = pool.allocate(needed).unwrap().into_iter().rev().collect();
        PageSpan::new(pool, pages, tokens.start, tokens.end)
    }

    fn bytes_of(source: &PageSpan, span: &KvSpan) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut take = |slices: &[IoSlice<'_>]| {
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            Ok(())
        };
        source.read(span, &mut take).unwrap();
        bytes
    }

    fn fill(sink: &PageSpan, span: &KvSpan, bytes: &[u8]) {
        let mut rest = bytes;
        let mut fill = |slices: &mut [IoSliceMut<'_>]| {
            for slice in slices {
                let (now, later) = rest.split_at(slice.len());
                slice.copy_from_slice(now);
                rest = later;
            }
            Ok(())
        };
        sink.write(span, &mut fill).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn bytes_are_canonical_whatever_the_page_size() {
        let (_four, from) = span(4, 8..21);
        let (_eight, to) = span(8, 8..21);
        let whole = from.pool.shape().span(0..3, 8..21);
        let bytes: Vec<u8> = (0..from.pool.shape().span_bytes(&whole)).map(|i| i as u8).collect();
        fill(&from, &whole, &bytes);
        assert_eq!(bytes_of(&from, &whole), bytes);
        for tokens in [8..11, 11..12, 12..21] {
            for layers in [0..1, 1..3] {
                let part = to.pool.shape().span(layers, tokens.clone());
                fill(&to, &part, &bytes_of(&from, &part));
            }
        }
        assert_eq!(bytes_of(&to, &whole), bytes);
    }

    #[test]
    fn spans_beyond_the_pages_are_refused() {
        let (_pool, span) = span(4, 4..10);
        for (layers, tokens) in [(0..3, 0..8), (0..3, 8..11), (0..4, 4..8), (1..1, 4..8), (0..1, 5..5)] {
            let refused = span.read(&KvSpan { layers, tokens, heads: 0..1 }, &mut |_| Ok(())).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// Element `at` of one head's key or value, or its scale when there is no such element.
    fn byte(shape: &KvShape, (layer, token, value, head): (u32, u32, usize, u32), at: usize) -> u8 {
        let which = ((layer * 64 + token) as usize * 2 + value) * 16 + head as usize;
        (which * shape.head_bytes() + at) as u8
    }

    /// A box in canonical order: elements of all heads, then their scales.
    fn canonical(shape: &KvShape, span: &KvSpan) -> Vec<u8> {
        let elements = shape.head_dim as usize * shape.dtype.bytes();
        let mut bytes = Vec::new();
        for layer in span.layers.clone() {
            for token in span.tokens.clone() {
                for part in [0..elements, elements..shape.head_bytes()] {
                    for value in 0..2 {
                        for head in span.heads.clone() {
                            let one = |at| byte(shape, (layer, token, value, head), at);
                            bytes.extend(part.clone().map(one));
                        }
                    }
                }
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// A node with all heads in one row, and ranks with rows of their own.
        #[test]
        fn heads_land_in_the_rows_of_whoever_holds_them(
            kv_heads in 1..9u32, head_dim in 1..5u32, dtype in prop::sample::select(KvDtype::ALL.to_vec()),
            pages in (8..129u32, 8..129u32), tp in 0..4u32, until in 1..40u32,
        ) {
            let share = HeadShare { held: 0..kv_heads, tp: 1 << tp };
            prop_assume!(share.check(kv_heads).is_ok());
            let shape = KvShape { layers: 2, kv_heads, head_dim, dtype, page_tokens: pages.0 };
            let from = over(shape.clone(), 0..until);
            let whole = shape.span(0..2, 0..until);
            fill(&from, &whole, &canonical(&shape, &whole));
            for shard in share.shards() {
                let local = KvShape { kv_heads: shard.len() as u32, page_tokens: pages.1, ..shape.clone() };
                let to = over(local, 0..until).from_head(shard.start);
                for head in shard.clone() {
                    for tokens in [0..until / 2, until / 2..until] {
                        let part = KvSpan { layers: 0..2, tokens, heads: head..head + 1 };
                        if !part.tokens.is_empty() {
                            prop_assert_eq!(bytes_of(&from, &part), canonical(&shape, &part));
                            fill(&to, &part, &bytes_of(&from, &part));
                        }
                    }
                }
                let mine = KvSpan { heads: shard.clone(), ..whole.clone() };
                prop_assert_eq!(bytes_of(&to, &mine), canonical(&shape, &mine));
                let beyond = KvSpan { heads: shard.start..shard.end + 1, ..whole.clone() };
                prop_assert!(to.read(&beyond, &mut |_| Ok(())).is_err());
            }
        }
    }

    #[test]
    fn quarantine_lasts_as_long_as_the_span() {
        let (pool, span) = span(4, 0..10);
        span.quarantine();
        span.quarantine();
        assert_eq!((pool.counts().quarantined, pool.counts().running), (3, 0));
        drop(span);
        assert_eq!(pool.counts().free, 16);
    }
}
