//! Plain device memory as pages in a scrambled order.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::Arc,
};

use baton_kernels::cuda::{Gpu, Region};
use baton_protocol::{DeviceSpan, FrameHeader, HandoffId, KvSink, KvSource, KvSpan, RequestId};
use parking_lot::Mutex;

/// Bytes of a token in one layer, as of the Llama-3.1-8B shape.
pub const ROW: usize = 4096;
/// Tokens of a page: a piece has 256 KiB.
const PAGE_TOKENS: usize = 64;
/// All tokens: 256 MiB, more than a card's cache.
pub const TOKENS: usize = 1 << 16;

/// One layer of [`TOKENS`] tokens on a card.
pub struct Pages {
    gpu: Gpu,
    region: Mutex<Region>,
    address: u64,
    /// Which page a token's page lies in.
    order: Vec<usize>,
}

/// A word of a token's row; `seed` tells senders apart.
fn word(seed: u32, token: usize, at: usize) -> u32 {
    ((token * ROW / 4 + at) as u32 ^ seed).wrapping_mul(0x9e37_79b1).rotate_left(7) | 1
}

/// What tokens hold.
pub fn content(seed: u32, tokens: Range<usize>) -> Vec<u32> {
    tokens.flat_map(|token| (0..ROW / 4).map(move |at| word(seed, token, at))).collect()
}

impl Pages {
    /// Memory of zeros.
    pub fn empty(gpu: &Gpu) -> Arc<Self> {
        let region = Region::new(gpu, TOKENS * ROW).unwrap();
        let pages = TOKENS / PAGE_TOKENS;
        // An odd factor of a power of two gives every page once.
        let order = (0..pages).map(|page| (page * 77 + 5) % pages).collect();
        let address = region.address();
        let memory = Self { gpu: gpu.beside().unwrap(), region: Mutex::new(region), address, order };
        memory.clear();
        Arc::new(memory)
    }

    /// Memory of what a sender has.
    pub fn filled(gpu: &Gpu, seed: u32) -> Arc<Self> {
        let memory = Self::empty(gpu);
        for page in 0..TOKENS / PAGE_TOKENS {
            let words = content(seed, page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS);
            let at = memory.at(page * PAGE_TOKENS);
            memory.region.lock().write(&memory.gpu, at, bytemuck::cast_slice(&words)).unwrap();
        }
        memory
    }

    pub fn clear(&self) {
        self.region.lock().write(&self.gpu, 0, &vec![0; TOKENS * ROW]).unwrap();
    }

    fn at(&self, token: usize) -> usize {
        (self.order[token / PAGE_TOKENS] * PAGE_TOKENS + token % PAGE_TOKENS) * ROW
    }

    /// Whether tokens hold what a sender of `seed` has.
    pub fn holds(&self, seed: u32, tokens: Range<usize>) -> bool {
        self.read_all(tokens.clone()) == content(seed, tokens)
    }

    /// Whether nothing was ever written to tokens.
    pub fn is_clear(&self, tokens: Range<usize>) -> bool {
        self.read_all(tokens).iter().all(|&word| word == 0)
    }

    fn read_all(&self, tokens: Range<usize>) -> Vec<u32> {
        let mut words = vec![0_u32; tokens.len() * ROW / 4];
        let mut rest: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        for (at, len) in self.pieces(tokens) {
            let (piece, others) = rest.split_at_mut(len);
            self.region.lock().read(&self.gpu, at, piece).unwrap();
            rest = others;
        }
        words
    }

    /// Place and bytes of each piece.
    fn pieces(&self, tokens: Range<usize>) -> Vec<(usize, usize)> {
        let mut pieces = Vec::new();
        let mut token = tokens.start;
        while token < tokens.end {
            let end = ((token / PAGE_TOKENS + 1) * PAGE_TOKENS).min(tokens.end);
            pieces.push((self.at(token), (end - token) * ROW));
            token = end;
        }
        pieces
    }

    fn span(&self, span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        if span.tokens.end as usize > TOKENS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = |(at, bytes): (usize, usize)| (self.address + at as u64, bytes as u64);
        let pieces = self.pieces(span.tokens.start as usize..span.tokens.end as usize);
        Ok(Some(DeviceSpan { device: self.gpu.ordinal(), pieces: pieces.into_iter().map(place).collect() }))
    }
}

impl KvSource for Pages {
    fn read(&self, _: &KvSpan, _: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>) -> io::Result<()> {
        panic!("device memory went through the host");
    }

    fn on_device(&self, span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        self.span(span)
    }
}

impl KvSink for Pages {
    fn write(
        &self,
        _: &KvSpan,
        _: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        panic!("device memory went through the host");
    }

    fn on_device(&self, span: &KvSpan) -> io::Result<Option<DeviceSpan>> {
        self.span(span)
    }

    fn tokens(&self) -> Range<u32> {
        0..TOKENS as u32
    }

    fn quarantine(&self) {}
}

/// Pages in the machine's memory, in two pieces.
pub struct Host(pub Mutex<Vec<u8>>);

impl KvSource for Host {
    fn read(
        &self,
        _: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let bytes = self.0.lock();
        let (one, two) = bytes.split_at(bytes.len() / 2);
        use_bytes(&[IoSlice::new(one), IoSlice::new(two)])
    }
}

impl KvSink for Host {
    fn write(
        &self,
        _: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let half = bytes.len() / 2;
        let (one, two) = bytes.split_at_mut(half);
        fill(&mut [IoSliceMut::new(one), IoSliceMut::new(two)])
    }

    fn tokens(&self) -> Range<u32> {
        0..TOKENS as u32
    }

    fn quarantine(&self) {}
}

/// The `seq`th frame of `bytes` bytes; they begin again at the end of the tokens.
pub fn frame(seq: usize, bytes: usize) -> FrameHeader {
    let tokens = bytes / ROW;
    let first = (seq % (TOKENS / tokens) * tokens) as u32;
    FrameHeader {
        handoff: HandoffId { request: RequestId(7), attempt: 1, leg: 0 },
        seq: seq as u32,
        span: KvSpan { layers: 0..1, tokens: first..first + tokens as u32, heads: 0..8 },
        bytes: bytes as u32,
    }
}
