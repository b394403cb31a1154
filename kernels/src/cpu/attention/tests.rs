use std::{ops::Range, sync::Arc};

use half::bf16;

use super::*;
use crate::{cpu::Isa, reference};

/// A sequence whose keys and values are known, in pages.
struct Sample<E> {
    shape: AttentionShape,
    tokens: usize,
    q: Vec<E>,
    pages: Vec<Vec<E>>,
}

impl<E: Element> Sample<E> {
    /// The same for the same seed, whatever the page size.
    fn new(shape: AttentionShape, tokens: usize, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut values = |len: usize| (0..len).map(|_| E::from_f32(4.0 * random.f32() - 2.0)).collect();
        let q: Vec<E> = values(tokens * shape.q_row());
        let mut kv: Vec<E> = values(tokens * shape.kv_row());
        // The rest of the last page holds what must not be looked at.
        let page = shape.page_tokens * shape.kv_row();
        kv.resize(kv.len().next_multiple_of(page), E::from_f32(f32::NAN));
        Self { shape, tokens, q, pages: kv.chunks(page).map(<[E]>::to_vec).collect() }
    }

    /// Without the pages that no row sees.
    fn sequence(&self, rows: Range<usize>, first_row: usize) -> AttentionSequence<'_, E> {
        let first_page = self.shape.first_seen(rows.start) / self.shape.page_tokens;
        let pages = self.pages[first_page..].iter().map(Vec::as_slice).collect();
        AttentionSequence { first_row, rows: rows.len(), start: rows.start, first_page, pages }
    }

    /// Attention of these positions, called alone.
    fn run(&self, pool: &ComputePool, rows: Range<usize>) -> Vec<E> {
        let row = self.shape.q_row();
        let q = &self.q[rows.start * row..rows.end * row];
        let mut out = vec![E::default(); q.len()];
        attention(pool, self.shape, &[self.sequence(rows, 0)], q, &mut out);
        out
    }

    /// Row of position `position`: keys and values of all heads.
    fn kv(&self, position: usize) -> Vec<f32> {
        let (page, len) = (self.shape.page_tokens, self.shape.kv_row());
        let row = &self.pages[position / page][position % page * len..][..len];
        row.iter().map(|value| value.to_f32()).collect()
    }

    fn expected(&self) -> Vec<f32> {
        let (dim, kv_heads) = (self.shape.head_dim, self.shape.kv_heads);
        let kv: Vec<_> = (0..self.tokens).map(|position| self.kv(position)).collect();
        let mut out = Vec::new();
        for (position, q) in self.q.chunks(self.shape.q_row()).enumerate() {
            for (head, q) in q.chunks(dim).enumerate() {
                let q: Vec<f32> = q.iter().map(|value| value.to_f32()).collect();
                let kv_head = head / self.shape.group();
                let first = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let seen = &kv[first..=position];
                let part = |at: usize| seen.iter().map(|row| &row[at * dim..(at + 1) * dim]).collect();
                let (keys, values): (Vec<_>, Vec<_>) = (part(kv_head), part(kv_heads + kv_head));
                let AttentionShape { scale, soft_cap, .. } = self.shape;
                out.extend(reference::attention(&q, &keys, &values, scale, soft_cap));
            }
        }
        out
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize, page_tokens: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, page_tokens, window: None, scale, soft_cap: None }
}

/// The forms in which models use attention.
fn forms(shape: AttentionShape) -> [AttentionShape; 5] {
    [
        shape,
        AttentionShape { window: Some(1), ..shape },
        AttentionShape { window: Some(50), soft_cap: Some(2.0), ..shape },
        AttentionShape { window: Some(64), scale: 0.5, ..shape },
        AttentionShape { window: Some(129), ..shape },
    ]
}

fn pools() -> Vec<Arc<ComputePool>> {
    let isas = Isa::supported().into_iter().enumerate();
    isas.map(|(i, isa)| ComputePool::with_isa(3 - i % 3, isa).unwrap()).collect()
}

