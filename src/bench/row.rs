//! One row of the engine's table, once, as a number.

use std::time::Instant;

use anyhow::Result;
use baton_engine::backend::Backend;

use super::engine::Load;
use crate::{
    args::{BenchRow, RowKind},
    compute::Compute,
    config::ClusterConfig,
    terminal::say,
};

/// Context of the decode rows, and tokens generated after it.
const CONTEXT: usize = 128;
const GENERATED: usize = 64;

/// Prints tokens a second.
///
/// # Errors
/// When the model is not on this machine, or a step fails.
pub fn run(args: &BenchRow) -> Result<()> {
    let config = ClusterConfig::load(&args.settings)?;
    config.make_model_available()?;
    let mut backend = Compute::load(&config)?.backend(&config.engine)?;
    let chunk = config.engine.scheduler.batch_tokens(&*backend);
    Load::new(&mut *backend, 1, CONTEXT)?.step(&mut *backend, 0, CONTEXT)?;
    let (tokens, seconds) = match args.kind {
        RowKind::Prefill => prefill(&mut *backend, args.size, chunk)?,
        RowKind::Decode => decode(&mut *backend, args.size)?,
    };
    say(format_args!("{:.2}", tokens as f64 / seconds));
    Ok(())
}

fn prefill(backend: &mut dyn Backend, prompt: usize, chunk: usize) -> Result<(usize, f64)> {
    let load = Load::new(backend, 1, prompt)?;
    let started = Instant::now();
    for start in (0..prompt).step_by(chunk) {
        load.step(backend, start, (start + chunk).min(prompt))?;
    }
    Ok((prompt, started.elapsed().as_secs_f64()))
}

fn decode(backend: &mut dyn Backend, streams: usize) -> Result<(usize, f64)> {
    let load = Load::new(backend, streams, CONTEXT + GENERATED)?;
    load.step(backend, 0, CONTEXT)?;
    let started = Instant::now();
    for position in CONTEXT..CONTEXT + GENERATED {
        load.step(backend, position, position + 1)?;
    }
    Ok((streams * GENERATED, started.elapsed().as_secs_f64()))
}
