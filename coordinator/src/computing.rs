//! Who computes a request's prompt, and who broke off while it was there.

use std::{sync::Arc, time::Duration};

use baton_protocol::{Bill, Request, RequestId};
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use crate::{
    fleet::Node,
    quarantine::NODES,
    suspects::{Alone, Suspects},
};

/// What is known of it over all attempts.
pub(crate) struct Computing {
    request: RequestId,
    suspects: Arc<Suspects>,
    /// Whether the decode node has the prompt, and there is no token.
    is_out: bool,
    /// Who computes it for the running attempt, as far as is known, until there is a token.
    node: Option<Arc<Node>>,
    /// Those that broke off before there was a token: it may be what they died of.
    victims: Vec<Arc<Node>>,
    /// Of them, prefill nodes of the running attempt.
    lost_prefills: usize,
    /// Tokens that needed no computing when somebody first began.
    cached_tokens: Option<u32>,
    /// While it may be this request, or another one, that nodes die of.
    alone: Option<Alone>,
}

/// What a request is that nodes broke off with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They did not die, or it was one.
    Innocent,
    /// They died, and another request was on all of them.
    Unsure,
    /// They died of it.
    Deadly,
}

/// How long after a node's death others may take to tell that they were on it.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

// === impl Computing ===

impl Computing {
    /// Nobody yet.
    pub(crate) fn new(request: RequestId, suspects: &Arc<Suspects>) -> Self {
        let suspects = Arc::clone(suspects);
        let (node, victims, cached_tokens) = (None, Vec::new(), None);
        Self { request, suspects, is_out: false, node, victims, lost_prefills: 0, cached_tokens, alone: None }
    }

    /// An attempt begins.
    pub(crate) fn attempt(&mut self) {
        self.is_out = false;
        self.node = None;
        self.lost_prefills = 0;
    }

    /// The decode node has taken it.
    pub(crate) fn taken(&mut self) {
        self.is_out = true;
    }

    /// Prefill nodes that the next attempt may lose.
    pub(crate) fn may_lose(&self) -> u32 {
        NODES.saturating_sub(self.victims.len()).max(1) as u32
    }

    /// A node begins behind so many tokens.
    pub(crate) fn begin(&mut self, node: Option<Arc<Node>>, cached_tokens: u32) {
        self.cached_tokens.get_or_insert(cached_tokens);
        self.node = node;
    }

    /// A prefill node broke off, the decode node says.
    pub(crate) fn prefill_broke_off(&mut self, node: Option<Arc<Node>>) {
        self.node = None;
        self.lost_prefills += 1;
        node.into_iter().for_each(|node| self.broke_off(node));
    }

    /// Whether the running attempt's prefill nodes are why it has nothing.
    pub(crate) fn lost_prefill(&self) -> bool {
        self.lost_prefills > 0
    }

    /// The decode node broke off. Where it is known to have waited for a prefill node, that is not the prompt's doing.
    pub(crate) fn decode_broke_off(&mut self, decode: &Arc<Node>) {
        if self.is_out && self.node.take().is_none_or(|node| node.id() == decode.id()) {
            self.broke_off(Arc::clone(decode));
        }
    }

    /// The prompt is computed: what happened to anybody was not its doing.
    pub(crate) fn end(&mut self) {
        self.is_out = false;
        self.node = None;
        self.alone = None;
        self.clear();
    }

    fn clear(&mut self) {
        if !self.victims.is_empty() {
            self.victims.clear();
            self.suspects.clear(self.request);
        }
    }

    fn broke_off(&mut self, node: Arc<Node>) {
        node.suspect();
        let info = node.info();
        self.suspects.add(self.request, (info.id.clone(), info.incarnation));
        self.victims.push(node);
    }

    /// Whether so many nodes died of it that no other one is to try. Asks them, and waits for word of other
    /// requests that were there.
    pub(crate) async fn verdict(&self) -> Verdict {
        let died = join_all(self.victims.iter().map(|node| node.died())).await;
        if died.into_iter().filter(|died| *died).count() < NODES {
            return Verdict::Innocent;
        }
        let told = async {
            while let (true, false) = self.suspects.beside(self.request) {
                sleep(LOOK_INTERVAL).await;
            }
        };
        let in_time = timeout(TOLD_WITHIN, told).await;
        match (in_time, self.suspects.beside(self.request)) {
            (Ok(()), (true, true)) => Verdict::Unsure,
            _ => Verdict::Deadly,
        }
    }

    /// Waits until no other suspect is tried, for as long as there is no token.
    pub(crate) async fn be_alone(&mut self) {
        // Whoever has it already would wait for itself.
        self.alone = None;
        self.alone = Some(self.suspects.alone().await);
    }

    /// A node's bill is of the last attempt, which finds cached what those before have computed.
    pub(crate) fn bill(&self, request: &Request, bill: Bill) -> Bill {
        let prompt = u32::try_from(request.tokens.len()).unwrap_or(u32::MAX);
        let cached_tokens = bill.cached_tokens.min(prompt).min(self.cached_tokens.unwrap_or(prompt));
        Bill { cached_tokens, ..bill }
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.clear();
    }
}
