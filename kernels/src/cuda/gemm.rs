//! Products of matrices through cuBLASLt, with algorithms found by timing.
//!
//! - `blas`: cuBLASLt's handles, and one product with one algorithm.
//! - `search`: the candidates of a shape, timed with weights that are not in L2.
//! - `cache`: what was found, on disk, for each card and version of cuBLASLt.
//!
//! What was timed for a number of rows is used for all numbers of rows down to
//! the next one timed. A shape that was not timed gets cuBLASLt's first choice.

mod blas;
mod cache;
mod search;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use half::bf16;
use parking_lot::Mutex;

use self::{
    blas::{Handle, Product},
    cache::Cache,
};
pub use self::{cache::Found, search::Timed};
use super::{
    Gpu, Read, Weights, Write,
    error::{GpuError, exactly, multiple},
};

const OP: &str = "gemm";

/// Memory that algorithms may use while they run.
const WORKSPACE_BYTES: usize = 64 << 20;

/// Prepared products kept; a bound, as numbers of rows vary.
const MAX_PRODUCTS: usize = 1 << 14;

/// What outputs of products may be.
pub trait Output: cudarc::driver::DeviceRepr {
    /// Whether it is `f32`, not `bf16`.
    const IS_F32: bool;
}

impl Output for bf16 {
    const IS_F32: bool = false;
}

impl Output for f32 {
    const IS_F32: bool = true;
}

/// Sizes of a product: `out[m][n]` = sum over k of `x[m][k] * w[n][k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sizes {
    /// Outputs of a row.
    pub n: usize,
    /// Inputs of a row.
    pub k: usize,
    /// Rows.
    pub m: usize,
}

/// cuBLASLt on one stream.
#[derive(Debug)]
pub struct Gemm {
    handle: Handle,
    products: Mutex<HashMap<(Sizes, bool), Arc<Product>>>,
    found: Mutex<BTreeMap<Sizes, Found>>,
    cache: Option<Cache>,
}

// === impl Gemm ===

impl Gemm {
    /// For `gpu`'s stream. Algorithms found by [`Self::tune`] are kept in
    /// `cache_folder`, if one is given, and read from there now.
    ///
    /// # Errors
    /// When there is no cuBLASLt or no memory for its workspace.
    pub fn new(gpu: &Gpu, cache_folder: Option<&Path>) -> Result<Self, GpuError> {
        let handle = Handle::new(gpu, WORKSPACE_BYTES)?;
        let cache = cache_folder.map(|folder| Cache::new(folder, gpu.name(), handle.version()));
        let found = cache.as_ref().map(Cache::read).unwrap_or_default();
        Ok(Self { handle, products: Mutex::default(), found: Mutex::new(found), cache })
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn run<T: Output>(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<bf16>,
        out: &mut impl Write<T>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, 0.0)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit or cuBLASLt fails.
    pub fn add(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<bf16>,
        out: &mut impl Write<bf16>,
    ) -> Result<(), GpuError> {
        self.enqueue(weights, x, out, 1.0)
    }

    /// Finds the fastest algorithm for each of `shapes` that has none yet, and
    /// keeps them. Takes up to some hundred milliseconds a shape, and up to
    /// some hundred MB for the time.
    ///
    /// # Errors
    /// When memory is short or cuBLASLt fails.
    pub fn tune(&self, shapes: &[Sizes]) -> Result<Vec<(Sizes, Timed)>, GpuError> {
        let missing: Vec<Sizes> =
            shapes.iter().copied().filter(|sizes| !self.found.lock().contains_key(sizes)).collect();
        let mut results = Vec::new();
        for sizes in missing {
            let timed = search::search(&self.handle, sizes)?;
            self.found.lock().insert(sizes, timed.best.clone());
            results.push((sizes, timed));
        }
        if !results.is_empty() {
            // What was prepared before may be slower.
            self.products.lock().clear();
            if let Some(cache) = &self.cache {
                cache.write(&self.found.lock());
            }
        }
        Ok(results)
    }

    fn enqueue<T: Output>(
        &self,
        weights: &Weights<'_>,
        x: &impl Read<bf16>,
        out: &mut impl Write<T>,
        keep: f32,
    ) -> Result<(), GpuError> {
        let (n, k) = (weights.outputs, weights.inputs);
        multiple(OP, "inputs", k, 8)?;
        exactly(OP, "weights", weights.data.len(), n * k)?;
        if x.is_empty() {
            return exactly(OP, "elements out", out.len(), 0);
        }
        multiple(OP, "elements in", x.len(), k)?;
        let m = x.len() / k;
        exactly(OP, "elements out", out.len(), m * n)?;
        let product = self.product(Sizes { n, k, m }, T::IS_F32)?;
        product.enqueue(&self.handle, (&weights.data, x), out, keep)
    }

    /// The product of these sizes, prepared.
    fn product(&self, sizes: Sizes, is_f32: bool) -> Result<Arc<Product>, GpuError> {
        if let Some(product) = self.products.lock().get(&(sizes, is_f32)) {
            return Ok(Arc::clone(product));
        }
        let mut product = Product::new(sizes, is_f32)?;
        // The one timed for the next greater number of rows, else the greatest.
        let group = Sizes { m: 0, ..sizes }..=Sizes { m: usize::MAX, ..sizes };
        let algorithm = {
            let found = self.found.lock();
            let next = found.range(sizes..=*group.end()).next();
            next.or_else(|| found.range(group).next_back()).map(|(_, found)| found.algorithm)
        };
        product.choose(&self.handle, algorithm)?;
        let product = Arc::new(product);
        let mut products = self.products.lock();
        if products.len() >= MAX_PRODUCTS {
            products.clear();
        }
        products.insert((sizes, is_f32), Arc::clone(&product));
        Ok(product)
    }
}
