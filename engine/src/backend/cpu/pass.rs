//! One step through all layers.

use baton_kernels::cpu::{
    AttentionSequence, ComputePool, Rotation, attention, gemm, gemm_add, gemm_gated, rms_norm, round_into,
};
use baton_protocol::KvShape;

use super::{CpuModel, cached::Cached, weights::Layer};
use crate::{
    backend::BackendError,
    batch::{Batch, BatchSequence},
    kv::{KvMemory, PageId, PageRead},
};

/// Below this many rows the small ops are not worth waking a thread for.
const FEW_ROWS: usize = 64;

/// The state of a step: one row for each new token, in batch order.
pub(super) struct Pass<'a, E> {
    model: &'a CpuModel,
    pool: &'a ComputePool,
    memory: &'a KvMemory,
    spans: Vec<Span<'a>>,
    rotation: Rotation,
    /// Residual stream: `[row][hidden]`.
    x: Vec<f32>,
    /// Input of the next product: `[row][hidden]`. Not rounded: this and `gated`
    /// would be half of the error of the logits, and f32 products are hardly slower.
    normed: Vec<f32>,
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

/// Rows of one sequence in one page.
struct PageRows<'a, E> {
    page: PageId,
    /// First token in the page.
    token: usize,
    first_row: usize,
    /// Where their queries go.
    q: &'a mut [E],
}