/// A pool of one thread whose products are the same bits.
fn alike(pool: &ComputePool) -> Arc<ComputePool> {
    let isa = if pool.isa().is_exact() { Isa::best_exact() } else { pool.isa() };
    ComputePool::with_isa(1, isa).unwrap()
}

fn agrees_with_reference<E: Element>(tolerance: f32) {
    let shapes = [
        (shape(9, 3, 64, 16), 200),
        (shape(4, 1, 16, 5), 65),
        (shape(2, 2, 40, 64), 64),
        (shape(4, 2, 96, 7), 131),
        (shape(3, 1, 80, 16), 140),
        (shape(2, 1, 256, 16), 140),
    ];
    for (seed, (shape, tokens)) in shapes.into_iter().enumerate() {
        for shape in forms(shape) {
            let sample: Sample<E> = Sample::new(shape, tokens, seed as u64);
            let expected = sample.expected();
            for pool in pools() {
                for (found, expected) in sample.run(&pool, 0..tokens).iter().zip(&expected) {
                    let error = (found.to_f32() - expected).abs();
                    assert!(error < tolerance, "{shape:?}: {found:?} is not {expected}");
                }
            }
        }
    }
}

#[test]
fn bf16_agrees_with_reference() {
    agrees_with_reference::<bf16>(0.02);
}

#[test]
fn f32_agrees_with_reference() {
    agrees_with_reference::<f32>(1e-5);
}

fn row_is_the_same_in_any_call<E: Element>() {
    let tokens = 540;
    for shape in forms(shape(6, 2, 32, 16)) {
        let sample: Sample<E> = Sample::new(shape, tokens, 1);
        for pool in pools() {
            let whole = sample.run(&alike(&pool), 0..tokens);
            for chunk in [1, 7, 64, 130, 540] {
                let chunks = (0..tokens).step_by(chunk).map(|start| start..tokens.min(start + chunk));
                let pieces: Vec<E> = chunks.flat_map(|rows| sample.run(&pool, rows)).collect();
                assert!(pieces == whole, "{shape:?} in chunks of {chunk}, {}", pool.isa().as_str());
            }
        }
        let whole = sample.run(&pools()[0], 0..tokens);
        for page_tokens in [1, 10, 64, 512] {
            let shape = AttentionShape { page_tokens, ..shape };
            let sample: Sample<E> = Sample::new(shape, tokens, 1);
            let last = sample.run(&pools()[0], 500..tokens);
            assert!(last == whole[500 * shape.q_row()..], "{shape:?}");
        }
    }
}

#[test]
fn bf16_row_is_the_same_in_any_call() {
    row_is_the_same_in_any_call::<bf16>();
}

#[test]
fn f32_row_is_the_same_in_any_call() {
    row_is_the_same_in_any_call::<f32>();
}

#[test]
fn sequences_of_a_batch_do_not_touch_each_other() {
    let shape = AttentionShape { window: Some(70), ..shape(6, 2, 32, 16) };
    let samples: Vec<Sample<bf16>> = (0..5).map(|seed| Sample::new(shape, 100 + seed, seed as u64)).collect();
    let rows = [0..100, 99..101, 64..102, 5..70, 103..104];
    let (mut sequences, mut q) = (Vec::new(), Vec::new());
    for (sample, rows) in samples.iter().zip(&rows) {
        sequences.push(sample.sequence(rows.clone(), q.len() / shape.q_row()));
        q.extend_from_slice(&sample.q[rows.start * shape.q_row()..rows.end * shape.q_row()]);
    }
    let pool = ComputePool::new(3).unwrap();
    let mut out = vec![bf16::ZERO; q.len()];
    attention(&pool, shape, &sequences, &q, &mut out);
    let alone: Vec<bf16> =
        samples.iter().zip(rows).flat_map(|(sample, rows)| sample.run(&pool, rows)).collect();
    assert!(out == alone);
}
