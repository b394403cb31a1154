//! KV frames between two processes, pages to pages, beside what the machine
//! allows in the same run: a plain TCP stream, copying through shared memory,
//! nobody ever sleeping, and copying from memory to memory of one process. Runs
//! are interleaved, ratios are taken of each pair.
//!
//! - [`peer`]: the other process, which receives
//! - [`road`]: a block's way in each form; [`shared`]: that through shared memory

pub mod peer;
pub mod road;
pub mod shared;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use baton_kv_transfer::{TransportKind, transport::Checksum};

use self::{
    peer::Peer,
    road::{BLOCK_STEP, Job, Memory, POOL_BYTES, Road},
};
use super::{median, shown};
use crate::{args, terminal::say};

/// What came out of one row, medians of the pairs.
pub struct Measured {
    /// Frames over a plain stream.
    pub over_stream: f64,
    /// Frames over copying through shared memory.
    pub over_shared: f64,
}

/// Rounds of one run, on this side.
struct Run {
    bytes: usize,
    seconds: f64,
    cpu_seconds: f64,
    rounds: Vec<Duration>,
}

/// Prints the tables.
///
/// # Errors
/// When a transport is not in this build, or a path breaks.
pub fn run(args: &args::BenchTransfer) -> Result<()> {
    if args.peer {
        return peer::serve();
    }
    say(format_args!(
        "GB/s of {} runs; a round posts blocks and ends when the other process says that all have landed",
        args.runs
    ));
    for name in &args.transport {
        for checksum in [Checksum::Crc32c, Checksum::None] {
            say(format_args!("\n{name}, checksum {}", checksum.as_str()));
            for &block in &args.block {
                for &at_once in &args.at_once {
                    row(name, checksum, (block, at_once), args)?;
                }
            }
        }
    }
    Ok(())
}

/// One row of the table: frames and the yardsticks take turns.
///
/// # Errors
/// When a transport is not in this build, or a path breaks.
pub fn row(
    transport: &str,
    checksum: Checksum,
    (block, at_once): (usize, usize),
    args: &args::BenchTransfer,
) -> Result<Measured> {
    let known =
        TransportKind::named(transport).with_context(|| format!("unknown transport {transport:?}"))?;
    ensure!(
        road::fits(block),
        "blocks are powers of two from {BLOCK_STEP} to {POOL_BYTES} bytes, not {block}"
    );
    let rounds = (args.mib << 20).div_ceil(block * at_once).max(2);
    let job = |road| Job { road, checksum: checksum == Checksum::Crc32c, block, at_once, rounds };
    let mut peer = Peer::start()?;
    let memory = Memory::new()?;
    let roads = [Road::Frames(known.as_str().to_owned()), Road::Stream, Road::Shared, Road::Copy];
    let mut runs: [Vec<Run>; 4] = Default::default();
    for _ in 0..args.runs.max(1) {
        for (road, runs) in roads.iter().zip(&mut runs) {
            runs.push(peer.run(&memory, &job(road.clone()))?);
        }
    }
    let [frames, stream, shared, copy] =
        runs.each_ref().map(|runs| runs.iter().map(Run::rate).collect::<Vec<_>>());
    let ratio = |yardstick: &[f64]| {
        median(&frames.iter().zip(yardstick).map(|(frames, other)| frames / other).collect::<Vec<_>>())
    };
    let measured = Measured { over_stream: ratio(&stream), over_shared: ratio(&shared) };
    let mut times: Vec<Duration> = runs[0].iter().flat_map(|run| run.rounds.iter().copied()).collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let cpu = median(&runs[0].iter().map(Run::cpu_per_gb).collect::<Vec<_>>());
    say(format_args!(
        "{:>6} KiB x {at_once:<2} {} | round p50 {:.1} us, p99 {:.1} us | {cpu:.3} CPU s/GB | stream {:.2}, shared {:.2}, copy {:.2} | over stream {:.2}, over shared {:.2}, over copy {:.2}",
        block >> 10,
        shown(&frames),
        at(0.5),
        at(0.99),
        median(&stream),
        median(&shared),
        median(&copy),
        measured.over_stream,
        measured.over_shared,
        ratio(&copy)
    ));
    Ok(measured)
}

// === impl Run ===

impl Run {
    /// Times `rounds` rounds; the peer's processor time is added by the caller.
    fn of(rounds: usize, bytes: usize, mut round: impl FnMut() -> Result<()>) -> Result<Self> {
        // One round nobody counts: first touches, first wake-ups.
        round()?;
        let (cpu, begun) = (road::cpu_seconds(), Instant::now());
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let begun = Instant::now();
            round()?;
            times.push(begun.elapsed());
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Self { bytes: bytes * rounds, seconds, cpu_seconds: road::cpu_seconds() - cpu, rounds: times })
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }

    fn cpu_per_gb(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / 1e9)
    }
}
