//! A step's attention: queries, keys and values made, cached and attended to.

use baton_kernels::cpu::{AttentionSequence, attention, gemm, rms_norm_in_place, round_into};

use super::{Pass, Span, for_each};
use crate::{
    backend::cpu::{cached::Cached, weights::Layer},
    kv::{PageId, PageRead},
};

/// Rows of one sequence in one page.
struct PageRows<'a, E> {
    page: PageId,
    /// First token in the page.
    token: usize,
    first_row: usize,
    /// `[row][q heads, k heads, v heads][head_dim]`, just projected.
    qkv: &'a mut [f32],
    /// Where queries go.
    q: &'a mut [E],
}

/// The pages of a sequence that a layer looks at.
struct Seen<'a> {
    /// Number of pages before them.
    first_page: usize,
    pages: Vec<PageRead<'a>>,
}

impl<'a, E: Cached> Pass<'a, E> {
    /// Projects queries, keys and values, turns them, and rounds keys and values into their pages.
    pub(super) fn write_kv(&mut self, index: usize, layer: &Layer) {
        let (pool, memory) = (self.pool, self.memory);
        gemm(pool, self.residual.read(pool, &layer.attention_norms), &layer.qkv, &mut self.qkv);
        let config = self.model.config();
        let rotation = config.attention[index].rotary.map(|rotary| &self.rotations[rotary]);
        let (q_width, k_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (isa, page_tokens) = (pool.isa(), memory.shape().page_tokens as usize);
        let rows = self.qkv.len() / (q_width + 2 * k_width);
        let tasks = by_page(&self.spans, page_tokens, rows, &mut self.qkv, &mut self.q);
        let turn = |row, heads: &[f32], to: &mut [E]| match rotation {
            Some(rotation) => rotation.apply(isa, row, heads, to),
            None => round_into(isa, heads, to),
        };
        for_each(pool, rows, tasks, |task| {
            let mut page = memory.write(task.page, index);
            let kv = E::write(&mut page).chunks_exact_mut(2 * k_width).skip(task.token);
            let qkv = task.qkv.chunks_exact_mut(q_width + 2 * k_width).enumerate();
            for (((row, qkv), q), kv) in qkv.zip(task.q.chunks_exact_mut(q_width)).zip(kv) {
                if let Some(bias) = &layer.qkv_bias {
                    qkv.iter_mut().zip(bias).for_each(|(qkv, bias)| *qkv += bias);
                }
                let (from_q, rest) = qkv.split_at_mut(q_width);
                let (from_k, from_v) = rest.split_at_mut(k_width);
                if let Some([q_norm, k_norm]) = &layer.qk_norms {
                    rms_norm_in_place(isa, from_q, q_norm);
                    rms_norm_in_place(isa, from_k, k_norm);
                }
                let (to_k, to_v) = kv.split_at_mut(k_width);
                turn(task.first_row + row, from_q, q);
                turn(task.first_row + row, from_k, to_k);
                round_into(isa, from_v, to_v);
            }
        });
    }

    /// Attends with all queries, and adds the projected result to the residual stream.
    pub(super) fn attend(&mut self, index: usize, layer: &Layer) {
        let shape = self.model.attention_shape(self.memory.shape().page_tokens as usize, index);
        let first_page = |span: &Span<'_>| shape.first_seen(span.start) / shape.page_tokens;
        let seen: Vec<_> = self.spans.iter().map(|span| self.read(span, index, first_page(span))).collect();
        let sequences: Vec<_> = self
            .spans
            .iter()
            .zip(&seen)
            .map(|(span, seen)| AttentionSequence {
                first_row: span.first_row,
                rows: span.rows,
                start: span.start,
                first_page: seen.first_page,
                pages: seen.pages.iter().map(E::read).collect(),
            })
            .collect();
        attention(self.pool, shape, &sequences, &self.q, &mut self.attended);
        self.residual.add(self.pool, &self.attended, &layer.attention_output, &layer.attention_norms);
    }

    /// The pages of a sequence from `first_page` on, for reading one layer.
    fn read(&self, span: &Span<'_>, layer: usize, first_page: usize) -> Seen<'a> {
        let pages = first_page..self.memory.shape().pages_for(span.start + span.rows);
        let pages = span.pages[pages].iter().map(|page| self.memory.read(*page, layer)).collect();
        Seen { first_page, pages }
    }
}

/// Cuts all spans at page boundaries, and with them what has one row for each of their `rows`.
fn by_page<'p, E>(
    spans: &[Span<'_>],
    page_tokens: usize,
    rows: usize,
    mut qkv: &'p mut [f32],
    mut q: &'p mut [E],
) -> Vec<PageRows<'p, E>> {
    let (qkv_width, q_width) = (qkv.len() / rows.max(1), q.len() / rows.max(1));
    let mut tasks = Vec::new();
    for span in spans {
        let mut done = 0;
        while done < span.rows {
            let position = span.start + done;
            let token = position % page_tokens;
            let rows = (page_tokens - token).min(span.rows - done);
            tasks.push(PageRows {
                page: span.pages[position / page_tokens],
                token,
                first_row: span.first_row + done,
                qkv: qkv.split_off_mut(..rows * qkv_width).unwrap_or_default(),
                q: q.split_off_mut(..rows * q_width).unwrap_or_default(),
            });
            done += rows;
        }
    }
    tasks
}
