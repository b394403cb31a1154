//! One step through all layers.
//!
//! - `residual`: the residual stream, and the norms between it and the products
//! - `attention`: queries, keys and values made, cached and attended to

mod attention;
mod residual;

use std::ops::Range;

use baton_kernels::cpu::{Activation, ComputePool, Rotation, gemm, gemm_gated, soft_cap};
use baton_protocol::PromptToken;

use super::{CpuModel, cached::Cached, weights::Layer};
use crate::{
    batch::{Batch, Logits, READ_ROWS, Reading, What, sum_rows},
    kv::{KvMemory, PageId},
    sampler,
};
use residual::{Residual, keep_rows};

/// Below this many rows the small ops are not worth waking a thread for.
const FEW_ROWS: usize = 64;

/// The state of a step: one row for each new token, in batch order.
pub(super) struct Pass<'a, E> {
    model: &'a CpuModel,
    pool: &'a ComputePool,
    memory: &'a KvMemory,
    batch: &'a Batch<'a>,
    /// One for each sequence; from the last layer's attention on, one for each of `outcomes`.
    spans: Vec<Span<'a>>,
    /// Each with the place of its sequence in the batch.
    outcomes: Vec<(usize, Outcome<'a>)>,
    /// One for each of the model's rotary embeddings.
    rotations: Vec<Rotation>,
    residual: Residual,
    /// `[row][q heads, k heads, v heads][head_dim]`
    qkv: Vec<f32>,
    /// Turned queries: `[row][head][head_dim]`.
    q: Vec<E>,
    /// Output of attention: `[row][head][head_dim]`.
    attended: Vec<E>,
    /// `[row][intermediate]`
    gated: Vec<f32>,
}

/// Rows of one sequence.
struct Span<'a> {
    first_row: usize,
    rows: usize,
    /// Position of the first row.
    start: usize,
    pages: &'a [PageId],
}

/// What comes of the rows of a span that is kept to the end.
#[derive(Clone, Copy)]
enum Outcome<'a> {
    /// Logits to draw from.
    Draw,
    /// How likely these tokens are, one behind each row, with so many others.
    Tokens(&'a [u32], u32),
    /// Their sum.
    Sum,
}

// === impl Pass ===

impl<'a, E: Cached> Pass<'a, E> {
    /// Looks up the embeddings of a batch that was checked.
    pub fn new(
        model: &'a CpuModel,
        pool: &'a ComputePool,
        memory: &'a KvMemory,
        batch: &'a Batch<'a>,
    ) -> Self {
        let config = model.config();
        let rows = batch.num_tokens();
        let mut spans: Vec<Span<'a>> = Vec::new();
        for sequence in &batch.sequences {
            spans.push(Span {
                first_row: spans.last().map_or(0, |span| span.first_row + span.rows),
                rows: sequence.end - sequence.start,
                start: sequence.start,
                pages: sequence.pages,
            });
        }
        let positions = || spans.iter().flat_map(|span| span.start..span.start + span.rows);
        let rotations = config
            .rotaries
            .iter()
            .map(|rotary| Rotation::new(positions(), config.head_dim, &rotary.frequencies, rotary.magnitude))
            .collect();
        let q_width = config.heads * config.head_dim;
        Self {
            residual: Residual::new(embeddings(model, pool, batch), config.hidden),
            qkv: vec![0.0; rows * (q_width + 2 * config.kv_heads * config.head_dim)],
            q: vec![E::default(); rows * q_width],
            attended: vec![E::default(); rows * q_width],
            gated: vec![0.0; rows * config.intermediate],
            model,
            pool,
            memory,
            batch,
            spans,
            outcomes: Vec::new(),
            rotations,
        }
    }

