//! One tensor where it lies.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use half::bf16;
use rayon::prelude::*;

use super::Encoding;
use crate::error::FormatError;

/// Values decoded at once, about: small enough for a cache.
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
    /// Added to every value of a vector: 1 where norm weights are stored less 1.
    plus: f32,
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
        Self { shape, place: Place::File { file, offset, encoding }, interleaved_heads: None, plus: 0.0 }
    }

    pub fn in_memory(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { shape, place: Place::Memory(values), interleaved_heads: None, plus: 0.0 }
    }

    pub fn with_interleaved_heads(self, heads: usize) -> Self {
        Self { interleaved_heads: Some(heads), ..self }
    }

    pub fn with_plus(self, plus: f32) -> Self {
        Self { plus, ..self }
    }

    /// Some rows of this tensor as a tensor of their own. Rows must be in order here.
    pub fn slice(&self, first: usize, rows: usize) -> Self {
        let mut shape = self.shape.clone();
        shape[0] = rows;
        let values = self.shape[1..].iter().product::<usize>();
        let place = match &self.place {
            Place::Memory(floats) => Place::Memory(floats[first * values..][..rows * values].to_vec()),
            Place::File { file, offset, encoding } => {
                let offset = offset + encoding.bytes(first * values) as u64;
                Place::File { file: Arc::clone(file), offset, encoding: *encoding }
            }
        };
        Self { shape, place, interleaved_heads: None, plus: self.plus }
    }

    /// All values of a vector, as exact as they are stored.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let mut floats = self.floats(name, 0, 1)?;
        floats.iter_mut().for_each(|float| *float += self.plus);
        Ok(floats)
    }

    /// Whole rows from row `first` on, as exact as they are stored.
    pub fn floats(&self, name: &str, first: usize, rows: usize) -> Result<Vec<f32>, FormatError> {
        let cols = self.cols();
        let floats = match &self.place {
            Place::Memory(floats) => {
                let row = |row| &floats[self.source(row) * cols..][..cols];
                (first..first + rows).flat_map(row).copied().collect()
            }
            Place::File { encoding, .. } => {
                let mut words = Vec::new();
                let floats = encoding.floats(self.raw(first, rows, &mut words)?);
                floats.map_err(|error| FormatError::Dequantise {
                    tensor: name.to_owned(),
                    reason: error.to_string(),
                })?
            }
        };
        if floats.iter().all(|float| float.is_finite()) {
            return Ok(floats);
        }
        Err(FormatError::NotFinite { tensor: name.to_owned() })
    }

    /// Length of a row: of the fastest dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of a row where it lies.
    pub fn row_bytes(&self) -> usize {
        match &self.place {
            Place::File { encoding, .. } => encoding.bytes(self.cols()),
            Place::Memory(_) => self.cols() * size_of::<f32>(),
        }
    }

    /// Bytes of it where it lies.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() / self.cols() * self.row_bytes()) as u64
    }

    /// How its values are written.
    pub fn encoding(&self) -> Encoding {
        match &self.place {
            Place::File { encoding, .. } => *encoding,
            Place::Memory(_) => Encoding::F32,
        }
    }

    /// All values, row after row.
    pub fn values(&self, name: &str) -> Result<Vec<bf16>, FormatError> {
        let mut values = vec![bf16::ZERO; self.shape.iter().product()];
        let rows = (CHUNK_VALUES / self.cols()).max(1);
        let chunks = values.par_chunks_mut(rows * self.cols()).enumerate();
        chunks.try_for_each(|(index, chunk)| self.read(name, index * rows, chunk))?;
        Ok(values)
    }

    /// Reads values of whole rows from row `first` on.
    pub fn read(&self, name: &str, first: usize, values: &mut [bf16]) -> Result<(), FormatError> {
        let cols = self.cols();
        match &self.place {
            Place::Memory(floats) => {
                for (row, values) in values.chunks_exact_mut(cols).enumerate() {
                    let floats = &floats[self.source(first + row) * cols..][..cols];
                    for (value, float) in values.iter_mut().zip(floats) {
                        *value = bf16::from_f32(*float);
                    }
                }
            }
            Place::File { encoding, .. } => {
                let mut words = Vec::new();
                let raw = self.raw(first, values.len() / cols, &mut words)?;
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

    /// The bytes of whole rows from row `first` on, in the order of rows. They are
    /// read as numbers where they lie, so they lie aligned, in `words`.
    pub fn raw<'a>(
        &self,
        first: usize,
        rows: usize,
        words: &'a mut Vec<u32>,
    ) -> Result<&'a [u8], FormatError> {
        let Place::File { file, offset, .. } = &self.place else { return Ok(&[]) };
        let row = self.row_bytes();
        words.resize((rows * row).div_ceil(4), 0);
        let raw = &mut bytemuck::cast_slice_mut(words)[..rows * row];
        let start = |row: usize| offset + (row * self.row_bytes()) as u64;
        match self.interleaved_heads {
            None => file.read_exact_at(raw, start(first))?,
            Some(_) => {
                for (index, raw) in raw.chunks_exact_mut(row).enumerate() {
                    file.read_exact_at(raw, start(self.source(first + index)))?;
                }
            }
        }
        Ok(raw)
    }

    /// Which row of the file is row `row`.
    fn source(&self, row: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return row };
        let half = self.shape[0] / heads / 2;
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % half * 2 + within / half
    }

    /// Hash of the bytes as they lie, and of how they are to be read. `read` hears of bytes.
    pub fn hash(&self, read: &impl Fn(u64)) -> Result<blake3::Hash, FormatError> {
        let mut hasher = blake3::Hasher::new();
        match &self.place {
            Place::Memory(floats) => {
                hasher.update(bytemuck::cast_slice(floats));
                read(self.bytes());
            }
            Place::File { file, offset, encoding } => {
                hasher.update(format!("{encoding:?} {:?}", self.interleaved_heads).as_bytes());
                let bytes = encoding.bytes(self.shape.iter().product());
                let mut buffer = vec![0; bytes.min(HASH_BYTES)];
                for start in (0..bytes).step_by(HASH_BYTES) {
                    let part = &mut buffer[..(bytes - start).min(HASH_BYTES)];
                    file.read_exact_at(part, offset + start as u64)?;
                    hasher.update(part);
                    read(part.len() as u64);
                }
            }
        }
        Ok(hasher.finalize())
    }
}
