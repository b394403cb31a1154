//! Where a handoff's pages land.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use baton_engine::kv::{Hold, KvPool, PageRef, PageSpan, Promise};
use baton_kv_transfer::Landing;
use baton_protocol::KvSink;

/// Turns a promise into pages when the prefill node starts.
pub(crate) struct PromisedPages {
    pool: Arc<KvPool>,
    promise: Option<Promise>,
    tokens: Range<u32>,
    landed: Landed,
}

/// The pages once they are bound, shared between the landing and the attempt.
#[derive(Clone, Default)]
pub(crate) struct Landed(Arc<OnceLock<Arc<PageSpan>>>);

// === impl PromisedPages ===

impl PromisedPages {
    /// Pages for `tokens`, which start on a page boundary and for which
    /// `promise` has enough pages or more.
    pub(crate) fn new(pool: Arc<KvPool>, promise: Promise, tokens: Range<u32>) -> (Self, Landed) {
        let landed = Landed::default();
        (Self { pool, promise: Some(promise), tokens, landed: landed.clone() }, landed)
    }
}

impl Landing for PromisedPages {
    fn bind(&mut self) -> Option<Arc<dyn KvSink>> {
        let pages = self.promise.take()?.bind();
        let span = PageSpan::new(Arc::clone(&self.pool), pages, self.tokens.start, self.tokens.end);
        let span = Arc::clone(self.landed.0.get_or_init(|| Arc::new(span)));
        Some(span)
    }
}

// === impl Landed ===

impl Landed {
    /// The bound pages, at most so many, held for a sequence to run on.
    pub(crate) fn running(&self, pages: usize) -> Vec<PageRef> {
        let bound = self.0.get().map(|span| span.pages()).unwrap_or_default();
        bound.iter().take(pages).map(|page| page.held_as(Hold::Running)).collect()
    }
}
