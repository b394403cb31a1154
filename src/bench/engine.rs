//! Prefill and decode rates of the CPU backend alone, beside what candle's
//! dense f32 matmul would allow on the same machine in the same run.

use std::{path::Path, time::Instant};

use anyhow::Result;
use baton_engine::{
    backend::Backend,
    batch::{Batch, BatchSequence},
    kv::PageId,
};
use candle_core::{Device, Tensor};

use super::{median, shown};
use crate::{args, compute::Compute, config::ClusterConfig, terminal::say};

/// What came out.
pub struct Measured {
    /// Our prefill rate at 512 tokens over the rate that candle's f32 GEMMs alone would allow.
    pub prefill_over_candle: f64,
}

/// Prompt tokens of the prefill rows.
const PROMPTS: [usize; 2] = [512, 2048];
/// Streams of the decode rows.
const STREAMS: [usize; 3] = [1, 8, 32];
/// Context of the decode rows, and tokens generated after it.
const CONTEXT: usize = 128;
const GENERATED: usize = 32;

/// Prints the table.
///
/// # Errors
/// When the model is not on this machine.
pub fn run(args: &args::BenchEngine) -> Result<()> {
    match &args.shape {
        Some(shape) => on_card(args, shape),
        None => measure(&args.settings, args.runs).map(drop),
    }
}

#[cfg(feature = "cuda")]
fn on_card(args: &args::BenchEngine, shape: &Path) -> Result<()> {
    super::card::run(args, &super::shape_path(shape))
}

#[cfg(not(feature = "cuda"))]
fn on_card(_: &args::BenchEngine, _: &Path) -> Result<()> {
    anyhow::bail!("--shape is measured on a card, which needs a baton built with `--features cuda`")
}

/// Runs every row a few times.
///
/// # Errors
/// When the model is not on this machine, or a step fails.
pub fn measure(settings: &args::Settings, runs: usize) -> Result<Measured> {
    let config = ClusterConfig::load(settings)?;
    config.make_model_available()?;
    let compute = Compute::load(&config)?;
    let mut backend = compute.backend(&config.engine)?;
    let chunk = config.engine.scheduler.batch_tokens(&*backend);
    let runs = runs.max(1);
    let mut over_candle = Vec::new();
    for prompt in PROMPTS {
        let (mut ours, mut candles) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(prefill(&mut *backend, prompt, chunk)?);
            candles.push(candle_bound(&compute, prompt.min(512))?);
        }
        say(format_args!(
            "prefill {prompt:>5}: {} tokens/s; candle's f32 matmuls alone would allow {}",
            shown(&ours),
            shown(&candles)
        ));
        if prompt == 512 {
            over_candle = ours.iter().zip(&candles).map(|(ours, candle)| ours / candle).collect();
        }
    }
    for streams in STREAMS {
        let rates: Vec<f64> = (0..runs).map(|_| decode(&mut *backend, streams)).collect::<Result<_>>()?;
        say(format_args!("decode {streams:>2} streams: {} tokens/s", shown(&rates)));
    }
    Ok(Measured { prefill_over_candle: median(&over_candle) })
}

/// Sequences of plain tokens, each on pages of its own.
pub(super) struct Load {
    pages: Vec<Vec<PageId>>,
    tokens: Vec<Vec<u32>>,
}

impl Load {
    pub(super) fn new(backend: &mut dyn Backend, sequences: usize, tokens: usize) -> Result<Self> {
        let pages = backend.kv_shape().pages_for(tokens) as u32;
        let all = |i: usize| (i as u32 * pages..(i as u32 + 1) * pages).map(PageId).collect();
        let text = |i: usize| (0..tokens).map(|t| (100 + (t * 37 + i * 101) % 40_000) as u32).collect();
        backend.allocate(pages as usize * sequences)?;
        Ok(Self { pages: (0..sequences).map(all).collect(), tokens: (0..sequences).map(text).collect() })
    }

    /// Computes `[start, end)` of every sequence in one step.
    pub(super) fn step(&self, backend: &mut dyn Backend, start: usize, end: usize) -> Result<()> {
        let sequence = |(pages, tokens)| BatchSequence { tokens, start, end, pages, wants_logits: true };
        let pairs = self.pages.iter().map(Vec::as_slice).zip(self.tokens.iter().map(Vec::as_slice));
        let batch = Batch::new(pairs.map(sequence).collect());
        backend.forward(&batch, &mut |_| {})?;
        Ok(())
    }
}

/// Prompt tokens a second, in chunks as the scheduler would make them.
fn prefill(backend: &mut dyn Backend, prompt: usize, chunk: usize) -> Result<f64> {
    let load = Load::new(backend, 1, prompt)?;
    let started = Instant::now();
    for start in (0..prompt).step_by(chunk) {
        load.step(backend, start, (start + chunk).min(prompt))?;
    }
    Ok(prompt as f64 / started.elapsed().as_secs_f64())
}

/// Generated tokens a second over all streams.
fn decode(backend: &mut dyn Backend, streams: usize) -> Result<f64> {
    let load = Load::new(backend, streams, CONTEXT + GENERATED)?;
    load.step(backend, 0, CONTEXT)?;
    let started = Instant::now();
    for position in CONTEXT..CONTEXT + GENERATED {
        load.step(backend, position, position + 1)?;
    }
    Ok((streams * GENERATED) as f64 / started.elapsed().as_secs_f64())
}

/// Prompt tokens a second if a prompt of `rows` tokens were nothing but candle's f32 matmuls of this model.
fn candle_bound(compute: &Compute, rows: usize) -> Result<f64> {
    let Some(shape) = compute.model_config() else { return Ok(f64::NAN) };
    let (heads, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let matrices = [
        (shape.hidden, heads + 2 * kv),
        (heads, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    ];
    let mut seconds = 0.0;
    for (inner, outer) in matrices {
        let a = Tensor::rand(-1f32, 1f32, (rows, inner), &Device::Cpu)?;
        let b = Tensor::rand(-1f32, 1f32, (outer, inner), &Device::Cpu)?.t()?;
        a.matmul(&b)?;
        let started = Instant::now();
        for _ in 0..4 {
            a.matmul(&b)?;
        }
        seconds += started.elapsed().as_secs_f64() / 4.0 * shape.layers as f64;
    }
    Ok(rows as f64 / seconds)
}
