//! One step through all layers.
//!
//! - `residual`: the residual stream, and the norms between it and the products
//! - `attention`: queries, keys and values made, cached and attended to

mod attention;
mod residual;

use baton_kernels::cpu::{Activation, ComputePool, Rotation, gemm, gemm_gated, soft_cap};

use super::{CpuModel, cached::Cached, weights::Layer};
use crate::{
    batch::Batch,
    kv::{KvMemory, PageId},
};
use residual::{Residual, keep_rows};

/// Below this many rows the small ops are not worth waking a thread for.
const FEW_ROWS: usize = 64;

/// The state of a step: one row for each new token, in batch order.
pub(super) struct Pass<'a, E> {
    model: &'a CpuModel,
    pool: &'a ComputePool,
    memory: &'a KvMemory,
    spans: Vec<Span<'a>>,
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
    wants_logits: bool,
}

// === impl Pass ===

impl<'a, E: Cached> Pass<'a, E> {
    /// Looks up the embeddings of a batch that was checked.
    pub fn new(model: &'a CpuModel, pool: &'a ComputePool, memory: &'a KvMemory, batch: &Batch<'a>) -> Self {
        let config = model.config();
        let rows = batch.num_tokens();
        let mut spans: Vec<Span<'a>> = Vec::new();
        for sequence in &batch.sequences {
            spans.push(Span {
                first_row: spans.last().map_or(0, |span| span.first_row + span.rows),
                rows: sequence.end - sequence.start,
                start: sequence.start,
                pages: sequence.pages,
                wants_logits: sequence.wants_logits,
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
            spans,
            rotations,
        }
    }

    /// Runs all layers; returns the wanted rows of logits, one after another.
    pub fn run(mut self, layer_done: &mut dyn FnMut(usize)) -> Vec<f32> {
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.write_kv(index, layer);
            layer_done(index);
            if index + 1 == self.model.layers.len() {
                self.keep_last_rows();
            }
            self.attend(index, layer);
            self.feed_forward(layer);
        }
        self.logits()
    }

    /// Once the last layer's keys and values are written, only the rows that
    /// logits come from matter.
    fn keep_last_rows(&mut self) {
        let config = self.model.config();
        self.spans.retain(|span| span.wants_logits);
        let last: Vec<usize> = self.spans.iter().map(|span| span.first_row + span.rows - 1).collect();
        for (kept, span) in self.spans.iter_mut().enumerate() {
            *span = Span { first_row: kept, rows: 1, start: span.start + span.rows - 1, ..*span };
        }
        self.residual.keep(&last);
        keep_rows(&mut self.q, config.heads * config.head_dim, &last);
        self.attended.truncate(self.q.len());
        self.gated.truncate(last.len() * config.intermediate);
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

    fn logits(mut self) -> Vec<f32> {
        let config = self.model.config();
        let mut logits = vec![0.0; self.spans.len() * config.vocab];
        gemm(self.pool, self.residual.read(self.pool, &self.model.norms), self.model.output(), &mut logits);
        if let Some(cap) = config.logit_softcap {
            soft_cap(self.pool, &mut logits, cap);
        }
        logits
    }
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
