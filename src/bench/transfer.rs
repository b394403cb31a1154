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

use anyhow::{Context, Result, bail, ensure};
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
        return peer::serve(cards(args)?.map(|(_, to)| to));
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
    let cards = cards(args)?;
    let mut peer = Peer::start(&args.cards)?;
    let memory = Memory::new(cards.map(|(from, _)| from))?;
    let frames = Road::Frames(known.as_str().to_owned());
    if let Some(cards) = cards {
        return card_row((&job(frames), cards), &mut peer, &memory, args.runs);
    }
    let roads = [frames, Road::Stream, Road::Shared, Road::Copy];
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
    let (at, cpu) = (times(&runs[0]), median(&runs[0].iter().map(Run::cpu_per_gb).collect::<Vec<_>>()));
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

/// The cards of both sides.
fn cards(args: &args::BenchTransfer) -> Result<Option<(usize, usize)>> {
    ensure!(args.cards.is_empty() || cfg!(feature = "cuda"), "--cards needs a build with `--features cuda`");
    match args.cards[..] {
        [] => Ok(None),
        [from, to] => Ok(Some((from, to))),
        _ => bail!("--cards are two, the sender's and the receiver's"),
    }
}

/// One row between pages on cards: frames and copying from one card to the other take turns.
fn card_row(
    (job, cards): (&Job, (usize, usize)),
    peer: &mut Peer,
    memory: &Memory,
    runs: usize,
) -> Result<Measured> {
    let copies = Job { road: Road::Copy, ..job.clone() };
    let (mut frames, mut copied) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        frames.push(peer.run(memory, job)?);
        copied.push(road::copy_between(cards, &copies)?);
    }
    let rates = |runs: &[Run]| runs.iter().map(Run::rate).collect::<Vec<_>>();
    let (over, copy) = (rates(&frames), rates(&copied));
    let share = median(&over.iter().zip(&copy).map(|(frames, copy)| frames / copy).collect::<Vec<_>>());
    let (at, cpu) = (times(&frames), median(&frames.iter().map(Run::cpu_per_gb).collect::<Vec<_>>()));
    say(format_args!(
        "{:>6} KiB x {:<2} {} | round p50 {:.1} us, p99 {:.1} us | {cpu:.3} CPU s/GB | copy from card {} to {} {:.1} | over copy {share:.2}",
        job.block >> 10,
        job.at_once,
        shown(&over),
        at(0.5),
        at(0.99),
        cards.0,
        cards.1,
        median(&copy)
    ));
    Ok(Measured { over_stream: f64::NAN, over_shared: share })
}

/// Microseconds of a round that this share of all rounds stays below.
fn times(runs: &[Run]) -> impl Fn(f64) -> f64 {
    let mut times: Vec<Duration> = runs.iter().flat_map(|run| run.rounds.iter().copied()).collect();
    times.sort_unstable();
    move |share| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
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
