//! What this crate's tests share: memory that knows what it should hold.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use baton_protocol::{
    FrameHeader, HandoffId, KvDtype, KvShape, KvSink, KvSource, KvSpan, Request, RequestId, Sampling, Stop,
};
use parking_lot::Mutex;

use crate::{HandoffAsk, Landing, transport::Checksum};

/// A row has 16 bytes, a token 48.
pub const SHAPE: KvShape =
    KvShape { layers: 3, kv_heads: 2, head_dim: 2, dtype: KvDtype::Bf16, page_tokens: 4 };

/// KV of some tokens, `[layer][token][row]`, seen in pieces of a page each.
pub struct Memory {
    shape: KvShape,
    tokens: Range<u32>,
    bytes: Mutex<Vec<u8>>,
    pub quarantined: AtomicBool,
    /// Belongs to somebody else now: nobody may write.
    pub sealed: AtomicBool,
    /// Writes after sealing.
    pub violations: AtomicUsize,
}

impl Memory {
    pub fn empty(shape: &KvShape, tokens: Range<u32>) -> Arc<Self> {
        let bytes = vec![0; shape.token_bytes() * tokens.len()];
        Arc::new(Self {
            shape: shape.clone(),
            tokens,
            bytes: Mutex::new(bytes),
            quarantined: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            violations: AtomicUsize::new(0),
        })
    }

    /// As a prefill node has it.
    pub fn computed(shape: &KvShape, tokens: Range<u32>) -> Arc<Self> {
        let memory = Self::empty(shape, tokens.clone());
        {
            let mut bytes = memory.bytes.lock();
            for layer in 0..shape.layers {
                for token in tokens.clone() {
                    let at = memory.at(layer, token);
                    bytes[at..at + shape.row_bytes()].copy_from_slice(&row(shape, layer, token));
                }
            }
        }
        memory
    }

    /// Whether all layers of these tokens hold what was computed for them.
    pub fn holds(&self, tokens: Range<u32>) -> bool {
        let bytes = self.bytes.lock();
        let right = |layer, token| {
            let at = self.at(layer, token);
            bytes[at..at + self.shape.row_bytes()] == row(&self.shape, layer, token)
        };
        tokens.into_iter().all(|token| (0..self.shape.layers).all(|layer| right(layer, token)))
    }

    fn at(&self, layer: u32, token: u32) -> usize {
        (layer as usize * self.tokens.len() + (token - self.tokens.start) as usize) * self.shape.row_bytes()
    }

    /// Byte ranges of a span, a page at a time; none when it is not covered.
    fn pieces(&self, span: &KvSpan) -> io::Result<Vec<Range<usize>>> {
        let inside = span.tokens.start >= self.tokens.start && span.tokens.end <= self.tokens.end;
        if !inside || span.layers.end > self.shape.layers {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut pieces = Vec::new();
        for layer in span.layers.clone() {
            let mut token = span.tokens.start;
            while token < span.tokens.end {
                let page_end = (token / self.shape.page_tokens + 1) * self.shape.page_tokens;
                let end = page_end.min(span.tokens.end);
                let at = self.at(layer, token);
                pieces.push(at..at + (end - token) as usize * self.shape.row_bytes());
                token = end;
            }
        }
        Ok(pieces)
    }
}

/// What a row should hold; never zero.
fn row(shape: &KvShape, layer: u32, token: u32) -> Vec<u8> {
    (0..shape.row_bytes() as u32).map(|at| ((layer * 7919 + token * 131 + at * 17) % 255) as u8 + 1).collect()
}

impl KvSource for Memory {
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let pieces = self.pieces(span)?;
        let bytes = self.bytes.lock();
        let slices: Vec<_> = pieces.into_iter().map(|range| IoSlice::new(&bytes[range])).collect();
        use_bytes(&slices)
    }
}

impl KvSink for Memory {
    fn write(
        &self,
        span: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.sealed.load(Ordering::SeqCst) {
            self.violations.fetch_add(1, Ordering::SeqCst);
        }
        let pieces = self.pieces(span)?;
        let mut bytes = self.bytes.lock();
        let mut rest: &mut [u8] = &mut bytes;
        let (mut at, mut slices) = (0, Vec::new());
        for range in pieces {
            let (_, tail) = rest.split_at_mut(range.start - at);
            let (piece, tail) = tail.split_at_mut(range.len());
            slices.push(IoSliceMut::new(piece));
            (rest, at) = (tail, range.end);
        }
        fill(&mut slices)
    }

    fn tokens(&self) -> Range<u32> {
        self.tokens.clone()
    }

    fn quarantine(&self) {
        self.quarantined.store(true, Ordering::SeqCst);
    }
}

/// A landing that gives out one memory, or none.
pub struct Slot(pub Option<Arc<Memory>>);

impl Landing for Slot {
    fn bind(&mut self) -> Option<Arc<dyn KvSink>> {
        self.0.take().map(|memory| memory as Arc<dyn KvSink>)
    }
}

pub fn handoff_id(leg: u32) -> HandoffId {
    HandoffId { request: RequestId(77), attempt: 1, leg }
}

/// An ask for `tokens` tokens of which the receiver has `have`.
pub fn ask(leg: u32, tokens: u32, have: u32) -> HandoffAsk {
    let request = Request {
        id: RequestId(77),
        model: "mock".to_owned(),
        tenant: String::new(),
        tokens: (0..tokens).collect(),
        sampling: Sampling::greedy(),
        stop: Stop { max_tokens: 8, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
        choices: 1,
        logprobs: false,
        top_logprobs: 0,
        deadline: Duration::from_secs(60),
    };
    HandoffAsk {
        id: handoff_id(leg),
        request,
        prompt_tokens: tokens,
        have,
        sample: vec![0],
        deadline: Duration::from_secs(60),
    }
}

/// A right header for a span of `source`.
pub fn header(shape: &KvShape, source: &dyn KvSource, seq: u32, span: KvSpan) -> FrameHeader {
    FrameHeader {
        handoff: handoff_id(0),
        seq,
        heads: (0, shape.kv_heads as u16),
        bytes: shape.span_bytes(&span) as u32,
        crc: Checksum::Crc32c.of(source, &span).unwrap(),
        span,
    }
}
