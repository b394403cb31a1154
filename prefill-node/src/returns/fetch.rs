//! Takes KV that another node has into the prefix cache.

use std::{sync::Arc, time::Duration};

use baton_engine::{
    EngineHandle,
    kv::{Hold, KvPool, PageRef, PageSpan, Promise},
};
use baton_kv_transfer::{Handoff, HandoffEvent, Landing, Returned, Sessions};
use baton_protocol::{BlockHash, KvSink, chain};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{has_spare, is_small};

/// How long a return may take, its wait on the other side included.
const LIMIT: Duration = Duration::from_secs(60);

/// How often it is asked whether pages get short.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// KV on its way in.
pub(crate) struct Fetch {
    pub(crate) engine: EngineHandle,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) kv: Returned,
    /// It gives way to whatever else wants pages.
    pub(crate) is_favour: bool,
}

/// Promised pages, and the span once they are bound.
#[derive(Clone)]
struct Landed {
    pool: Arc<KvPool>,
    first_token: u32,
    end: u32,
    pages: Arc<Mutex<Pages>>,
}

enum Pages {
    Promised(Promise),
    Bound(Arc<PageSpan>),
    Gone,
}

// === impl Fetch ===

impl Fetch {
    /// How it ended, and how many tokens came. Dropping it gives the pages back.
    pub(crate) async fn run(self) -> (&'static str, u64) {
        timeout(LIMIT, self.take()).await.unwrap_or(("late", 0))
    }

    async fn take(&self) -> (&'static str, u64) {
        let pool = self.engine.pool();
        let page_tokens = pool.shape().page_tokens as usize;
        let hashes = chain(&self.kv.tenant, page_tokens, &self.kv.tokens);
        if self.is_favour && (!is_small(&self.engine, hashes.len()) || !has_spare(&self.engine)) {
            return ("no_room", 0);
        }
        let held = pool.match_prefix(&hashes);
        if held.len() == hashes.len() {
            return ("known", 0);
        }
        let missing = hashes.len() - held.len();
        let Some(promise) = pool.promise(missing) else { return ("no_room", 0) };
        let token = |pages: usize| (pages * page_tokens) as u32;
        let landed = Landed {
            pool: Arc::clone(pool),
            first_token: token(held.len()),
            end: token(hashes.len()),
            pages: Arc::new(Mutex::new(Pages::Promised(promise))),
        };
        let ask = self.kv.ask(landed.first_token, landed.end, LIMIT);
        let handoff = self.sessions.handoff(&self.kv.holder, ask, Box::new(landed.clone())).await;
        let outcome = match handoff {
            Ok(handoff) => self.follow(handoff).await,
            Err(error) => {
                tracing::debug!(node = %self.kv.holder.node, %error, "no session for returned KV");
                "no_session"
            }
        };
        if outcome != "taken" {
            return (outcome, 0);
        }
        self.keep(&hashes, held, &landed);
        (outcome, u64::from(landed.end - landed.first_token))
    }

    async fn follow(&self, mut handoff: Handoff) -> &'static str {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                event = handoff.next() => match event {
                    Some(HandoffEvent::Ready { .. }) => return "taken",
                    Some(HandoffEvent::Lost { reason, .. }) => {
                        tracing::debug!(node = %self.kv.holder.node, %reason, "returned KV did not come");
                        return "lost";
                    }
                    Some(_) => {}
                    None => return "lost",
                },
                _ = look.tick(), if self.is_favour => if !has_spare(&self.engine) {
                    return "gave_way";
                },
            }
        }
    }

    /// Every frame is in and right: the pages become cached prefix.
    fn keep(&self, hashes: &[BlockHash], held: Vec<PageRef>, landed: &Landed) {
        if let Pages::Bound(span) = &*landed.pages.lock() {
            let received = span.pages().iter().map(|page| page.held_as(Hold::Running));
            let pages: Vec<_> = held.into_iter().chain(received).collect();
            self.engine.pool().insert(hashes, &pages);
        }
    }
}

impl Landing for Landed {
    fn bind(&mut self) -> Option<Arc<dyn KvSink>> {
        let mut pages = self.pages.lock();
        let Pages::Promised(promise) = std::mem::replace(&mut *pages, Pages::Gone) else { return None };
        let pool = Arc::clone(&self.pool);
        let span = Arc::new(PageSpan::new(pool, promise.bind(), self.first_token, self.end));
        *pages = Pages::Bound(Arc::clone(&span));
        Some(span)
    }
}
