//! A block's way between two processes: as frames over a transport, as a plain
//! TCP stream, copied through shared memory, or copied within one process. Each way moves the same bytes out
//! of 64 MiB and into 64 MiB.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use baton_engine::kv::{Hold, KvPool, KvStore, PageSpan, PoolConfig};
#[cfg(feature = "cuda")]
use baton_kernels::cuda::{Gpu, Region, join};
use baton_kv_transfer::{
    TransferConfig, TransportKind, Wanted,
    handoff::plan::Cut,
    metrics::Side,
    transport::{
        Checksum, FrameReceiver, FrameSender, Link, Placement,
        offer::{Listening, Terms, Transports},
    },
};
use baton_protocol::{
    FrameHeader, HandoffId, KvDtype, KvShape, KvSink, KvSource, KvSpan, RequestId, SessionId, wire::Path,
};
use baton_trust::Trust;
use serde::{Deserialize, Serialize};

use super::Run;

/// Sixteen layers of Llama-3.1-8B's KV in bf16: a row has 4 KiB, a piece of memory (a page's layer) 64.
const SHAPE: KvShape =
    KvShape { layers: 16, kv_heads: 8, head_dim: 128, dtype: KvDtype::Bf16, page_tokens: 16 };
const TOKENS: u32 = 1024;

/// Memory that blocks come from, and as much where they land.
pub const POOL_BYTES: usize = 64 << 20;

/// Smallest block: a row.
pub const BLOCK_STEP: usize = 4 << 10;

/// What answers a round: a frame of four bytes.
const ANSWER: KvShape = KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::Bf16, page_tokens: 1 };

/// One run, as both processes know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// How.
    pub road: Road,
    /// crc32c, or nothing.
    pub checksum: bool,
    /// Bytes.
    pub block: usize,
    /// Blocks of a round.
    pub at_once: usize,
    /// Rounds that count; one before them does not.
    pub rounds: usize,
}

/// How blocks travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Road {
    /// Over the transport of that name.
    Frames(String),
    /// Written to a socket and read from it, nobody ever sleeping.
    Stream,
    /// Copied into memory that both processes see and out of it, nobody ever sleeping.
    Shared,
    /// From memory to memory of one process.
    Copy,
}

/// Pages of one side, or plain memory of the same size.
pub struct Memory {
    /// Where pages are on one.
    pub card: Option<usize>,
    pages: Arc<PageSpan>,
    /// For streams and copies.
    pub plain: Vec<u8>,
}

/// Both directions of one session.
pub struct Ends {
    sender: Link<dyn FrameSender>,
    receiver: Link<dyn FrameReceiver>,
    answer: Arc<PageSpan>,
}

/// Blocks that the pool divides into.
pub fn fits(block: usize) -> bool {
    block.is_power_of_two() && (BLOCK_STEP..=POOL_BYTES).contains(&block)
}

/// Processor time of this process so far.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn pages(shape: &KvShape, tokens: u32, card: Option<usize>) -> Result<PageSpan> {
    let count = shape.pages_for(tokens as usize);
    let config = PoolConfig {
        pages: count,
        max_promised: count,
        max_prefill: count,
        max_decode: count,
        zeroes: false,
    };
    let pool = match card {
        None => KvPool::new(shape.clone(), config),
        Some(card) => KvPool::over(on_card(card, shape, count)?, config),
    };
    let pages = pool.allocate(count).context("the pool is empty")?;
    let pages = pages.into_iter().map(|page| page.into_hold(Hold::Receiving)).collect();
    Ok(PageSpan::new(pool, pages, 0, tokens))
}

#[cfg(feature = "cuda")]
fn on_card(card: usize, shape: &KvShape, pages: usize) -> Result<Arc<dyn KvStore>> {
    Ok(baton_engine::backend::cuda::pages(&Gpu::open_any(card)?, shape.clone(), pages)?)
}

#[cfg(not(feature = "cuda"))]
fn on_card(card: usize, _: &KvShape, _: usize) -> Result<Arc<dyn KvStore>> {
    anyhow::bail!("card {card} needs a build with `--features cuda`")
}

/// Copies of a job's blocks from card to card, or on one: what the road between them carries at best.
///
/// # Errors
/// When a card has no room, or failed.
#[cfg(feature = "cuda")]
pub(super) fn copy_between((from, to): (usize, usize), job: &Job) -> Result<Run> {
    let (from, to) = (Gpu::open_any(from)?, Gpu::open_any(to)?);
    if from.ordinal() != to.ordinal() {
        join(&from, &to)?;
    }
    let (source, mut target) = (Region::new(&from, POOL_BYTES)?, Region::new(&to, POOL_BYTES)?);
    let stream = to.beside()?;
    let mut place = 0;
    Run::of(job.rounds, job.bytes(), || {
        for _ in 0..job.at_once {
            place = (place + job.block) % POOL_BYTES;
            target.copy_from(&stream, place, &source, job.block)?;
        }
        Ok(stream.synchronize()?)
    })
}

/// As with the feature.
///
/// # Errors
/// Always: there are no cards.
#[cfg(not(feature = "cuda"))]
pub(super) fn copy_between(_: (usize, usize), _: &Job) -> Result<Run> {
    anyhow::bail!("cards need a build with `--features cuda`")
}

