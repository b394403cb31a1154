//! A model's shape on a card: times of steps beside what the card's own copy
//! and matmul rates, measured in the same run, would allow.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use baton_engine::{
    ChoiceSpec, Engine, EngineConfig, Goal, SequenceEvent, SequenceSpec, StartFrom, StepOutcome,
    backend::{
        Backend,
        cuda::{CudaBackend, CudaLimits, CudaModel, WeightForm},
    },
    batch::{Batch, BatchSequence, Row, pending},
    kv::PageId,
};
use baton_kernels::cuda::{
    Gemm, GemmScaled, Gpu, Scaled, ScaledMut, Weights,
    cudarc::driver::CudaSlice,
    gemm::{Sizes, Then},
    quantise::quantise,
    random::fill_uniform,
};
use baton_model::ModelConfig;
use baton_protocol::{RequestId, Sampling, Stop};

use super::median;
use crate::{args, config, terminal::say};

/// New tokens of a prefill step.
const CHUNK: usize = 8192;

/// Most sequences of the decode rows.
const SEQUENCES: usize = 256;

/// Context of the decode rows, and steps after it.
const CONTEXT: usize = 1024;
const STEPS: usize = 64;

/// Size of the products that show a card's rate.
const SIZE: usize = 8192;

/// What the card does at best.
struct Rates {
    /// Bytes a second of a copy on the card, read and written.
    copy: f64,
    /// Operations a second of a large product in the dtype of the model.
    product: f64,
    /// In the form that layers have.
    layer_product: f64,
}

/// A model of a shape, and what a step of it costs at least.
struct Bench {
    backend: CudaBackend,
    config: ModelConfig,
    weight_bytes: usize,
    rates: Rates,
    runs: usize,
}

/// Prints the table.
///
/// # Errors
/// When there is no card, or it cannot hold the model.
pub fn run(args: &args::BenchEngine, shape: &Path) -> Result<()> {
    let began = Instant::now();
    let config = baton_model::shape(shape).with_context(|| format!("no shape in {}", shape.display()))?;
    let gpu = Gpu::open(args.device, args.dtype.into())?;
    ensure!(args.weights != config::Weights::Int4, "a card holds weights in sixteen bits or in fp8");
    let form = WeightForm::from(args.weights);
    let model = CudaModel::random(&config, &gpu, form)?;
    let mut limits =
        CudaLimits::new(CHUNK, args.sequences.max(SEQUENCES), config.context_tokens.min(1 << 14));
    limits.kv = args.kv_dtype.into();
    limits.deterministic = args.deterministic;
    limits.cache = Some(baton_model::default_cache().join("gemm"));
    let mut backend = CudaBackend::new(Arc::clone(&model), limits)?;
    let pages = backend.pages_left().unwrap_or(0);
    let mut load = Load::new(&mut backend, 1, 128, pages)?;
    load.prefill(&mut backend)?;
    say(format_args!("card: {}", gpu.name()));
    row("start to first token (s)", began.elapsed().as_secs_f64(), None);
    let weight_bytes = model.read_bytes();
    row("kv cache (tokens)", (pages * backend.kv_shape().page_tokens as usize) as f64, None);
    let tuning = Instant::now();
    backend.allocate(1)?;
    backend.tune()?;
    row("search for algorithms (s, once a card)", tuning.elapsed().as_secs_f64(), None);
    let rates = Rates::measure(&gpu, form)?;
    row("copy (TB/s)", rates.copy / 1e12, None);
    row("product 8192^3 (TFLOP/s)", rates.product / 1e12, None);
    if form == WeightForm::Fp8 {
        row("product 8192^3 in fp8 (TFLOP/s)", rates.layer_product / 1e12, None);
    }
    let mut bench = Bench { backend, config, weight_bytes, rates, runs: args.runs.max(1) };
    bench.decode_rows()?;
    bench.prefill_rows()?;
    bench.offline(pages, args.sequences.max(1))
}

