//! Sequences in a shuffled pool in which everything else is NaN, and the attention of any
//! of their positions by the reference.

use baton_kernels::{
    cuda::{
        Dtype, Gpu, Half,
        attention::{Attention, Paged},
        cudarc::driver::CudaSlice,
        rope::{KvForm, PoolShape},
    },
    reference,
};

/// Rows are in this one of three layers.
const LAYER: usize = 1;
const LAYERS: usize = 3;

/// Sizes of heads and pages, and what these hold.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_tokens: usize,
    pub form: KvForm,
}

/// Every head dimension, groups from 1 to 16, pages from 16 to 128.
pub const SHAPES: [Shape; 9] = [
    Shape::new(32, 8, 128, 64),
    Shape::new(9, 3, 64, 64),
    Shape::new(8, 8, 64, 16),
    Shape::new(8, 1, 128, 48),
    Shape::new(16, 1, 128, 32),
    Shape::new(12, 4, 96, 32),
    Shape::new(8, 4, 256, 64),
    Shape::new(10, 1, 64, 128),
    Shape::new(4, 4, 128, 64),
];

/// Whether a sanitizer looks on (`BATON_SANITIZED`), which takes a thousand times as long. Then
/// tests take the same paths with less: sequences still have several pages, tiles and shares.
pub fn is_sanitized() -> bool {
    std::env::var_os("BATON_SANITIZED").is_some()
}

/// `all`, or `few` of them where a sanitizer looks on.
pub fn some_of<T: Clone>(all: &[T], few: usize) -> Vec<T> {
    all[..if is_sanitized() { few } else { all.len() }].to_vec()
}

/// The length of a sequence, or what a sanitizer has time for.
pub fn length(tokens: usize) -> usize {
    tokens.min(if is_sanitized() { 400 } else { usize::MAX })
}

/// Each of `shapes`, and the same over pages in fp8.
pub fn in_both_forms<const N: usize>(shapes: [Shape; N]) -> impl Iterator<Item = Shape> {
    let forms = |shape| [KvForm::Plain, KvForm::Fp8].map(|form| Shape { form, ..shape });
    shapes.into_iter().flat_map(forms)
}

// === impl Shape ===

impl Shape {
    const fn new(heads: usize, kv_heads: usize, head_dim: usize, page_tokens: usize) -> Self {
        Self { heads, kv_heads, head_dim, page_tokens, form: KvForm::Plain }
    }
}

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
            form: shape.form,
            pages: used + 3,
            layers: LAYERS,
            page_tokens: shape.page_tokens,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let elements = 2 * shape.kv_heads * shape.head_dim;
        let row = pool_shape.row_halves();
        let mut free: Vec<usize> = (0..pool_shape.pages).collect();
        fastrand::Rng::with_seed(9).shuffle(&mut free);
        // No number, in any form.
        let mut pool = vec![bytemuck::cast(u16::MAX); pool_shape.pages * pool_shape.page_halves()];
        // What is beyond a sequence's pages must not be looked at.
        let mut table = vec![i32::MAX; sequences.len() * max_pages];
        let mut cached = Vec::new();
        for (i, (len, seed)) in sequences.iter().enumerate() {
            let numbers: Vec<f32> = random(gpu, *seed, len * elements, 1.0);
            let rows = numbers.chunks(elements).map(|row| held(gpu, &shape, row));
            let (rows, numbers): (Vec<_>, Vec<_>) = rows.unzip();
            for (at, rows) in rows.chunks(shape.page_tokens).enumerate() {
                let page = free.pop().unwrap();
                table[i * max_pages + at] = page as i32;
                let start = (page * LAYERS + LAYER) * shape.page_tokens * row;
                pool[start..start + rows.len() * row].copy_from_slice(&rows.concat());
            }
            cached.push(numbers.concat());
        }
        let (pool, table) = (gpu.upload(&pool).unwrap(), gpu.upload(&table).unwrap());
        let tolerance = match (gpu.dtype(), shape.form) {
            (Dtype::Bf16, _) => 1e-2,
            (Dtype::F16, KvForm::Plain) => 1.3e-3,
            (Dtype::F16, KvForm::Fp8) => 2e-3,
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

/// A row as pages hold it, and the numbers that it stands for then.
fn held(gpu: &Gpu, shape: &Shape, row: &[f32]) -> (Vec<Half>, Vec<f32>) {
    match shape.form {
        KvForm::Plain => (row.iter().map(|x| gpu.dtype().round(*x)).collect(), row.to_vec()),
        KvForm::Fp8 => {
            let bytes = reference::fp8_row(row, shape.head_dim);
            (bytemuck::pod_collect_to_vec(&bytes), reference::of_fp8_row(&bytes, shape.head_dim))
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
