//! Tensors under Hugging Face names, read from their file when asked for.

mod encoding;
mod rows;
mod stored;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use half::bf16;
use rayon::prelude::*;

pub(crate) use encoding::Encoding;
pub use rows::{Blocks, Rows};
pub(crate) use stored::Stored;

use crate::{
    config::ModelConfig,
    error::{FormatError, ModelError},
};

/// The tensors of a model, under Hugging Face names
/// (`model.layers.0.self_attn.q_proj.weight`). Matrices are rounded to bf16, vectors are not.
///
/// Rotary embeddings always pair dimension `i` with `i + head_dim / 2`; files
/// that order rows for another pairing are reordered on the way.
pub struct Weights {
    tensors: BTreeMap<String, Stored>,
}

/// A tensor of rank 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of outputs of a projection; number of tokens for the embedding.
    pub rows: usize,
    /// Number of inputs of a projection.
    pub cols: usize,
    /// Row after row: `[rows, cols]`.
    pub values: Vec<bf16>,
}

// === impl Weights ===

impl Weights {
    /// Weights from memory: name, shape, and values in row-major order.
    ///
    /// # Errors
    /// If a name appears twice or a shape does not fit its values.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    ) -> Result<Self, ModelError> {
        let stored = tensors.into_iter().map(|(name, shape, values)| {
            let product = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
            if product != Some(values.len()) {
                return Err(FormatError::Shape { tensor: name, found: vec![values.len()], expected: shape });
            }
            Ok((name, Stored::in_memory(shape, values)))
        });
        Self::from_stored(stored).map_err(ModelError::Tensor)
    }

    pub(crate) fn from_stored(
        tensors: impl IntoIterator<Item = Result<(String, Stored), FormatError>>,
    ) -> Result<Self, FormatError> {
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            let (name, stored) = tensor?;
            if by_name.contains_key(&name) {
                return Err(FormatError::DuplicateTensor { tensor: name });
            }
            by_name.insert(name, stored);
        }
        Ok(Self { tensors: by_name })
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, slowest dimension first.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// Reads a tensor of rank 2. May be called from several threads.
    ///
    /// # Errors
    /// If there is no such tensor, it is not of rank 2, or its file cannot be read.
    pub fn matrix(&self, name: &str) -> Result<Matrix, ModelError> {
        let (shape, values) = self.read(name, 2).map_err(ModelError::Tensor)?;
        Ok(Matrix { rows: shape[0], cols: shape[1], values })
    }

    /// A tensor of rank 2, to be read a few rows at a time.
    ///
    /// # Errors
    /// If there is no such tensor or it is not of rank 2.
    pub fn rows<'a>(&'a self, name: &'a str) -> Result<Rows<'a>, ModelError> {
        let tensor = self.stored(name, 2).map_err(ModelError::Tensor)?;
        Ok(Rows { name, tensor })
    }

    /// Bytes of all tensors in their files.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(Stored::bytes).sum()
    }

    /// Bytes of a tensor in its file; none if there is no such tensor.
    #[must_use]
    pub fn stored_bytes_of(&self, name: &str) -> u64 {
        self.tensors.get(name).map_or(0, Stored::bytes)
    }

    /// Reads a tensor of rank 1, as exact as it is stored. Norm weights are factors, whatever the file holds.
    ///
    /// # Errors
    /// If there is no such tensor, it is not of rank 1, or its file cannot be read.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor = self.stored(name, 1).map_err(ModelError::Tensor)?;
        tensor.vector(name).map_err(ModelError::Tensor)
    }

    /// Replaces a tensor by parts of its rows, one after the other: name and shape of each.
    pub(crate) fn split_rows(
        &mut self,
        name: &str,
        parts: Vec<(String, Vec<usize>)>,
    ) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { tensor: name.to_owned() };
        let whole = self.tensors.get(name).ok_or_else(missing)?;
        let rows = parts.iter().map(|(_, shape)| shape[0]).sum();
        let expected = parts.first().map(|(_, shape)| [&[rows], &shape[1..]].concat()).unwrap_or_default();
        if whole.shape != expected {
            let found = whole.shape.clone();
            return Err(FormatError::Shape { tensor: name.to_owned(), found, expected });
        }
        let mut first = 0;
        let mut slices = Vec::new();
        for (part, shape) in parts {
            if self.tensors.contains_key(&part) {
                return Err(FormatError::DuplicateTensor { tensor: part });
            }
            slices.push((part, whole.slice(first, shape[0])));
            first += shape[0];
        }
        self.tensors.remove(name);
        self.tensors.extend(slices);
        Ok(())
    }

    /// Forgets the tensors that are not `used`.
    pub(crate) fn keep(&mut self, used: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| used(name));
    }

    /// Adds 1 to norm weights, where the file holds them less 1.
    pub(crate) fn complete_norms(&mut self) {
        self.tensors = std::mem::take(&mut self.tensors)
            .into_iter()
            .map(|(name, tensor)| match name.ends_with("norm.weight") {
                true => (name, tensor.with_plus(1.0)),
                false => (name, tensor),
            })
            .collect();
    }

    fn read(&self, name: &str, rank: usize) -> Result<(&[usize], Vec<bf16>), FormatError> {
        let tensor = self.stored(name, rank)?;
        Ok((&tensor.shape, tensor.values(name)?))
    }

    fn stored(&self, name: &str, rank: usize) -> Result<&Stored, FormatError> {
        let missing = || FormatError::MissingTensor { tensor: name.to_owned() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        match tensor.shape.len() {
            found if found == rank => Ok(tensor),
            found => Err(FormatError::Rank { tensor: name.to_owned(), found, expected: rank }),
        }
    }

    /// Hash of the configuration and of all tensors, as hex.
    pub(crate) fn fingerprint(
        &self,
        config: &ModelConfig,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<String, FormatError> {
        let (total, done) = (self.stored_bytes(), AtomicU64::new(0));
        let read = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        let tensors: Vec<_> = self.tensors.iter().collect();
        let hashes = tensors.par_iter().map(|(_, tensor)| tensor.hash(&read));
        let hashes: Vec<_> = hashes.collect::<Result<_, _>>()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{config:?}\n").as_bytes());
        for ((name, tensor), hash) in tensors.iter().zip(hashes) {
            hasher.update(format!("{name} {:?} {hash}\n", tensor.shape).as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

#[cfg(test)]
mod tests;