/// A line of the table: what, found, and the floor (or ceiling) beside it.
fn row(what: &str, found: f64, bound: Option<f64>) {
    match bound {
        Some(bound) => say(format_args!("{what:<44} {found:>12.2} {bound:>12.2} {:>6.2}", found / bound)),
        None => say(format_args!("{what:<44} {found:>12.2}")),
    }
}

// === impl Rates ===

impl Rates {
    fn measure(gpu: &Gpu, form: WeightForm) -> Result<Self> {
        const BYTES: usize = 2 << 30;
        const TIMES: usize = 20;
        let (from, mut to) = (gpu.zeros::<u8>(BYTES)?, gpu.zeros::<u8>(BYTES)?);
        let copy = timed(gpu, TIMES, || Ok(gpu.stream().memcpy_dtod(&from, &mut to)?))?;
        drop((from, to));
        let mut matrices = [gpu.unset(SIZE * SIZE)?, gpu.unset(SIZE * SIZE)?, gpu.unset(SIZE * SIZE)?];
        for (seed, matrix) in (1..).zip(&mut matrices) {
            fill_uniform(gpu, seed, 1.0, matrix)?;
        }
        let [a, b, mut c] = matrices;
        gpu.synchronize()?;
        let gemm = Gemm::new(gpu, None)?;
        gemm.tune(&[Sizes { n: SIZE, k: SIZE, m: SIZE }], Then::Store)?;
        let weights = Weights { data: a.as_view(), outputs: SIZE, inputs: SIZE };
        let product = timed(gpu, TIMES, || Ok(gemm.run(&weights, &b, &mut c)?))?;
        let layer = match form {
            WeightForm::Plain => product,
            WeightForm::Fp8 => {
                let scaled = |input: &CudaSlice<_>| {
                    let (mut data, mut scales) = (gpu.unset(SIZE * SIZE)?, gpu.unset(SIZE)?);
                    quantise(gpu, input, &mut ScaledMut::new(&mut data, &mut scales, SIZE))?;
                    anyhow::Ok((data, scales))
                };
                scaled_product(gpu, &[scaled(&a)?, scaled(&b)?])?
            }
        };
        let rate = |seconds| 2.0 * (SIZE as f64).powi(3) / seconds;
        Ok(Self { copy: 2.0 * BYTES as f64 / copy, product: rate(product), layer_product: rate(layer) })
    }
}

/// Seconds of a large product in fp8 of `[w, x]`, each with its scales.
fn scaled_product(gpu: &Gpu, inputs: &[(CudaSlice<u8>, CudaSlice<f32>); 2]) -> Result<f64> {
    let [w, x] = inputs.each_ref().map(|(data, scales)| Scaled::new(data, scales, SIZE));
    let mut out = gpu.unset(SIZE * SIZE)?;
    let gemm = GemmScaled::new(gpu, None)?;
    gemm.tune(&[Sizes { n: SIZE, k: SIZE, m: SIZE }], Then::Store)?;
    timed(gpu, 20, || Ok(gemm.run(&w, &x, &mut out)?))
}

/// Seconds of one `op`, over `times` of them.
fn timed(gpu: &Gpu, times: usize, mut op: impl FnMut() -> Result<()>) -> Result<f64> {
    op()?;
    gpu.synchronize()?;
    let began = Instant::now();
    for _ in 0..times {
        op()?;
    }
    gpu.synchronize()?;
    Ok(began.elapsed().as_secs_f64() / times as f64)
}

// === impl Bench ===

impl Bench {
    /// Inter-token latency: steps enqueued ahead, tokens drawn on the card.
    fn decode_rows(&mut self) -> Result<()> {
        for sequences in [1, 8, 32, 64, 128, SEQUENCES] {
            let pages = self.backend.kv_shape().pages_for(CONTEXT + 2 * STEPS) * sequences;
            let mut load = Load::new(&mut self.backend, sequences, CONTEXT, pages)?;
            load.prefill(&mut self.backend)?;
            // Records the graphs.
            load.decode(&mut self.backend, 4)?;
            let began = Instant::now();
            load.decode(&mut self.backend, STEPS)?;
            let ms = began.elapsed().as_secs_f64() * 1e3 / STEPS as f64;
            let floor = self.decode_floor(sequences, CONTEXT + STEPS / 2);
            row(&format!("itl, batch {sequences}, context {CONTEXT} (ms)"), ms, Some(floor * 1e3));
        }
        Ok(())
    }

