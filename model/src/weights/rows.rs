//! Rows of a matrix, read a few at a time.

use half::{bf16, f16};

use super::{Encoding, Stored};
use crate::error::{FormatError, ModelError};

/// Bytes of a Q4_K block of 256 values.
const Q4_K_BYTES: usize = 144;

/// A tensor of rank 2, read a few rows at a time and by any number of threads.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub(super) name: &'a str,
    pub(super) tensor: &'a Stored,
}

/// Blocks in which rows can be read besides as values, without loss or nearly so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// There are none.
    None,
    /// 32 values each: scale, minimum, four bits a value.
    Q4_1,
    /// 32 values each: scale, eight bits a value.
    Q8_0,
}

// === impl Rows ===

impl Rows<'_> {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.tensor.shape[0]
    }

    /// How long they are.
    pub fn cols(&self) -> usize {
        self.tensor.cols()
    }

    /// Bytes of a row in its file.
    pub fn row_bytes(&self) -> usize {
        self.tensor.row_bytes()
    }

    /// The blocks that [`read_q4_1`](Self::read_q4_1) or [`read_q8_0`](Self::read_q8_0) can make of it.
    pub fn blocks(&self) -> Blocks {
        match self.tensor.encoding() {
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q4K => Blocks::Q4_1,
            Encoding::Q8_0 => Blocks::Q8_0,
            _ => Blocks::None,
        }
    }

    /// The same, if they lose nothing.
    pub fn lossless_blocks(&self) -> Blocks {
        match self.tensor.encoding() {
            Encoding::Q4K => Blocks::None,
            _ => self.blocks(),
        }
    }

    /// Reads values of whole rows from row `first` on, rounded to bf16.
    ///
    /// # Errors
    /// If the file cannot be read or holds something that is not a finite number.
    pub fn read(&self, first: usize, values: &mut [bf16]) -> Result<(), ModelError> {
        self.tensor.read(self.name, first, values).map_err(ModelError::Tensor)
    }

    /// Whole rows from row `first` on, as exact as they are stored.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn floats(&self, first: usize, rows: usize) -> Result<Vec<f32>, ModelError> {
        self.tensor.floats(self.name, first, rows).map_err(ModelError::Tensor)
    }

    /// Reads whole rows from row `first` on as blocks of Q4_1. Nothing is lost but of
    /// Q4_K, whose scales have more bits than f16.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_q4_1(&self, first: usize, blocks: &mut [[u8; 20]]) -> Result<(), ModelError> {
        let values = blocks.len() * 32;
        let mut words = Vec::new();
        let raw = self.tensor.raw(first, values / self.cols(), &mut words).map_err(ModelError::Tensor)?;
        match self.tensor.encoding() {
            Encoding::Q4_0 => {
                for (block, raw) in blocks.iter_mut().zip(raw.as_chunks().0) {
                    *block = from_q4_0(raw);
                }
            }
            Encoding::Q4_1 => blocks.copy_from_slice(raw.as_chunks().0),
            Encoding::Q4K => {
                for (blocks, raw) in blocks.as_chunks_mut().0.iter_mut().zip(raw.as_chunks().0) {
                    *blocks = from_q4_k(raw);
                }
            }
            _ => return Err(self.no_blocks("Q4_1")),
        }
        self.check(blocks.iter().all(|block| finite(block, 0) && finite(block, 2)))
    }

    /// Reads whole rows from row `first` on as blocks of Q8_0.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_q8_0(&self, first: usize, blocks: &mut [[u8; 34]]) -> Result<(), ModelError> {
        if self.tensor.encoding() != Encoding::Q8_0 {
            return Err(self.no_blocks("Q8_0"));
        }
        let values = blocks.len() * 32;
        let mut words = Vec::new();
        let raw = self.tensor.raw(first, values / self.cols(), &mut words).map_err(ModelError::Tensor)?;
        blocks.copy_from_slice(raw.as_chunks().0);
        self.check(blocks.iter().all(|block| finite(block, 0)))
    }

    fn no_blocks(&self, blocks: &str) -> ModelError {
        let reason = format!("it is not stored in a form that {blocks} can hold");
        ModelError::Tensor(FormatError::Dequantise { tensor: self.name.to_owned(), reason })
    }

    fn check(&self, finite: bool) -> Result<(), ModelError> {
        match finite {
            true => Ok(()),
            false => Err(ModelError::Tensor(FormatError::NotFinite { tensor: self.name.to_owned() })),
        }
    }
}

fn half(raw: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([raw[at], raw[at + 1]])
}

fn finite(raw: &[u8], at: usize) -> bool {
    half(raw, at).is_finite()
}

/// `scale * (q - 8)` as `scale * q + min`.
fn from_q4_0(raw: &[u8; 18]) -> [u8; 20] {
    let min = f16::from_f32(-8.0 * half(raw, 0).to_f32());
    let mut block = [0; 20];
    block[..2].copy_from_slice(&raw[..2]);
    block[2..4].copy_from_slice(&min.to_le_bytes());
    block[4..].copy_from_slice(&raw[2..]);
    block
}

/// Eight groups with scales and minima of six bits, times one scale of each kind.
fn from_q4_k(raw: &[u8; Q4_K_BYTES]) -> [[u8; 20]; 8] {
    let [scale, min] = [0, 2].map(|at| half(raw, at).to_f32());
    let (packed, quants) = (&raw[4..16], &raw[16..]);
    std::array::from_fn(|group| {
        let [scale_bits, min_bits] = match group {
            0..4 => [packed[group] & 63, packed[group + 4] & 63],
            _ => [
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ],
        };
        let mut block = [0; 20];
        block[..2].copy_from_slice(&f16::from_f32(scale * f32::from(scale_bits)).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-min * f32::from(min_bits)).to_le_bytes());
        for (k, byte) in quants[group / 2 * 32..][..32].iter().enumerate() {
            let quant = byte >> (group % 2 * 4) & 15;
            block[4 + k % 16] |= quant << (k / 16 * 4);
        }
        block
    })
}

#[cfg(test)]
mod tests;
