//! The residual stream of a step, and the norms between it and the products.

use baton_kernels::cpu::{ComputePool, Element, PackedMatrix, gemm, gemm_add, rms_norm, rms_norm_add};

use crate::backend::cpu::weights::BlockNorms;

/// One row for each token.
pub struct Residual {
    width: usize,
    /// `[row][hidden]`
    x: Vec<f32>,
    /// What a block reads, then what it is about to add: `[row][hidden]`. Not rounded: this and the
    /// gated rows would be half of the error of the logits, and f32 products are hardly slower.
    block: Vec<f32>,
}

// === impl Residual ===

impl Residual {
    /// Rows of `width` elements.
    pub fn new(x: Vec<f32>, width: usize) -> Self {
        Self { width, block: vec![0.0; x.len()], x }
    }

    /// What a block reads: all rows, normed if the block has a norm before it.
    pub fn read(&mut self, pool: &ComputePool, norms: &BlockNorms) -> &[f32] {
        let Some(norm) = &norms.before else { return &self.x };
        rms_norm(pool, &self.x, norm, &mut self.block);
        &self.block
    }

    /// Adds what a block computed: a product, normed if the block has a norm after it.
    pub fn add<A: Element>(
        &mut self,
        pool: &ComputePool,
        a: &[A],
        weights: &PackedMatrix,
        norms: &BlockNorms,
    ) {
        let Some(norm) = &norms.after else { return gemm_add(pool, a, weights, &mut self.x) };
        gemm(pool, a, weights, &mut self.block);
        rms_norm_add(pool, &self.block, norm, &mut self.x);
    }

    /// Keeps these rows in this order, and forgets the others.
    pub fn keep(&mut self, rows: &[usize]) {
        keep_rows(&mut self.x, self.width, rows);
        self.block.resize(self.x.len(), 0.0);
    }
}

/// Keeps these rows of `width` elements in this order, and forgets the others. One that is both
/// read and drawn from is named twice, so that there may be more of them than before.
pub fn keep_rows<T: Copy>(values: &mut Vec<T>, width: usize, rows: &[usize]) {
    let mut kept = Vec::with_capacity(rows.len() * width);
    rows.iter().for_each(|row| kept.extend_from_slice(&values[row * width..][..width]));
    *values = kept;
}
