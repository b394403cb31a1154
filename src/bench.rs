//! `baton bench`: the commands behind BENCHMARKS.md. Ratios are taken in one
//! run, pairs interleaved, medians shown with every run beside them.

pub mod budgets;
#[cfg(feature = "cuda")]
pub mod card;
pub mod client;
mod cluster;
pub mod engine;
pub mod flip;
mod foretold;
pub mod front;
pub mod grammar;
pub mod handoff;
pub mod http;
mod load;
pub mod overload;
pub mod prefix_index;
mod process;
pub mod routing;
pub mod row;
pub mod serve;
pub mod server;
pub mod simulated;
pub mod slo;
pub mod start;
pub mod transfer;

pub use cluster::Ratio;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use baton_kv_transfer::transport::Checksum;

use crate::{args, terminal::say};

/// What `bench check` moves: blocks of 1 MiB, 64 at once.
const BLOCKS: (usize, usize) = (1 << 20, 64);

/// A shape is a directory, or a name in the repository's shapes.
pub(crate) fn shape_path(shape: &Path) -> PathBuf {
    if shape.is_dir() { shape.to_owned() } else { Path::new("shapes").join(shape) }
}

/// The middle of a few runs.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `median [all runs]`
pub(crate) fn shown(values: &[f64]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
    format!("{:.1} [{}]", median(values), all.join(", "))
}

/// Every bench once; fails when a mark of BENCHMARKS.md is missed.
///
/// # Errors
/// When a bench cannot run or a mark is missed.
pub fn check(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let engine = engine::measure(&args::Settings::default(), 3)?;
    let tcp = transfer::row("tcp", Checksum::Crc32c, BLOCKS, &args::BenchTransfer::default())?;
    let shm = transfer::row("shm", Checksum::Crc32c, BLOCKS, &args::BenchTransfer::default())?;
    let handoff = runtime.block_on(handoff::measure(&args::BenchHandoff {
        prompt: vec![512],
        runs: 3,
        ..args::BenchHandoff::default()
    }))?;
    let start = start::measure(&args::BenchStart { runs: 5 })?;
    let eight = args::BenchServer { settings: args::Settings::default(), concurrency: vec![8], runs: 5 };
    let server = server::measure(&eight)?;
    let marks = [
        ("prefill 512 over candle's dense f32 matmul", engine.prefill_over_candle, 1.0),
        ("tcp frames over a plain tcp stream that never sleeps", tcp.over_stream, 0.5),
        ("shm frames over copying through shared memory", shm.over_shared, 0.5),
        ("time to first token that is not exposed transfer, 512 tokens", 1.0 - handoff.exposed_share, 0.9),
        ("seconds allowed for start over seconds taken", 1.0 / start.median_seconds, 1.0),
        ("server over its engine, 8 clients", median(&server.over_engine), 0.9),
    ];
    let mut missed = 0;
    for (what, found, wanted) in marks {
        let verdict = if found >= wanted { "ok" } else { "MISSED" };
        missed += usize::from(found < wanted);
        say(format_args!("{verdict:>6}  {what}: {found:.2}, at least {wanted:.2}"));
    }
    ensure!(missed == 0, "{missed} marks missed");
    Ok(())
}