/// Frames of the block at `place`, counted round and round.
fn frames(block: usize, place: usize, card: Option<usize>) -> Vec<KvSpan> {
    let layer_bytes = SHAPE.row_bytes() * TOKENS as usize;
    let at = place * block % POOL_BYTES;
    let first = (at / layer_bytes) as u32;
    let token = (at % layer_bytes / SHAPE.row_bytes()) as u32;
    let tokens = token..token + (block.min(layer_bytes) / SHAPE.row_bytes()) as u32;
    let layers = first..first + block.div_ceil(layer_bytes) as u32;
    // As sessions cut them.
    let frame_bytes = if card.is_some() { 4 << 20 } else { 1 << 20 };
    let cut = Cut { shape: SHAPE, heads: vec![0..SHAPE.kv_heads], frame_bytes };
    cut.frames(&layers, &tokens)
}

fn header(shape: &KvShape, seq: u32, span: KvSpan) -> FrameHeader {
    FrameHeader {
        handoff: HandoffId { request: RequestId(1), attempt: 0, leg: 0 },
        seq,
        bytes: shape.span_bytes(&span) as u32,
        span,
    }
}

// === impl Job ===

impl Job {
    fn checksum(&self) -> Checksum {
        if self.checksum { Checksum::Crc32c } else { Checksum::None }
    }

    /// Bytes of a round.
    pub fn bytes(&self) -> usize {
        self.block * self.at_once
    }

    fn config(name: &str, card: Option<usize>) -> Result<TransferConfig> {
        let kind = TransportKind::named(name).with_context(|| format!("unknown transport {name:?}"))?;
        // Two cards may take as long to join as NCCL wants.
        let connect_timeout_ms = if card.is_some() { 60_000 } else { 3_000 };
        let transport = Wanted::Only(kind);
        Ok(TransferConfig { transport, device: card, connect_timeout_ms, ..TransferConfig::default() })
    }

    /// What both ends of a path know.
    pub fn terms(&self, name: &str, (secret, card): ([u8; 32], Option<usize>)) -> Result<Terms> {
        let config = Self::config(name, card)?;
        Ok(Terms { session: SessionId(1), secret, checksum: self.checksum(), config })
    }

    /// Makes a path; where it is, and the transports that keep it there.
    pub async fn listen(name: &str, terms: &Terms) -> Result<(Transports, String, Listening)> {
        let kind = TransportKind::named(name).context("unknown transport")?;
        let transports = Transports::new(&terms.config, &Trust::none(), Side::Sending)?;
        let (mut paths, mut listening) = transports.listen(&[kind], terms).await;
        let path = paths.pop().context("no path")?;
        ensure!(path.failed.is_empty(), "{name}: {}", path.failed);
        Ok((transports, path.addr, listening.pop().context("no path")?))
    }

    /// Goes to the peer's path.
    pub async fn connect(name: &str, terms: &Terms, addr: String) -> Result<Link<dyn FrameReceiver>> {
        let transports = Transports::new(&terms.config, &Trust::none(), Side::Receiving)?;
        let path = Path { kind: name.to_owned(), addr, failed: String::new() };
        Ok(transports.connect(&path, terms).await?)
    }
}

// === impl Memory ===

impl Memory {
    /// All of it touched.
    ///
    /// # Errors
    /// When the card has no room.
    pub fn new(card: Option<usize>) -> Result<Self> {
        let pages = pages(&SHAPE, TOKENS, card)?;
        for block in 0..16 {
            let span = &frames(POOL_BYTES / 16, block, card);
            for span in span {
                pages.write(span, &mut |pieces| {
                    pieces.iter_mut().for_each(|piece| piece.fill(block as u8 + 1));
                    Ok(())
                })?;
            }
        }
        Ok(Self { card, pages: Arc::new(pages), plain: vec![1; POOL_BYTES] })
    }
}

// === impl Ends ===

impl Ends {
    /// Both directions are open.
    pub fn new(
        (sender, receiver): (Link<dyn FrameSender>, Link<dyn FrameReceiver>),
        card: Option<usize>,
    ) -> Result<Self> {
        Ok(Self { sender, receiver, answer: Arc::new(pages(&ANSWER, 1, card)?) })
    }

    /// A round of the sending process, whose blocks begin at `place`.
    pub fn post(&mut self, memory: &Memory, job: &Job, place: usize) -> Result<()> {
        let source: Arc<dyn KvSource> = memory.pages.clone();
        let spans = (place..place + job.at_once).flat_map(|place| frames(job.block, place, memory.card));
        let mut frames = (0..).zip(spans).map(|(seq, span)| header(&SHAPE, seq, span));
        let (path, mut begun) = (&mut self.sender.end, VecDeque::new());
        // As a session sends them.
        loop {
            while begun.len() <= path.ahead()
                && let Some(header) = frames.next()
            {
                path.begin(&header, &source)?;
                begun.push_back(header);
            }
            let Some(header) = begun.pop_front() else { break };
            path.send(&header, &source, None)?;
        }
        let answer = self.receiver.end.recv(&mut |_| Placement::Discard)?;
        ensure!(answer.intact, "the answer arrived damaged");
        Ok(())
    }

    /// A round of the receiving process.
    pub fn take(&mut self, memory: &Memory, job: &Job) -> Result<()> {
        let sink: Arc<dyn KvSink> = memory.pages.clone();
        let count = frames(job.block, 0, memory.card).len() * job.at_once;
        for _ in 0..count {
            let received = self.receiver.end.recv(&mut |_| Placement::Land(sink.clone()))?;
            ensure!(received.intact, "a frame arrived damaged");
        }
        let (source, span): (Arc<dyn KvSource>, _) = (self.answer.clone(), ANSWER.span(0..1, 0..1));
        self.sender.end.send(&header(&ANSWER, 0, span), &source, None)?;
        Ok(())
    }
}

/// Writes all bytes, trying again at once where the socket has no room.
pub fn write_spinning(socket: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `bytes`, trying again at once where the socket has none.
pub fn read_spinning(socket: &mut TcpStream, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
