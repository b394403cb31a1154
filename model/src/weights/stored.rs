//! One tensor where it lies.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use half::bf16;
use rayon::prelude::*;

use super::Encoding;
use crate::error::FormatError;

/// Values decoded at once: small enough for a cache, a multiple of every block.
const CHUNK_VALUES: usize = 1 << 16;
/// Bytes hashed at once.
const HASH_BYTES: usize = 1 << 18;

/// A tensor that has not been read yet.
pub struct Stored {
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    place: Place,
    /// Number of heads whose rows lie pairwise interleaved (row `2i + s` of a
    /// head belongs at `i + s * head_dim / 2`), as GGUF writes queries and keys.
    interleaved_heads: Option<usize>,
}

enum Place {
    File {
        file: Arc<File>,
        /// Of the first byte.
        offset: u64,
        encoding: Encoding,
    },
    Memory(Vec<f32>),
}

// === impl Stored ===

impl Stored {
    /// A tensor whose extent in the file has been checked.
    pub fn in_file(shape: Vec<usize>, file: Arc<File>, offset: u64, encoding: Encoding) -> Self {
        Self { shape, place: Place::File { file, offset, encoding }, interleaved_heads: None }
    }

    pub fn in_memory(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { shape, place: Place::Memory(values), interleaved_heads: None }
    }

    pub fn with_interleaved_heads(self, heads: usize) -> Self {
        Self { interleaved_heads: Some(heads), ..self }
    }

    /// All values, row after row.
    pub fn values(&self, name: &str) -> Result<Vec<bf16>, FormatError> {
        let mut values = vec![bf16::ZERO; self.shape.iter().product()];
        let chunks = values.par_chunks_mut(CHUNK_VALUES).enumerate();
        chunks.try_for_each(|(index, chunk)| self.read(name, index * CHUNK_VALUES, chunk))?;
        match self.interleaved_heads {
            Some(heads) => Ok(self.split_halves(heads, &values)),
            None => Ok(values),
        }
    }

    /// Reads values from `first` on; `first` is the first value of a block.
    fn read(&self, name: &str, first: usize, values: &mut [bf16]) -> Result<(), FormatError> {
        match &self.place {
            Place::Memory(floats) => {
                for (value, float) in values.iter_mut().zip(&floats[first..]) {
                    *value = bf16::from_f32(*float);
                }
            }
            Place::File { file, offset, encoding } => {
                let bytes = |values: usize| values / encoding.block_values() * encoding.block_bytes();
                // Blocks are read as numbers where they lie, so they must lie aligned.
                let mut words = vec![0u32; bytes(values.len()).div_ceil(4)];
                let raw = &mut bytemuck::cast_slice_mut(&mut words)[..bytes(values.len())];
                file.read_exact_at(raw, offset + bytes(first) as u64)?;
                encoding.decode(raw, values).map_err(|error| FormatError::Dequantise {
                    tensor: name.to_owned(),
                    reason: error.to_string(),
                })?;
            }
        }
        if values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(FormatError::NotFinite { tensor: name.to_owned() })
    }

    /// Undoes the pairwise order of rows inside each head.
    fn split_halves(&self, heads: usize, values: &[bf16]) -> Vec<bf16> {
        let rows = self.shape[0];
        let cols = values.len() / rows;
        let half = rows / heads / 2;
        let source = |row: usize| {
            let (head, within) = (row / (2 * half), row % (2 * half));
            head * 2 * half + within % half * 2 + within / half
        };
        (0..rows).flat_map(|row| &values[source(row) * cols..][..cols]).copied().collect()
    }

    /// Hash of the bytes as they lie, and of how they are to be read.
    pub fn hash(&self) -> Result<blake3::Hash, FormatError> {
        let mut hasher = blake3::Hasher::new();
        match &self.place {
            Place::Memory(floats) => {
                hasher.update(bytemuck::cast_slice(floats));
            }
            Place::File { file, offset, encoding } => {
                hasher.update(format!("{encoding:?} {:?}", self.interleaved_heads).as_bytes());
                let values: usize = self.shape.iter().product();
                let bytes = values / encoding.block_values() * encoding.block_bytes();
                let mut buffer = vec![0; bytes.min(HASH_BYTES)];
                for start in (0..bytes).step_by(HASH_BYTES) {
                    let part = &mut buffer[..(bytes - start).min(HASH_BYTES)];
                    file.read_exact_at(part, offset + start as u64)?;
                    hasher.update(part);
                }
            }
        }
        Ok(hasher.finalize())
    }
}