    /// Runs all layers; returns what is wanted of the rows.
    pub fn run(mut self, layer_done: &mut dyn FnMut(usize)) -> Logits {
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.write_kv(index, layer);
            layer_done(index);
            if index + 1 == self.model.layers.len() {
                self.keep_wanted_rows();
            }
            self.attend(index, layer);
            self.feed_forward(layer);
        }
        self.finish()
    }

    /// Once the last layer's keys and values are written, only the rows that
    /// logits come from matter.
    fn keep_wanted_rows(&mut self) {
        let config = self.model.config();
        let (mut spans, mut rows) = (Vec::new(), Vec::new());
        let mut keep = |span: Span<'a>, outcome: (usize, Outcome<'a>)| {
            let first_row = rows.len();
            rows.extend(span.first_row..span.first_row + span.rows);
            spans.push(Span { first_row, ..span });
            self.outcomes.push(outcome);
        };
        for (index, (span, sequence)) in self.spans.iter().zip(&self.batch.sequences).enumerate() {
            if let Some(read) = self.batch.read(index) {
                let outcome = match read.what {
                    What::Tokens(top) => Outcome::Tokens(read.behind(sequence.tokens), top),
                    What::Sum => Outcome::Sum,
                };
                keep(span.part(read.rows.clone()), (index, outcome));
            }
            if sequence.wants_logits {
                keep(span.part(sequence.end - 1..sequence.end), (index, Outcome::Draw));
            }
        }
        self.spans = spans;
        self.residual.keep(&rows);
        keep_rows(&mut self.q, config.heads * config.head_dim, &rows);
        self.attended.resize(self.q.len(), E::default());
        self.gated.resize(rows.len() * config.intermediate, 0.0);
    }

    fn feed_forward(&mut self, layer: &Layer) {
        let activation = match self.model.config().activation {
            baton_model::Activation::Silu => Activation::Silu,
            baton_model::Activation::GeluTanh => Activation::GeluTanh,
        };
        let x = self.residual.read(self.pool, &layer.mlp_norms);
        gemm_gated(self.pool, x, &layer.gate_up, activation, &mut self.gated);
        self.residual.add(self.pool, &self.gated, &layer.down, &layer.mlp_norms);
    }

    /// What comes of the rows that were kept.
    fn finish(self) -> Logits {
        let Self { model, pool, mut residual, spans, outcomes, .. } = self;
        let width = model.config().hidden;
        let rows = residual.read(pool, &model.norms);
        let (mut drawn, mut read) = (Vec::new(), Vec::new());
        for (span, (index, outcome)) in spans.iter().zip(outcomes) {
            let rows = &rows[span.first_row * width..][..span.rows * width];
            match outcome {
                Outcome::Draw => drawn.extend_from_slice(rows),
                Outcome::Tokens(tokens, top) => {
                    read.push((index, Reading::Tokens(likelihoods(model, pool, rows, (tokens, top)))));
                }
                Outcome::Sum => read.push((index, Reading::Sum(sum_rows(rows.iter().copied(), width)))),
            }
        }
        Logits { values: logits(model, pool, &drawn), vocab_tokens: model.config().vocab, read }
    }
}

// === impl Span ===

impl Span<'_> {
    /// Its rows at these positions.
    fn part(&self, positions: Range<usize>) -> Self {
        Self {
            first_row: self.first_row + positions.start - self.start,
            rows: positions.len(),
            start: positions.start,
            pages: self.pages,
        }
    }
}

/// Of rows behind the last norm: `[row][vocab]`.
fn logits(model: &CpuModel, pool: &ComputePool, rows: &[f32]) -> Vec<f32> {
    let config = model.config();
    let mut logits = vec![0.0; rows.len() / config.hidden * config.vocab];
    gemm(pool, rows, model.output(), &mut logits);
    if let Some(cap) = config.logit_softcap {
        soft_cap(pool, &mut logits, cap);
    }
    logits
}

/// How likely the tokens behind these rows are; a few rows' logits are there at a time.
fn likelihoods(
    model: &CpuModel,
    pool: &ComputePool,
    rows: &[f32],
    (tokens, top): (&[u32], u32),
) -> Vec<PromptToken> {
    let &baton_model::ModelConfig { hidden, vocab, .. } = model.config();
    let bands = rows.chunks(READ_ROWS * hidden).zip(tokens.chunks(READ_ROWS));
    let read = |(rows, tokens)| sampler::prompt_tokens(&logits(model, pool, rows), vocab, tokens, top);
    bands.flat_map(read).collect()
}

/// Rows that enter the first layer: `[row][hidden]`.
fn embeddings(model: &CpuModel, pool: &ComputePool, batch: &Batch<'_>) -> Vec<f32> {
    let (width, scale) = (model.config().hidden, model.config().embedding_scale);
    let rows = batch.num_tokens();
    let mut x = vec![0.0; rows * width];
    let tokens = batch.sequences.iter().flat_map(|sequence| &sequence.tokens[sequence.start..sequence.end]);
    let lookups = tokens.zip(x.chunks_mut(width)).collect();
    for_each(pool, rows, lookups, |(token, x)| {
        model.embedding.read_row(*token as usize, x);
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
    });
    x
}

/// Runs small tasks of `rows` rows in all.
fn for_each<T: Send>(pool: &ComputePool, rows: usize, tasks: Vec<T>, run: impl Fn(T) + Send + Sync) {
    match rows < FEW_ROWS {
        true => tasks.into_iter().for_each(run),
        false => pool.for_each(tasks, run),
    }
}
