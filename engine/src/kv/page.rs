//! Holds on pages, which let go when dropped.

use std::{fmt, mem, sync::Arc};

use super::{KvPool, PageId};

/// In what way a page is held. Its state is the strongest of its holds; the
/// strongest is last here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// By a sequence.
    Running,
    /// By a handoff that reads it.
    Sending,
    /// By a handoff that fills it.
    Receiving,
    /// By a handoff that has ended, until no late write can come.
    Quarantined,
}

/// Holds a page in one way. Dropping it lets go; a page is free when no hold
/// and no entry in the prefix cache remains. A clone is one more hold.
pub struct PageRef {
    pool: Arc<KvPool>,
    id: PageId,
    hold: Hold,
}

/// Pages that will be there when they are needed: a count, not yet pages.
/// Dropping it gives the count back.
pub struct Promise {
    pool: Arc<KvPool>,
    pages: usize,
}

// === impl Hold ===

impl Hold {
    /// All kinds, weakest first.
    pub(super) const ALL: [Self; 4] = [Self::Running, Self::Sending, Self::Receiving, Self::Quarantined];
}

// === impl PageRef ===

impl PageRef {
    /// Wraps a hold that the pool has counted already.
    pub(super) fn counted(pool: &Arc<KvPool>, id: PageId, hold: Hold) -> Self {
        Self { pool: Arc::clone(pool), id, hold }
    }

    /// Which page.
    pub fn id(&self) -> PageId {
        self.id
    }

    /// In what way this holds it.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// One more hold on the same page.
    pub fn held_as(&self, hold: Hold) -> Self {
        self.pool.hold(self.id, hold);
        Self::counted(&self.pool, self.id, hold)
    }

    /// The same page, held in another way.
    pub fn into_hold(self, hold: Hold) -> Self {
        if self.hold == hold { self } else { self.held_as(hold) }
    }
}

impl Clone for PageRef {
    fn clone(&self) -> Self {
        self.held_as(self.hold)
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        self.pool.let_go(self.id, self.hold);
    }
}

impl fmt::Debug for PageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.hold, self.id.0)
    }
}

// === impl Promise ===

impl Promise {
    pub(super) fn counted(pool: &Arc<KvPool>, pages: usize) -> Self {
        Self { pool: Arc::clone(pool), pages }
    }

    /// How many pages are promised.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Turns the promise into pages, held as [`Hold::Receiving`]. Cannot fail:
    /// the pool keeps enough pages free or evictable for all promises.
    pub fn bind(mut self) -> Vec<PageRef> {
        let pages = mem::take(&mut self.pages);
        self.pool.bind(pages)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if self.pages > 0 {
            self.pool.take_back(self.pages);
        }
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Promise({} pages)", self.pages)
    }
}
