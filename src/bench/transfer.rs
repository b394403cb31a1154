//! KV frames over TCP, pages to pages with checksums, beside a plain TCP
//! stream of the same bytes; pairs interleaved in one run.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use baton_engine::kv::{Hold, KvPool, PageSpan, PoolConfig};
use baton_kv_transfer::transport::{FrameSender, Placement, tcp};
use baton_protocol::{FrameHeader, HandoffId, KvDtype, KvShape, KvSink, KvSource, KvSpan, RequestId};

use super::{median, shown};
use crate::{args, terminal::say};

/// What came out.
pub struct Measured {
    /// Frames over plain stream, median of the pairs.
    pub over_plain: f64,
}

/// SmolLM2-135M's KV in bf16.
const SHAPE: KvShape =
    KvShape { layers: 30, kv_heads: 3, head_dim: 64, dtype: KvDtype::Bf16, page_tokens: 16 };
/// Tokens of one handoff: 1,024 are 23.6 MB.
const TOKENS: u32 = 1024;
/// Layers of a frame: five are 3.9 MB.
const FRAME_LAYERS: u32 = 5;
const PLAIN_BLOCK: usize = 1 << 20;
const STALL: Duration = Duration::from_secs(10);

/// Prints the table.
///
/// # Errors
/// When loopback sockets fail.
pub fn run(args: &args::BenchTransfer) -> Result<()> {
    measure(args).map(drop)
}

/// Moves the bytes a few times each way.
///
/// # Errors
/// When loopback sockets fail.
pub fn measure(args: &args::BenchTransfer) -> Result<Measured> {
    let handoff_bytes = SHAPE.token_bytes() * TOKENS as usize;
    let handoffs = (args.mib << 20).div_ceil(handoff_bytes);
    let (mut framed, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..args.runs.max(1) {
        framed.push(frames(handoffs)?);
        plain.push(stream(handoffs * handoff_bytes)?);
    }
    let ratios: Vec<f64> = framed.iter().zip(&plain).map(|(framed, plain)| framed / plain).collect();
    say(format_args!(
        "tcp handoff frames, pages to pages, crc32c on both sides: {} MB/s\nplain tcp stream, one connection:                             {} MB/s\nratio of pairs: {:.2}",
        shown(&framed),
        shown(&plain),
        median(&ratios)
    ));
    Ok(Measured { over_plain: median(&ratios) })
}

/// A connected pair on loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// Pages for one handoff, in a pool of their own.
fn span(hold: Hold) -> Result<PageSpan> {
    let pages = SHAPE.pages_for(TOKENS as usize);
    let config = PoolConfig { pages, max_promised: pages, max_prefill: pages, max_decode: pages };
    let pool = KvPool::new(SHAPE, config);
    let pages = pool.allocate(pages).context("the pool is empty")?;
    let pages = pages.into_iter().map(|page| page.into_hold(hold)).collect();
    Ok(PageSpan::new(pool, pages, 0, TOKENS))
}

/// MB/s of `handoffs` handoffs, frame by frame.
fn frames(handoffs: usize) -> Result<f64> {
    let (near, far) = pair()?;
    let source: Arc<dyn KvSource> = Arc::new(span(Hold::Sending)?);
    let sink: Arc<dyn KvSink> = Arc::new(span(Hold::Receiving)?);
    let mut sender = tcp::sender(near, STALL)?.end;
    let mut receiver = tcp::receiver(far, STALL)?.end;
    let per_handoff = SHAPE.layers.div_ceil(FRAME_LAYERS) as usize;
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let receiving = scope.spawn(move || -> Result<()> {
            for _ in 0..handoffs * per_handoff {
                let received = receiver.recv(&mut |_| Placement::Land(Arc::clone(&sink)))?;
                received.intact.then_some(()).context("a frame arrived damaged")?;
            }
            Ok(())
        });
        for handoff in 0..handoffs {
            send_all(&mut *sender, &source, handoff as u32)?;
        }
        receiving.join().map_err(|_| anyhow!("the receiver panicked"))?
    })?;
    Ok((handoffs * SHAPE.token_bytes() * TOKENS as usize) as f64 / 1e6 / started.elapsed().as_secs_f64())
}

fn send_all(sender: &mut dyn FrameSender, source: &Arc<dyn KvSource>, leg: u32) -> Result<()> {
    for (seq, first) in (0..SHAPE.layers).step_by(FRAME_LAYERS as usize).enumerate() {
        let layers: Range<u32> = first..(first + FRAME_LAYERS).min(SHAPE.layers);
        let span = KvSpan { layers, tokens: 0..TOKENS };
        let crc = baton_kv_transfer::transport::checksum(&**source, &span)?;
        let header = FrameHeader {
            handoff: HandoffId { request: RequestId(1), attempt: 0, leg },
            seq: seq as u32,
            heads: (0, SHAPE.kv_heads as u16),
            bytes: SHAPE.span_bytes(&span) as u32,
            crc,
            span,
        };
        sender.send(&header, source)?;
    }
    Ok(())
}

/// MB/s of a plain stream of as many bytes, read to a buffer and dropped.
fn stream(bytes: usize) -> Result<f64> {
    let (mut near, mut far) = pair()?;
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let receiving = scope.spawn(move || -> io::Result<()> {
            let mut block = vec![0; PLAIN_BLOCK];
            let mut left = bytes;
            while left > 0 {
                let size = left.min(PLAIN_BLOCK);
                far.read_exact(&mut block[..size])?;
                left -= size;
            }
            Ok(())
        });
        let block = vec![1; PLAIN_BLOCK];
        let mut left = bytes;
        while left > 0 {
            let size = left.min(PLAIN_BLOCK);
            near.write_all(&block[..size])?;
            left -= size;
        }
        receiving.join().map_err(|_| anyhow!("the receiver panicked"))??;
        Ok(())
    })?;
    Ok(bytes as f64 / 1e6 / started.elapsed().as_secs_f64())
}
