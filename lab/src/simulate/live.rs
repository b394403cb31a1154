//! A request that is under way.

use std::time::Duration;

use baton_protocol::{BlockHash, Budgets, Request, RequestId, Sampling, Stop};

use super::node::Node;
use crate::measure::{Outcome, Phases, Record};

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for a place.
    Line,
    /// It looks for nodes.
    Routing,
    /// It waits for pages of its decode node.
    Pages,
    /// Its prompt waits or runs.
    Prompt,
    /// Its KV travels.
    Transfer,
    /// Tokens come.
    Answer,
}

/// Requests under way. One that is over leaves its number to another.
#[derive(Debug, Default)]
pub(super) struct Lives {
    all: Vec<Option<Live>>,
    free: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) record: Record,
    /// The prompt, and what was answered in attempts before.
    pub(super) tokens: Vec<u32>,
    pub(super) chain: Vec<BlockHash>,
    pub(super) budgets: Budgets,
    /// When nobody waits for it any more, in seconds from the start.
    pub(super) deadline: Option<f64>,
    /// Counts requests: numbers of those that are over are used again.
    pub(super) serial: u64,
    pub(super) phase: Phase,
    /// Its place in line.
    pub(super) in_line: Option<u64>,
    /// The attempt that is under way; 0: none is.
    pub(super) attempt: u64,
    pub(super) attempts: u32,
    /// Decode nodes that it was lost on.
    pub(super) avoid: Vec<usize>,
    pub(super) decode: usize,
    /// Who runs the prompt.
    pub(super) runs: usize,
    /// Prefill nodes, the one that was asked first.
    pub(super) candidates: Vec<usize>,
    /// Its prompt in the ledger of a node.
    pub(super) sent: Option<(usize, u64)>,
    /// Whether the decode node's ledger knows of a token.
    pub(super) generated: bool,
    /// Pages of the decode node, and whether it has them and no answer of its own there does.
    pub(super) pages: usize,
    pub(super) holds: bool,
    /// Pages of the prefill node, as long as KV travels.
    pub(super) held_there: usize,
    /// Blocks that the decode node holds.
    pub(super) have: usize,
    /// Tokens to come.
    pub(super) left: usize,
    pub(super) homeless_since: Option<f64>,
    /// When the prompt's first step began, and all KV was there.
    pub(super) began: f64,
    pub(super) joined: f64,
    /// Seconds that KV travelled.
    pub(super) transfer: f64,
    /// When the last token came, where it is made.
    last: f64,
    first: f64,
}

// === impl Lives ===

impl Lives {
    pub(super) fn insert(&mut self, live: Live) -> usize {
        let request = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[request] = Some(live);
        request
    }

    pub(super) fn remove(&mut self, request: usize) -> Option<Live> {
        let live = self.all.get_mut(request)?.take()?;
        self.free.push(request);
        Some(live)
    }

    pub(super) fn get_mut(&mut self, request: usize) -> Option<&mut Live> {
        self.all.get_mut(request)?.as_mut()
    }

    /// Whose attempt it is, while it is under way.
    pub(super) fn of(&mut self, attempt: u64) -> Option<&mut Live> {
        self.get_mut(Self::request(attempt)).filter(|live| live.attempt == attempt)
    }

    /// In the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Live)> {
        self.all.iter().enumerate().filter_map(|(request, live)| Some((request, live.as_ref()?)))
    }

    /// The name of an attempt of a request: the request's number and, above it, one of its own,
    /// counted from 1.
    pub(super) fn attempt(request: usize, number: u64) -> u64 {
        number << 32 | request as u64
    }

    pub(super) fn request(attempt: u64) -> usize {
        (attempt & 0xffff_ffff) as usize
    }
}

// === impl Live ===

impl Live {
    pub(super) fn new(record: Record, tokens: Vec<u32>, chain: Vec<BlockHash>, budgets: Budgets) -> Self {
        let left = record.wanted_tokens;
        Self {
            record: Record { prompt_tokens: Some(tokens.len()), ..record },
            tokens,
            chain,
            budgets,
            deadline: None,
            serial: 0,
            phase: Phase::Line,
            in_line: None,
            attempt: 0,
            attempts: 0,
            avoid: Vec::new(),
            decode: 0,
            runs: 0,
            candidates: Vec::new(),
            sent: None,
            generated: false,
            pages: 0,
            holds: false,
            held_there: 0,
            have: 0,
            left,
            homeless_since: None,
            began: 0.0,
            joined: 0.0,
            transfer: 0.0,
            last: 0.0,
            first: 0.0,
        }
    }

    /// As the coordinator's code is asked; its prompt is to be given back.
    pub(super) fn request(&mut self) -> Request {
        Request {
            id: RequestId(0),
            model: String::new(),
            tenant: String::new(),
            tokens: std::mem::take(&mut self.tokens),
            sampling: Sampling::greedy(),
            stop: Stop {
                max_tokens: self.left as u32,
                min_tokens: 0,
                ignore_eos: true,
                token_ids: Vec::new(),
            },
            choices: 1,
            logprobs: false,
            top_logprobs: 0,
            prompt_logprobs: None,
            embedding: None,
            trace: String::new(),
            deadline: Duration::from_secs(3600),
        }
    }

    pub(super) fn take_back(&mut self, request: Request) {
        self.tokens = request.tokens;
    }

    /// Tokens of so many blocks; the last token of a prompt is always computed.
    pub(super) fn cached(&self, blocks: usize, node: &Node) -> usize {
        (blocks * node.machine.kv.page_tokens as usize).min(self.tokens.len().saturating_sub(1))
    }

    pub(super) fn is_before_answer(&self) -> bool {
        matches!(self.phase, Phase::Prompt | Phase::Transfer)
    }

    /// The decode node's ledger learns of the first token.
    pub(super) fn generates(&mut self, node: &Node) {
        if !std::mem::replace(&mut self.generated, true) {
            node.shown.ledger.borrow_mut().generates();
        }
    }

    /// A prompt has run. Of an attempt that goes on, its token is one among others.
    pub(super) fn first_token(&mut self, now: f64, front: f64) {
        self.joined = now;
        if self.record.ttft.is_some() {
            return self.token(now);
        }
        self.record.ttft = Some(now + front - self.record.intended);
        self.record.gaps.reserve_exact(self.left.saturating_sub(1));
        self.record.output_tokens += 1;
        self.left -= 1;
        (self.first, self.last) = (now, now);
    }

    pub(super) fn token(&mut self, now: f64) {
        self.record.gaps.push((now - self.last) as f32);
        self.record.output_tokens += 1;
        self.left -= 1;
        self.last = now;
    }

    /// Another attempt is to go on where this one stopped.
    pub(super) fn resume(&mut self) {
        self.phase = Phase::Routing;
        self.homeless_since = None;
        let known = self.record.prompt_tokens.unwrap_or(0) + self.record.output_tokens;
        self.tokens.resize(known, 0);
    }

    pub(super) fn into_record(self, end: f64, outcome: Outcome) -> Record {
        let ms = |seconds: f64| 1e3 * seconds.max(0.0);
        let phases = self.record.ttft.map(|_| Phases {
            queue_ms: ms(self.began - self.record.intended),
            prefill_ms: ms(self.first - self.began),
            transfer_ms: ms(self.transfer),
            wait_ms: ms(self.joined - self.first),
            decode_ms: ms(self.last - self.joined),
        });
        Record { end, outcome, phases, ..self.record }
    }
}
