//! Prepared products, with the algorithms that were found for them.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    super::{Gpu, Write, error::GpuError},
    Output, Sizes, Then,
    blas::{Handle, Input, Kind, Product},
    cache::{Cache, Found},
    search::{self, Timed},
};

/// Memory that algorithms may use while they run.
const WORKSPACE_BYTES: usize = 64 << 20;

/// Prepared products kept; a bound, as numbers of rows vary.
const MAX_PRODUCTS: usize = 1 << 14;

/// Products of one kind of inputs.
#[derive(Debug)]
pub(super) struct Plans {
    handle: Handle,
    kind: Kind,
    products: Mutex<HashMap<(Sizes, bool), Arc<Product>>>,
    found: Mutex<BTreeMap<Sizes, Found>>,
    cache: Option<Cache>,
}

// === impl Plans ===

impl Plans {
    pub(super) fn new(gpu: &Gpu, kind: Kind, cache_folder: Option<&Path>) -> Result<Self, GpuError> {
        let handle = Handle::new(gpu, WORKSPACE_BYTES)?;
        let cache =
            cache_folder.map(|folder| Cache::new(folder, (kind, gpu.dtype()), gpu.name(), handle.version()));
        let found = cache.as_ref().map(Cache::read).unwrap_or_default();
        Ok(Self { handle, kind, products: Mutex::default(), found: Mutex::new(found), cache })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.handle.gpu
    }

    pub(super) fn tune(&self, shapes: &[Sizes], then: Then) -> Result<Vec<(Sizes, Timed)>, GpuError> {
        let missing: Vec<Sizes> =
            shapes.iter().copied().filter(|sizes| !self.found.lock().contains_key(sizes)).collect();
        let mut results = Vec::new();
        for sizes in missing {
            let timed = search::search(&self.handle, self.kind, sizes, then)?;
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

    /// The caller has checked that the memory is of these sizes.
    pub(super) fn enqueue<T: Output>(
        &self,
        sizes: Sizes,
        inputs: (Input, Input),
        out: &mut impl Write<T>,
        keep: f32,
    ) -> Result<(), GpuError> {
        self.product(sizes, T::IS_F32)?.enqueue(&self.handle, inputs, out, keep)
    }

    /// The product of these sizes, prepared.
    fn product(&self, sizes: Sizes, is_f32: bool) -> Result<Arc<Product>, GpuError> {
        if let Some(product) = self.products.lock().get(&(sizes, is_f32)) {
            return Ok(Arc::clone(product));
        }
        let mut product = Product::new(&self.handle, sizes, self.kind, is_f32)?;
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
