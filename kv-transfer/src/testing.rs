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
    FrameHeader, HandoffId, HeadShare, KvDtype, KvShape, KvSink, KvSource, KvSpan, Request, RequestId,
    Sampling, Stop,
};
use parking_lot::RwLock;

use crate::{HandoffAsk, Landing, PathReport, TransportKind, Tried, Wanted};

/// A row has 16 bytes, a token 48.
pub const SHAPE: KvShape =
    KvShape { layers: 3, kv_heads: 2, head_dim: 2, dtype: KvDtype::Bf16, page_tokens: 4 };

/// KV of some tokens and heads as a node has it, `[shard][layer][token][row]`,
/// seen in pieces of a page and part of a row each.
pub struct Memory {
    shape: KvShape,
    share: HeadShare,
    tokens: Range<u32>,
    bytes: RwLock<Vec<u8>>,
    pub quarantined: AtomicBool,
    /// Belongs to somebody else now: nobody may write.
    pub sealed: AtomicBool,
    /// Writes after sealing.
    pub violations: AtomicUsize,
}

impl Memory {
    /// All heads in one shard.
    pub fn empty(shape: &KvShape, tokens: Range<u32>) -> Arc<Self> {
        Self::shared(shape, HeadShare::whole(shape.kv_heads), tokens)
    }

    /// As a node has it that holds these heads.
    pub fn shared(shape: &KvShape, share: HeadShare, tokens: Range<u32>) -> Arc<Self> {
        let span = KvSpan { layers: 0..shape.layers, tokens: tokens.clone(), heads: share.held.clone() };
        Arc::new(Self {
            shape: shape.clone(),
            bytes: RwLock::new(vec![0; shape.span_bytes(&span)]),
            share,
            tokens,
            quarantined: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            violations: AtomicUsize::new(0),
        })
    }

    /// As a prefill node has it.
    pub fn computed(shape: &KvShape, tokens: Range<u32>) -> Arc<Self> {
        Self::computed_by(shape, HeadShare::whole(shape.kv_heads), tokens)
    }

    /// As a prefill node has it that holds these heads.
    pub fn computed_by(shape: &KvShape, share: HeadShare, tokens: Range<u32>) -> Arc<Self> {
        let memory = Self::shared(shape, share, tokens.clone());
        memory.each_row(&tokens, |memory, row| memory.copy_from_slice(row));
        memory
    }

    /// Whether all layers and heads of these tokens hold what was computed for them.
    pub fn holds(&self, tokens: Range<u32>) -> bool {
        let mut right = true;
        self.each_row(&tokens, |memory, row| right &= memory == row);
        right
    }

    /// The part of each row that each shard has, with what it should hold.
    fn each_row(&self, tokens: &Range<u32>, mut visit: impl FnMut(&mut [u8], &[u8])) {
        let mut bytes = self.bytes.write();
        for shard in self.share.shards() {
            for layer in 0..self.shape.layers {
                for token in tokens.clone() {
                    let row = row(&self.shape, layer, token);
                    let parts = self.shape.row_parts(&shard);
                    let row: Vec<u8> = parts.into_iter().flat_map(|part| row[part].to_vec()).collect();
                    let at = self.at(&shard, layer, token);
                    visit(&mut bytes[at..at + row.len()], &row);
                }
            }
        }
    }

    /// Where a shard's row of a token begins.
    fn at(&self, shard: &Range<u32>, layer: u32, token: u32) -> usize {
        let head = 2 * self.shape.head_bytes();
        let (layers, tokens) = (self.shape.layers as usize, self.tokens.len());
        let before = (shard.start - self.share.held.start) as usize * layers * tokens * head;
        before + (layer as usize * tokens + (token - self.tokens.start) as usize) * shard.len() * head
    }

    /// Byte ranges of a span, which lies within one shard; none when it is not covered.
    fn pieces(&self, span: &KvSpan) -> io::Result<Vec<Range<usize>>> {
        let inside = span.tokens.start >= self.tokens.start && span.tokens.end <= self.tokens.end;
        let holds = |shard: &Range<u32>| shard.start <= span.heads.start && span.heads.end <= shard.end;
        let Some(shard) = self.share.shards().find(holds) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if !inside || span.layers.end > self.shape.layers {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let local = KvShape { kv_heads: shard.len() as u32, ..self.shape.clone() };
        let parts = local.row_parts(&(span.heads.start - shard.start..span.heads.end - shard.start));
        let mut pieces = Vec::new();
        for layer in span.layers.clone() {
            let mut token = span.tokens.start;
            while token < span.tokens.end {
                let at = self.at(&shard, layer, token);
                let page_end = (token / self.shape.page_tokens + 1) * self.shape.page_tokens;
                let whole = parts.len() == 1;
                let end = if whole { page_end.min(span.tokens.end) } else { token + 1 };
                let rows = |part: &Range<usize>| {
                    at + part.start..at + part.end + (end - token - 1) as usize * local.row_bytes()
                };
                pieces.extend(parts.iter().map(rows));
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
        let bytes = self.bytes.read_recursive();
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
        let mut bytes = self.bytes.write();
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
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: Duration::from_secs(60),
    };
    HandoffAsk {
        id: handoff_id(leg),
        request,
        prompt_tokens: tokens,
        have,
        sample: vec![0],
        deadline: Duration::from_secs(60),
        from_cache: false,
        holder: None,
    }
}

/// A right header for a span.
pub fn header(shape: &KvShape, seq: u32, span: KvSpan) -> FrameHeader {
    FrameHeader { handoff: handoff_id(0), seq, bytes: shape.span_bytes(&span) as u32, span }
}

/// TCP, not measured.
pub fn path() -> PathReport {
    let tried = Tried { transport: TransportKind::Tcp, outcome: Ok(None) };
    PathReport { transport: TransportKind::Tcp, tried: vec![tried], wanted: [Wanted::Auto; 2] }
}
