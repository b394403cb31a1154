//! Sequences in a shuffled pool in which everything else is NaN, and the attention of any
//! of their positions by the reference.

use baton_kernels::{
    cuda::{
        Dtype, Gpu, Half,
        attention::{Attention, Paged},
        cudarc::driver::CudaSlice,
        rope::PoolShape,
    },
    reference,
};

/// Rows are in this one of three layers.
const LAYER: usize = 1;
const LAYERS: usize = 3;

/// Sizes of heads and pages.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_tokens: usize,
}

/// Every head dimension, groups from 1 to 16, pages from 16 to 128.
pub const SHAPES: [Shape; 9] = [
    Shape { heads: 32, kv_heads: 8, head_dim: 128, page_tokens: 64 },
    Shape { heads: 9, kv_heads: 3, head_dim: 64, page_tokens: 64 },
    Shape { heads: 8, kv_heads: 8, head_dim: 64, page_tokens: 16 },
    Shape { heads: 8, kv_heads: 1, head_dim: 128, page_tokens: 48 },
    Shape { heads: 16, kv_heads: 1, head_dim: 128, page_tokens: 32 },
    Shape { heads: 12, kv_heads: 4, head_dim: 96, page_tokens: 32 },
    Shape { heads: 8, kv_heads: 4, head_dim: 256, page_tokens: 64 },
    Shape { heads: 10, kv_heads: 1, head_dim: 64, page_tokens: 128 },
    Shape { heads: 4, kv_heads: 4, head_dim: 128, page_tokens: 64 },
];

/// Some sequences of random keys and values.
pub struct Fixture {
    pub shape: Shape,
    pub pool_shape: PoolShape,
    /// `[position][K|V][kv_head][head_dim]` of each sequence.
    cached: Vec<Vec<f32>>,
    pool: CudaSlice<Half>,
    table: CudaSlice<i32>,
    pub max_pages: usize,
    /// Relative error of a head.
    tolerance: f64,
}

impl Fixture {
    /// Sequences of these lengths. The same `seeds` give the same rows wherever they lie.
    pub fn new(gpu: &Gpu, shape: Shape, sequences: &[(usize, u64)]) -> Self {
        let pages = |len: usize| len.div_ceil(shape.page_tokens);
        let used: usize = sequences.iter().map(|(len, _)| pages(*len)).sum();
        let max_pages = sequences.iter().map(|(len, _)| pages(*len)).max().unwrap() + 2;
        let pool_shape = PoolShape {
            pages: used + 3,
            layers: LAYERS,
            page_tokens: shape.page_tokens,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let row = pool_shape.row_elements();
        let mut free: Vec<usize> = (0..pool_shape.pages).collect();
        fastrand::Rng::with_seed(9).shuffle(&mut free);
        let mut pool = vec![f32::NAN; pool_shape.pages * pool_shape.page_elements()];
        // What is beyond a sequence's pages must not be looked at.
        let mut table = vec![i32::MAX; sequences.len() * max_pages];
        let mut cached = Vec::new();
        for (i, (len, seed)) in sequences.iter().enumerate() {
            let rows: Vec<f32> = random(gpu, *seed, len * row, 1.0);
            for (at, rows) in rows.chunks(shape.page_tokens * row).enumerate() {
                let page = free.pop().unwrap();
                table[i * max_pages + at] = page as i32;
                let start = (page * LAYERS + LAYER) * shape.page_tokens * row;
                pool[start..start + rows.len()].copy_from_slice(rows);
            }
            cached.push(rows);
        }
        let (pool, table) = (put(gpu, &pool), gpu.upload(&table).unwrap());
        let tolerance = match gpu.dtype() {
            Dtype::Bf16 => 1e-2,
            Dtype::F16 => 1.3e-3,
        };
        Self { shape, pool_shape, cached, pool, table, max_pages, tolerance }
    }

    pub fn pages(&self) -> Paged<'_> {
        Paged {
            shape: self.pool_shape,
            pool: self.pool.as_view(),
            table: self.table.as_view(),
            max_pages: self.max_pages,
        }
    }

    pub fn attention(&self, window: Option<usize>, cap: Option<f32>) -> Attention {
        let scale = (self.shape.head_dim as f32).powf(-0.5);
        Attention { heads: self.shape.heads, scale, cap, window, layer: LAYER }
    }

    pub fn q_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Checks the output of the token at a position of a sequence, head by head.
    #[track_caller]
    pub fn check(&self, attention: &Attention, (sequence, position): (usize, usize), q: &[f32], out: &[f32]) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let first = attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for at in first..=position {
                let row = &self.cached[sequence][at * 2 * kv_heads * head_dim..];
                keys.push(&row[kv * head_dim..(kv + 1) * head_dim]);
                values.push(&row[(kv_heads + kv) * head_dim..(kv_heads + kv + 1) * head_dim]);
            }
            let at = head * head_dim..(head + 1) * head_dim;
            let q = &q[at.clone()];
            let expected = reference::attention(q, &keys, &values, attention.scale, attention.cap);
            let found = out[at].iter().map(|x| f64::from(*x));
            let off: f64 = found.zip(&expected).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
            let size: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error = (off / size).sqrt();
            // Written so that NaN fails.
            assert!(
                error < self.tolerance,
                "{:?} {attention:?}: sequence {sequence} position {position} head {head} is off by {error}",
                self.shape
            );
        }
    }
}

/// The first card.
pub fn gpu() -> Gpu {
    Gpu::open(0, Dtype::Bf16).expect("these tests need an NVIDIA card")
}

/// The first card, computing in each dtype in turn.
pub fn gpus() -> impl Iterator<Item = Gpu> {
    let open = |dtype| Gpu::open(0, dtype).expect("these tests need an NVIDIA card");
    Dtype::ALL.into_iter().map(open)
}

/// Random numbers from [-scale, scale), rounded.
pub fn random(gpu: &Gpu, seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    let dtype = gpu.dtype();
    (0..len).map(|_| dtype.value(dtype.round(scale * (2.0 * random.f32() - 1.0)))).collect()
}

/// Numbers brought to the card.
pub fn put(gpu: &Gpu, values: &[f32]) -> CudaSlice<Half> {
    let halves: Vec<Half> = values.iter().map(|value| gpu.dtype().round(*value)).collect();
    gpu.upload(&halves).unwrap()
}

/// Numbers that the card holds.
pub fn numbers(gpu: &Gpu, memory: &CudaSlice<Half>) -> Vec<f32> {
    gpu.download(memory).unwrap().into_iter().map(|half| gpu.dtype().value(half)).collect()
}

/// Device memory that shows what was not written.
pub fn poisoned(gpu: &Gpu, len: usize) -> CudaSlice<Half> {
    put(gpu, &vec![f32::NAN; len])
}
