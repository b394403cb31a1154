//! Requests in flight, to be seen and to be cancelled.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use baton_protocol::{Budgets, NodeId, Request, RequestId};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::route::Route;

/// What became of a request so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waits for a place among the running requests.
    Queued,
    /// Has a place, and no node has begun its attempt.
    Routed,
    /// A node has its attempt, which has no token yet.
    Prefill,
    /// Tokens come.
    Decode,
}

/// A request in flight.
#[derive(Clone, Debug)]
pub struct RequestStatus {
    /// Its id.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: String,
    /// What it asks for.
    pub model: String,
    /// Its place in line.
    pub priority: i32,
    /// What its reader should wait at most.
    pub budgets: Budgets,
    /// Since it came.
    pub age: Duration,
    /// Until it must have ended.
    pub left: Duration,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens of its answers so far.
    pub tokens: u32,
    /// Attempts begun.
    pub attempts: u32,
    /// What became of it.
    pub stage: Stage,
    /// Where it decodes, or did last.
    pub decode: Option<NodeId>,
    /// Where its prompt was sent first, or is computed; none: on the decode node.
    pub prefill: Option<NodeId>,
}

/// Those in flight, by id.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<RequestId, Arc<Track>>>);

/// What is known of one of them.
#[derive(Debug)]
struct Track {
    began: Instant,
    deadline: Instant,
    first: RequestStatus,
    place: Mutex<Place>,
    tokens: AtomicU32,
    cancelled: CancellationToken,
}

/// Where it is.
#[derive(Clone, Debug)]
struct Place {
    stage: Stage,
    attempts: u32,
    decode: Option<NodeId>,
    prefill: Option<NodeId>,
}

/// A request's own entry, gone when dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    requests: Arc<Requests>,
    track: Arc<Track>,
}

// === impl Requests ===

impl Requests {
    /// Enters one that has just come.
    pub(crate) fn enter(
        self: &Arc<Self>,
        request: &Request,
        (priority, budgets): (i32, Budgets),
        deadline: Instant,
    ) -> Tracked {
        let first = RequestStatus {
            id: request.id,
            tenant: request.tenant.clone(),
            model: request.model.clone(),
            priority,
            budgets,
            age: Duration::ZERO,
            left: Duration::ZERO,
            prompt_tokens: request.tokens.len(),
            tokens: 0,
            attempts: 0,
            stage: Stage::Queued,
            decode: None,
            prefill: None,
        };
        let track = Arc::new(Track {
            began: Instant::now(),
            deadline,
            first,
            place: Mutex::new(Place { stage: Stage::Queued, attempts: 0, decode: None, prefill: None }),
            tokens: AtomicU32::new(0),
            cancelled: CancellationToken::new(),
        });
        self.0.lock().insert(request.id, Arc::clone(&track));
        Tracked { requests: Arc::clone(self), track }
    }

    /// All of them, the oldest first.
    pub(crate) fn all(&self) -> Vec<RequestStatus> {
        let mut all: Vec<_> = self.0.lock().values().map(|track| track.status()).collect();
        all.sort_by_key(|request| std::cmp::Reverse(request.age));
        all
    }

    /// Ends one with a failure that its reader is told. False if there is none of this id.
    pub(crate) fn cancel(&self, id: RequestId) -> bool {
        let found = self.0.lock().get(&id).cloned();
        if let Some(track) = &found {
            track.cancelled.cancel();
        }
        found.is_some()
    }
}

// === impl Track ===

impl Track {
    fn status(&self) -> RequestStatus {
        let Place { stage, attempts, decode, prefill } = self.place.lock().clone();
        RequestStatus {
            age: self.began.elapsed(),
            left: self.deadline.saturating_duration_since(Instant::now()),
            tokens: self.tokens.load(Ordering::Relaxed),
            attempts,
            stage,
            decode,
            prefill,
            ..self.first.clone()
        }
    }
}

// === impl Tracked ===

impl Tracked {
    /// It has a place among the running ones.
    pub(crate) fn admitted(&self) {
        self.track.place.lock().stage = Stage::Routed;
    }

    /// An attempt begins there.
    pub(crate) fn attempt(&self, route: &Route) {
        let mut place = self.track.place.lock();
        place.attempts += 1;
        place.stage = Stage::Prefill;
        place.decode = Some(route.decode.id().clone());
        place.prefill = route.prefill.first().map(|node| node.id().clone());
    }

    /// This node computes the prompt.
    pub(crate) fn computes(&self, prefill: Option<&NodeId>) {
        self.track.place.lock().prefill = prefill.cloned();
    }

    /// A new token came.
    pub(crate) fn token(&self) {
        if self.track.tokens.fetch_add(1, Ordering::Relaxed) == 0 {
            self.track.place.lock().stage = Stage::Decode;
        }
    }

    /// Ends when somebody cancels it.
    pub(crate) fn cancelled(&self) -> CancellationToken {
        self.track.cancelled.clone()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut requests = self.requests.0.lock();
        let id = self.track.first.id;
        if requests.get(&id).is_some_and(|track| Arc::ptr_eq(track, &self.track)) {
            requests.remove(&id);
        }
    }
}
