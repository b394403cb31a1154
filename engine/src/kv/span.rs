//! Pages of consecutive tokens, seen as bytes: what handoffs read and fill.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::Arc,
};

use baton_protocol::{KvSink, KvSource, KvSpan};
use parking_lot::Mutex;

use super::{Hold, KvPool, PageRef, Piece};

/// KV of `first_token..tokens_end` in pages of one pool. Holds the pages as
/// they came; a handoff sees them through [`KvSource`] and [`KvSink`].
pub struct PageSpan {
    pool: Arc<KvPool>,
    pages: Vec<PageRef>,
    tokens: Range<u32>,
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
        Self { pool, pages, tokens: first_token..tokens_end, quarantine: Mutex::default() }
    }

    /// Its pages in order.
    pub fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// Its pages in order, still held as they came.
    pub fn into_pages(self) -> Vec<PageRef> {
        self.pages
    }

    /// The span's pieces of memory in canonical order: by layer, then by token.
    fn pieces(&self, span: &KvSpan) -> io::Result<Vec<Piece>> {
        let shape = self.pool.shape();
        let covered = span.tokens.start >= self.tokens.start && span.tokens.end <= self.tokens.end;
        let known = span.layers.start < span.layers.end && span.layers.end <= shape.layers;
        if !covered || !known || span.tokens.is_empty() {
            let message =
                format!("{span:?} is not within layers 0..{} and tokens {:?}", shape.layers, self.tokens);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (page_tokens, row) = (shape.page_tokens as usize, shape.row_bytes());
        let start = (span.tokens.start - self.tokens.start) as usize;
        let end = (span.tokens.end - self.tokens.start) as usize;
        let mut pieces = Vec::with_capacity(span.layers.len() * (shape.pages_for(end) - start / page_tokens));
        for layer in span.layers.clone() {
            for index in start / page_tokens..end.div_ceil(page_tokens) {
                let base = index * page_tokens;
                let bytes = (start.max(base) - base) * row..(end.min(base + page_tokens) - base) * row;
                pieces.push(Piece { layer: layer as usize, page: self.pages[index].id(), bytes });
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
}

impl KvSink for PageSpan {
    fn write(
        &self,
        span: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pool.memory().write(&self.pieces(span)?, fill)
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
    use baton_protocol::{KvDtype, KvShape};

    use super::*;
    use crate::kv::PoolConfig;

    fn span(page_tokens: u32, tokens: Range<u32>) -> (Arc<KvPool>, PageSpan) {
        let shape = KvShape { layers: 3, kv_heads: 1, head_dim: 2, dtype: KvDtype::Bf16, page_tokens };
        let config = PoolConfig { pages: 16, max_promised: 16, max_prefill: 16, max_decode: 16 };
        let pool = KvPool::new(shape, config);
        let needed = pool.shape().pages_for(tokens.len());
        // In reverse, so that neighbours in the span are not neighbours in memory.
        let pages = pool.allocate(needed).unwrap().into_iter().rev().collect();
        (Arc::clone(&pool), PageSpan::new(pool, pages, tokens.start, tokens.end))
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
        let whole = KvSpan { layers: 0..3, tokens: 8..21 };
        let bytes: Vec<u8> = (0..from.pool.shape().span_bytes(&whole)).map(|i| i as u8).collect();
        fill(&from, &whole, &bytes);
        assert_eq!(bytes_of(&from, &whole), bytes);
        for tokens in [8..11, 11..12, 12..21] {
            for layers in [0..1, 1..3] {
                let part = KvSpan { layers, tokens: tokens.clone() };
                fill(&to, &part, &bytes_of(&from, &part));
            }
        }
        assert_eq!(bytes_of(&to, &whole), bytes);
    }

    #[test]
    fn spans_beyond_the_pages_are_refused() {
        let (_pool, span) = span(4, 4..10);
        for (layers, tokens) in [(0..3, 0..8), (0..3, 8..11), (0..4, 4..8), (1..1, 4..8), (0..1, 5..5)] {
            let refused = span.read(&KvSpan { layers, tokens }, &mut |_| Ok(())).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
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
