//! Memory for an attempt: what of its prompt is cached here, and a promise for the rest.

use std::time::Duration;

use baton_engine::kv::{PageRef, Promise};
use tokio::time::Instant;

use crate::{Node, open::Opened};

/// The prefix held here, and a promise for the rest.
pub(crate) struct Room {
    /// Pages of the longest cached prefix, pinned.
    pub(crate) held: Vec<PageRef>,
    /// For the other pages of the prompt, and those it grows into first.
    pub(crate) promise: Promise,
}

/// Why there is no room.
enum NoRoom {
    /// Others have it.
    Now,
    /// More is needed than this pool ever promises.
    Ever,
}

/// Pause between two looks for memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

// === impl Node ===

impl Node {
    /// Pins what is cached of the tokens, but never all of it: the logits after
    /// the last token have to come from somewhere, and so have those that are told of the prompt.
    pub(crate) fn cached(&self, opened: &Opened) -> Vec<PageRef> {
        let unread = opened.request.first_read().unwrap_or(usize::MAX);
        let pages = (opened.tokens.len() - 1).min(unread) / self.page_tokens();
        self.engine.pool().match_prefix(&opened.hashes[..pages])
    }

    /// Waits a while for memory. Nothing is held between two looks, so that
    /// attempts that wait do not keep memory from each other. None: no room.
    pub(crate) async fn room(&self, opened: &Opened) -> Option<Room> {
        let give_up = Instant::now() + self.config.promise_wait();
        loop {
            match self.look(opened) {
                Ok(room) => return Some(room),
                Err(NoRoom::Now) if Instant::now() < give_up => tokio::time::sleep(LOOK_INTERVAL).await,
                Err(_) => return None,
            }
        }
    }

    fn look(&self, opened: &Opened) -> Result<Room, NoRoom> {
        let pool = self.engine.pool();
        let held = self.cached(opened);
        let pages = pool.shape().pages_for(opened.tokens.len()) - held.len() + self.config.growth_pages;
        if pages > pool.config().max_promised {
            return Err(NoRoom::Ever);
        }
        let promise = pool.promise(pages).ok_or(NoRoom::Now)?;
        Ok(Room { held, promise })
    }
}