    /// Time to the first token of one prompt, and prompt tokens a second of many.
    fn prefill_rows(&mut self) -> Result<()> {
        for prompt in [512, 2048, 8192] {
            let ms = self.prefill(1, prompt)? * 1e3;
            let floor = self.prefill_floor(prompt);
            row(&format!("prefill {prompt}, one request (ms)"), ms, Some(floor * 1e3));
            row(
                &format!("prefill {prompt}, one request (tok/s)"),
                prompt as f64 / ms * 1e3,
                Some(prompt as f64 / floor),
            );
        }
        let seconds = self.prefill(64, 1024)?;
        let floor = 1024.0 / self.prefill_floor(1024);
        row("prefill 64 x 1024 (tok/s)", 64.0 * 1024.0 / seconds, Some(floor));
        Ok(())
    }

    fn prefill(&mut self, sequences: usize, prompt: usize) -> Result<f64> {
        let pages = self.backend.kv_shape().pages_for(prompt) * sequences;
        let mut seconds = Vec::new();
        for _ in 0..=self.runs {
            let mut load = Load::new(&mut self.backend, sequences, prompt, pages)?;
            let began = Instant::now();
            load.prefill(&mut self.backend)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        // The first one warms up.
        Ok(median(&seconds[1..]))
    }

    /// Many requests through the engine, so many at a time: 768 of 128 to 896 tokens in, 256 out.
    fn offline(self, pages: usize, sequences: usize) -> Result<()> {
        const REQUESTS: usize = 768;
        const OUTPUTS: u32 = 256;
        let mut random = fastrand::Rng::with_seed(7);
        let prompts: Vec<usize> = (0..REQUESTS).map(|_| random.usize(128..=896)).collect();
        let known: usize = prompts.iter().sum();
        let prefill: f64 = prompts.iter().map(|prompt| self.prefill_floor(*prompt)).sum();
        let decode = self.decode_floor(sequences, known / REQUESTS + OUTPUTS as usize / 2);
        let steps = (REQUESTS * OUTPUTS as usize).div_ceil(sequences);
        let ceiling = (REQUESTS * OUTPUTS as usize) as f64 / (prefill + decode * steps as f64);
        let vocab = self.config.vocab as u32;
        let mut config = EngineConfig::new(pages, self.config.context_tokens);
        config.scheduler.max_batch_tokens = CHUNK;
        config.scheduler.max_sequences = sequences;
        config.scheduler.max_waiting = REQUESTS;
        // Nobody waits for single tokens.
        config.scheduler.mixed_step_ms = 0;
        let mut engine = Engine::new(Box::new(self.backend), config)?;
        let handle = engine.handle();
        let began = Instant::now();
        let specs = prompts
            .iter()
            .map(|&prompt| offline_request((0..prompt).map(|_| random.u32(..vocab)).collect(), OUTPUTS));
        let mut events = specs.map(|spec| handle.submit(spec)).collect::<Result<Vec<_>, _>>()?;
        let mut tokens = 0;
        while engine.step()? != StepOutcome::Idle {
            for events in &mut events {
                while let Ok(event) = events.try_recv() {
                    tokens += usize::from(matches!(event, SequenceEvent::Token(_)));
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        for events in &mut events {
            while let Ok(event) = events.try_recv() {
                tokens += usize::from(matches!(event, SequenceEvent::Token(_)));
            }
        }
        ensure!(tokens == REQUESTS * OUTPUTS as usize, "{tokens} tokens came back");
        row("offline, 768 requests (output tok/s)", tokens as f64 / seconds, Some(ceiling));
        row("offline, 768 requests (total tok/s)", (tokens + known) as f64 / seconds, None);
        Ok(())
    }

    /// Seconds to read weights and cache once.
    fn decode_floor(&self, sequences: usize, context: usize) -> f64 {
        let cached = sequences * context * self.backend.kv_shape().token_bytes();
        (self.weight_bytes + cached) as f64 / self.rates.copy
    }

    /// Seconds of the products of a prompt, with causal attention.
    fn prefill_floor(&self, prompt: usize) -> f64 {
        let ModelConfig { layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = self.config;
        let layer = hidden * (2 * heads + 2 * kv_heads) * head_dim + 3 * hidden * intermediate;
        let products = 2.0 * prompt as f64 * (layers * layer) as f64;
        let logits = 2.0 * (hidden * vocab) as f64;
        let attention = 2.0 * (layers * heads * head_dim) as f64 * (prompt as f64).powi(2);
        products / self.rates.layer_product + (logits + attention) / self.rates.product
    }
}

fn offline_request(tokens: Vec<u32>, outputs: u32) -> SequenceSpec {
    SequenceSpec {
        request: RequestId(u128::from(fastrand::u64(..))),
        tenant: "bench".to_owned(),
        prompt_tokens: tokens.len(),
        tokens: tokens.into(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Stop { max_tokens: outputs, min_tokens: 0, ignore_eos: true, token_ids: Vec::new() },
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        goal: Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] },
        start: StartFrom::Cold,
        deadline: None,
        itl: None,
    }
}

/// Sequences of made-up tokens, each on pages of its own.
struct Load {
    pages: Vec<Vec<PageId>>,
    tokens: Vec<Vec<u32>>,
}

// === impl Load ===

impl Load {
    fn new(backend: &mut CudaBackend, sequences: usize, prompt: usize, pages: usize) -> Result<Self> {
        let each = (pages / sequences) as u32;
        let vocab = backend.vocab_tokens() as u32;
        let mut random = fastrand::Rng::with_seed(7);
        backend.allocate(pages)?;
        Ok(Self {
            pages: (0..sequences as u32).map(|i| (i * each..(i + 1) * each).map(PageId).collect()).collect(),
            tokens: (0..sequences).map(|_| (0..prompt).map(|_| random.u32(..vocab)).collect()).collect(),
        })
    }

    /// All prompts, as many in a step as fit; each then knows its first token.
    fn prefill(&mut self, backend: &mut CudaBackend) -> Result<()> {
        let prompt = self.tokens[0].len();
        for first in (0..self.tokens.len()).step_by((CHUNK / prompt).max(1)) {
            let range = first..(first + (CHUNK / prompt).max(1)).min(self.tokens.len());
            let batch = batch(&self.tokens[range.clone()], &self.pages[range.clone()], prompt);
            let drawn = backend.draw(&batch, &mut |_| {})?;
            for (tokens, row) in self.tokens[range].iter_mut().zip(drawn.iter()) {
                let Row::Token(Some(token)) = row else { bail!("no token was drawn") };
                tokens.push(token);
            }
        }
        Ok(())
    }

    /// `steps` more tokens of each, each step enqueued before the one before has ended.
    fn decode(&mut self, backend: &mut CudaBackend, steps: usize) -> Result<()> {
        for step in 0..=steps {
            if step < steps {
                backend.enqueue(&batch(&self.tokens, &self.pages, 1))?;
                self.tokens.iter_mut().enumerate().for_each(|(row, tokens)| tokens.push(pending(row)));
            }
            if step > 0 {
                let behind = if step < steps { 2 } else { 1 };
                for (tokens, drawn) in self.tokens.iter_mut().zip(backend.collect()?) {
                    let at = tokens.len() - behind;
                    tokens[at] = drawn.context("no token was drawn")?;
                }
            }
        }
        Ok(())
    }
}

/// The last `new` tokens of each sequence.
fn batch<'a>(tokens: &'a [Vec<u32>], pages: &'a [Vec<PageId>], new: usize) -> Batch<'a> {
    let part = |(tokens, pages): (&'a Vec<u32>, &'a Vec<PageId>)| {
        let end = tokens.len();
        BatchSequence { tokens, start: end - new, end, pages, wants_logits: true }
    };
    Batch::new(tokens.iter().zip(pages).map(part).collect())
}
