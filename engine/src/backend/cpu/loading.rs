//! Matrices on their way from their files into panels.

use std::sync::atomic::{AtomicU64, Ordering};

use baton_kernels::cpu::{PackedMatrix, Part, Q4_1, Q8_0, Unit, quantise_q4_1, quantise_q8_0};
use baton_model::{Blocks, ModelError, Rows, Weights};
use half::bf16;
use serde::{Deserialize, Serialize};

use super::{Precision, weights::WeightsError};

/// Values of a block.
const BLOCK: usize = 32;

/// In what form weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightForm {
    /// As they are where the file has them in Q4_0, Q4_1 or Q8_0, else in bf16: nothing is lost,
    /// and a single stream, which is as fast as weights are read, has little to read.
    #[default]
    File,
    /// All in bf16.
    Bf16,
    /// Layers in four bits, the embedding and the output projection in eight; each 32 of
    /// a row share a scale. Nothing is lost of files that are written like this. Layers'
    /// matrices that a file has in five to eight bits have eight here, too.
    Int4,
}

/// Hears of bytes read so far, and of all there are.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// How to load a model.
#[derive(Clone, Copy, Default)]
pub struct Loading<'a> {
    /// How it computes.
    pub precision: Precision,
    /// In what form weights are held.
    pub weights: WeightForm,
    /// Is called from several threads, often.
    pub progress: Option<Progress<'a>>,
}

/// Reads vectors, and packs matrices a few rows at a time.
pub(super) struct Packer<'a> {
    weights: &'a Weights,
    form: WeightForm,
    progress: Option<Progress<'a>>,
    loaded: AtomicU64,
    total: u64,
}

/// What a matrix is for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// A projection of a layer.
    Layer,
    /// Looked up by token, or the projection to tokens.
    Tokens,
}

/// Units of rows that can be read from a file.
trait Read: Unit {
    fn read(rows: Rows<'_>, first: usize, to: &mut [Self]) -> Result<(), ModelError>;
}

// === impl Loading ===

impl From<Precision> for Loading<'_> {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

// === impl Packer ===

impl<'a> Packer<'a> {
    pub fn new(weights: &'a Weights, how: Loading<'a>) -> Self {
        let Loading { weights: form, progress, .. } = how;
        Self { weights, form, progress, loaded: AtomicU64::new(0), total: weights.stored_bytes() }
    }

    /// Tensors of `rows` rows each, one below the other.
    pub fn stacked(
        &self,
        purpose: Use,
        parts: &[(&str, usize)],
        cols: usize,
    ) -> Result<PackedMatrix, WeightsError> {
        let parts = parts.iter().map(|(name, rows)| self.rows(name, *rows, cols));
        self.pack(purpose, &parts.collect::<Result<Vec<_>, _>>()?, false)
    }

    /// A gate and an up projection of `rows` rows each.
    pub fn gated(
        &self,
        [gate, up]: [&str; 2],
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, WeightsError> {
        self.pack(Use::Layer, &[self.rows(gate, rows, cols)?, self.rows(up, rows, cols)?], true)
    }

    /// A vector, once its length is as expected.
    pub fn vector(&self, name: &str, expected: usize) -> Result<Vec<f32>, WeightsError> {
        let values = self.weights.vector(name)?;
        if values.len() != expected {
            return Err(WeightsError::Length { tensor: name.to_owned(), len: values.len(), expected });
        }
        self.report(self.weights.stored_bytes_of(name));
        Ok(values)
    }

    fn pack(&self, purpose: Use, parts: &[Rows<'_>], gated: bool) -> Result<PackedMatrix, WeightsError> {
        let blocks = parts.iter().all(|rows| rows.cols().is_multiple_of(BLOCK));
        let eight = parts.iter().any(|rows| wants_eight_bits(rows.row_bytes(), rows.cols()));
        let written_as = |form| parts.iter().all(|rows| rows.lossless_blocks() == form);
        match (self.form, purpose) {
            (WeightForm::Int4, Use::Layer) if blocks && !eight => self.pack_as::<Q4_1>(parts, gated),
            (WeightForm::Int4, _) if blocks => self.pack_as::<Q8_0>(parts, gated),
            (WeightForm::File, _) if written_as(Blocks::Q4_1) => self.pack_as::<Q4_1>(parts, gated),
            (WeightForm::File, _) if written_as(Blocks::Q8_0) => self.pack_as::<Q8_0>(parts, gated),
            _ => self.pack_as::<bf16>(parts, gated),
        }
    }

    fn pack_as<T: Read>(&self, parts: &[Rows<'_>], gated: bool) -> Result<PackedMatrix, WeightsError> {
        let cols = parts.first().map_or(0, Rows::cols);
        let read = |rows: &Rows<'_>, first: usize, to: &mut [T]| {
            T::read(*rows, first, to)?;
            self.report((to.len() * T::VALUES / rows.cols() * rows.row_bytes()) as u64);
            Ok(())
        };
        let reads: Vec<_> =
            parts.iter().map(|rows| move |first: usize, to: &mut [T]| read(rows, first, to)).collect();
        let part = |index: usize| Part { rows: parts[index].rows(), read: &reads[index] };
        let packed: Result<PackedMatrix, ModelError> = match gated {
            true => PackedMatrix::read_gated(&[part(0), part(1)], cols)?,
            false => PackedMatrix::read(&(0..parts.len()).map(part).collect::<Vec<_>>(), cols)?,
        };
        Ok(packed?)
    }

    fn report(&self, bytes: u64) {
        let before = self.loaded.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = self.progress {
            progress(before + bytes, self.total);
        }
    }

    /// A tensor, once its shape is as expected.
    fn rows<'n>(&'n self, name: &'n str, rows: usize, cols: usize) -> Result<Rows<'n>, WeightsError> {
        let tensor = self.weights.rows(name)?;
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            return Err(WeightsError::Shape {
                tensor: name.to_owned(),
                rows: tensor.rows(),
                cols: tensor.cols(),
                expected_rows: rows,
                expected_cols: cols,
            });
        }
        Ok(tensor)
    }
}

/// Whether the file has more than four bits of a weight, but has been made smaller: who
/// made it found that four are too few. (With its scale and minimum, a weight of four
/// bits takes five.)
fn wants_eight_bits(row_bytes: usize, cols: usize) -> bool {
    let bits = 8 * row_bytes;
    (5 * cols + 1..16 * cols).contains(&bits)
}

// === impl Read ===

impl Read for bf16 {
    fn read(rows: Rows<'_>, first: usize, to: &mut [Self]) -> Result<(), ModelError> {
        rows.read(first, to)
    }
}

impl Read for Q4_1 {
    fn read(rows: Rows<'_>, first: usize, to: &mut [Self]) -> Result<(), ModelError> {
        if rows.blocks() == Blocks::Q4_1 {
            return rows.read_q4_1(first, to);
        }
        to.copy_from_slice(&quantise_q4_1(&values(rows, first, to.len())?));
        Ok(())
    }
}

impl Read for Q8_0 {
    fn read(rows: Rows<'_>, first: usize, to: &mut [Self]) -> Result<(), ModelError> {
        if rows.blocks() == Blocks::Q8_0 {
            return rows.read_q8_0(first, to);
        }
        to.copy_from_slice(&quantise_q8_0(&values(rows, first, to.len())?));
        Ok(())
    }
}

fn values(rows: Rows<'_>, first: usize, blocks: usize) -> Result<Vec<bf16>, ModelError> {
    let mut values = vec![bf16::ZERO; blocks * BLOCK];
    rows.read(first, &mut values)?;
    Ok(values)
}

#[cfg(test)]
mod tests;