/// Refuses a batch that cannot be computed, before anything is.
pub(super) fn check(
    batch: &Batch<'_>,
    memory: &KvMemory,
    shape: &KvShape,
    vocab: usize,
) -> Result<(), BackendError> {
    if memory.shape() != shape {
        let problem = format!("kv memory of shape {:?}, not {shape:?}", memory.shape());
        return Err(BackendError::Device(problem));
    }
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let &BatchSequence { tokens, start, end, pages, .. } = sequence;
        if start >= end || end > tokens.len() || pages.len() < shape.pages_for(end) {
            return Err(BackendError::Device(format!(
                "sequence {index}: cannot compute {start}..{end} of {} tokens in {} pages",
                tokens.len(),
                pages.len()
            )));
        }
        if let Some(&token) = tokens[start..end].iter().find(|token| **token as usize >= vocab) {
            return Err(BackendError::Token { sequence: index, token, vocab });
        }
    }
    Ok(())
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
        let positions = spans.iter().flat_map(|span| span.start..span.start + span.rows);
        let rotation = Rotation::new(positions, config.head_dim, config.rope_theta);
        let mut x = vec![0.0; rows * config.hidden];
        let tokens =
            batch.sequences.iter().flat_map(|sequence| &sequence.tokens[sequence.start..sequence.end]);
        let lookups = tokens.zip(x.chunks_mut(config.hidden)).collect();
        for_each(pool, rows, lookups, |(token, x)| model.embedding.read_row(*token as usize, x));
        let q_width = config.heads * config.head_dim;
        Self {
            normed: vec![0.0; x.len()],
            x,
            qkv: vec![0.0; rows * (q_width + 2 * config.kv_heads * config.head_dim)],
            q: vec![E::default(); rows * q_width],
            attended: vec![E::default(); rows * q_width],
            gated: vec![0.0; rows * config.intermediate],
            model,
            pool,
            memory,
            spans,
            rotation,
        }
    }

    /// Runs all layers; returns the wanted rows of logits, one after another.
    pub fn run(mut self, layer_done: &mut dyn FnMut(usize)) -> Vec<f32> {
        for (index, layer) in self.model.layers.iter().enumerate() {
            rms_norm(self.pool, &self.x, &layer.attention_norm, &mut self.normed);
            gemm(self.pool, &self.normed, &layer.qkv, &mut self.qkv);
            self.write_kv(index);
            layer_done(index);
            if index + 1 == self.model.layers.len() {
                self.keep_last_rows();
            }
            self.attend(index, layer);
            self.feed_forward(layer);
        }
        rms_norm(self.pool, &self.x, &self.model.norm, &mut self.normed);
        let mut logits = vec![0.0; self.spans.len() * self.model.config().vocab];
        gemm(self.pool, &self.normed, self.model.output(), &mut logits);
        logits
    }

    /// Turns queries and keys; rounds keys and values into their pages.
    fn write_kv(&mut self, layer: usize) {
        let config = self.model.config();
        let (q_width, k_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (isa, memory, rotation, qkv) = (self.pool.isa(), self.memory, &self.rotation, &self.qkv);
        let page_tokens = memory.shape().page_tokens as usize;
        let tasks = by_page(&self.spans, page_tokens, q_width, &mut self.q);
        let rows = qkv.len() / (q_width + 2 * k_width);
        for_each(self.pool, rows, tasks, |task| {
            let mut page = memory.write(task.page, layer);
            let kv = E::write(&mut page).chunks_exact_mut(2 * k_width).skip(task.token);
            let qkv = qkv.chunks_exact(q_width + 2 * k_width).enumerate().skip(task.first_row);
            for (((row, qkv), q), kv) in qkv.zip(task.q.chunks_exact_mut(q_width)).zip(kv) {
                let (to_k, to_v) = kv.split_at_mut(k_width);
                rotation.apply(isa, row, &qkv[..q_width], q);
                rotation.apply(isa, row, &qkv[q_width..][..k_width], to_k);
                round_into(isa, &qkv[q_width + k_width..], to_v);
            }
        });
    }

    /// Once the last layer's keys and values are written, only the rows that
    /// logits come from matter.
    fn keep_last_rows(&mut self) {
        let config = self.model.config();
        let (hidden, q_width) = (config.hidden, config.heads * config.head_dim);
        self.spans.retain(|span| span.wants_logits);
        for (kept, span) in self.spans.iter_mut().enumerate() {
            let last = span.first_row + span.rows - 1;
            self.x.copy_within(last * hidden..(last + 1) * hidden, kept * hidden);
            self.q.copy_within(last * q_width..(last + 1) * q_width, kept * q_width);
            *span = Span { first_row: kept, rows: 1, start: span.start + span.rows - 1, ..*span };
        }
        let rows = self.spans.len();
        self.x.truncate(rows * hidden);
        self.normed.truncate(rows * hidden);
        self.q.truncate(rows * q_width);
        self.attended.truncate(rows * q_width);
        self.gated.truncate(rows * config.intermediate);
    }

    fn attend(&mut self, index: usize, layer: &Layer) {
        let page_tokens = self.memory.shape().page_tokens as usize;
        let pages: Vec<Vec<PageRead<'_>>> = self.spans.iter().map(|span| self.read(span, index)).collect();
        let sequences: Vec<_> = self
            .spans
            .iter()
            .zip(&pages)
            .map(|(span, pages)| AttentionSequence {
                first_row: span.first_row,
                rows: span.rows,
                start: span.start,
                pages: pages.iter().map(E::read).collect(),
            })
            .collect();
        let shape = self.model.attention_shape(page_tokens);
        attention(self.pool, shape, &sequences, &self.q, &mut self.attended);
        gemm_add(self.pool, &self.attended, &layer.attention_output, &mut self.x);
    }

    /// All pages of a sequence, for reading one layer.
    fn read(&self, span: &Span<'_>, layer: usize) -> Vec<PageRead<'a>> {
        let pages = self.memory.shape().pages_for(span.start + span.rows);
        span.pages[..pages].iter().map(|page| self.memory.read(*page, layer)).collect()
    }

    fn feed_forward(&mut self, layer: &Layer) {
        rms_norm(self.pool, &self.x, &layer.mlp_norm, &mut self.normed);
        gemm_gated(self.pool, &self.normed, &layer.gate_up, &mut self.gated);
        gemm_add(self.pool, &self.gated, &layer.down, &mut self.x);
    }
}

/// Runs small tasks of `rows` rows in all.
fn for_each<T: Send>(pool: &ComputePool, rows: usize, tasks: Vec<T>, run: impl Fn(T) + Send + Sync) {
    match rows < FEW_ROWS {
        true => tasks.into_iter().for_each(run),
        false => pool.for_each(tasks, run),
    }
}

/// Cuts all spans at page boundaries, and `q`, which has rows of `width`, with them.
fn by_page<'q, E>(
    spans: &[Span<'_>],
    page_tokens: usize,
    width: usize,
    mut q: &'q mut [E],
) -> Vec<PageRows<'q, E>> {
    let mut tasks = Vec::new();
    for span in spans {
        let mut done = 0;
        while done < span.rows {
            let position = span.start + done;
            let token = position % page_tokens;
            let rows = (page_tokens - token).min(span.rows - done);
            let (these, rest) = q.split_at_mut(rows * width);
            q = rest;
            let page = span.pages[position / page_tokens];
            tasks.push(PageRows { page, token, first_row: span.first_row + done, q: these });
            done += rows;
        }
    }
    tasks
}
