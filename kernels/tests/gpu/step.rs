//! A decode step of the 8B shape, and what it takes with a stage left out: where the time
//! goes that the ops alone do not explain.
#![expect(clippy::print_stdout, reason = "a table is what this is for")]

use std::cell::RefCell;

use baton_kernels::{
    Draw,
    cuda::{
        Gpu, GpuError, Half, Narrow, Weights,
        attention::{Attention, Decode, Inputs, Limits, Paged, Shares, Split},
        cudarc::driver::CudaSlice,
        gate::Activation,
        norm::Norm,
        rope::{KvForm, Places, PoolShape, Rope},
        sample::sample,
    },
};

use crate::bench::{HIDDEN, INNER, LAYERS, SHAPES, cell, filled, micros};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const PAGE_TOKENS: usize = 64;
const CONTEXT: usize = 1056;

/// What a step consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Norms,
    Rope,
    Attention,
    Products,
    Logits,
}

const STAGES: [(&str, Stage); 5] = [
    ("norms", Stage::Norms),
    ("rope", Stage::Rope),
    ("attention", Stage::Attention),
    ("products", Stage::Products),
    ("logits", Stage::Logits),
];

/// All weights of the 8B shape.
struct Model {
    weights: CudaSlice<Half>,
    gain: CudaSlice<Half>,
    frequencies: CudaSlice<f32>,
}

/// Sequences of `CONTEXT` tokens, and buffers between ops.
struct Scene {
    rows: usize,
    pool: PoolShape,
    pages: RefCell<CudaSlice<Half>>,
    table: CudaSlice<i32>,
    lengths: CudaSlice<i32>,
    positions: CudaSlice<i32>,
    slots: CudaSlice<i32>,
    decode: RefCell<Decode>,
    shares: RefCell<Shares>,
    x: RefCell<CudaSlice<Half>>,
    normed: RefCell<CudaSlice<Half>>,
    qkv: RefCell<CudaSlice<Half>>,
    attended: RefCell<CudaSlice<Half>>,
    inner: RefCell<CudaSlice<Half>>,
    logits: RefCell<CudaSlice<f32>>,
    draws: CudaSlice<i32>,
    tokens: RefCell<CudaSlice<i32>>,
}

// === impl Model ===

impl Model {
    fn new(gpu: &Gpu) -> Self {
        let layer: usize = SHAPES[..4].iter().map(|(_, n, k)| n * k).sum();
        let len = LAYERS * layer + SHAPES[4].1 * SHAPES[4].2;
        Self {
            weights: filled(gpu, 3, len, 0.02),
            gain: filled(gpu, 4, HIDDEN, 1.0),
            frequencies: gpu.upload(&vec![0.1_f32; HEAD_DIM / 2]).unwrap(),
        }
    }

    fn weight(&self, layer: usize, which: usize) -> Weights<'_> {
        let size = |(_, n, k): &(&str, usize, usize)| n * k;
        let layer_size: usize = SHAPES[..4].iter().map(size).sum();
        let in_layer: usize = SHAPES[..which].iter().map(size).sum();
        let (_, outputs, inputs) = SHAPES[which];
        let at = if which == 4 { LAYERS * layer_size } else { layer * layer_size + in_layer };
        Weights { data: self.weights.slice(at..at + outputs * inputs), outputs, inputs }
    }

    /// A step without the stage `out`, with products as of 9 to 64 rows.
    fn step(&self, gpu: &Gpu, scene: &Scene, out: Option<Stage>) -> Result<(), GpuError> {
        let has = |stage| out != Some(stage);
        let norm = || Norm { weight: self.gain.as_view(), eps: 1e-5 };
        let product = |layer, which| Narrow::new(gpu, self.weight(layer, which)).unwrap();
        let (mut x, mut normed) = (scene.x.borrow_mut(), scene.normed.borrow_mut());
        let (mut qkv, mut attended) = (scene.qkv.borrow_mut(), scene.attended.borrow_mut());
        let (mut inner, mut logits) = (scene.inner.borrow_mut(), scene.logits.borrow_mut());
        if has(Stage::Attention) {
            let (decode, mut shares) = (scene.decode.borrow(), scene.shares.borrow_mut());
            decode.plan(gpu, &scene.lengths, CONTEXT.div_ceil(PAGE_TOKENS), &mut shares)?;
        }
        for layer in 0..LAYERS {
            if has(Stage::Norms) {
                norm().run(gpu, &*x, &mut *normed)?;
            }
            if has(Stage::Products) {
                product(layer, 0).run(gpu, &*normed, &mut *qkv)?;
            }
            if has(Stage::Rope) {
                scene.turn(gpu, &self.frequencies, layer, &mut qkv)?;
            }
            if has(Stage::Attention) {
                scene.attend(gpu, layer, &qkv, &mut attended)?;
            }
            if has(Stage::Products) {
                product(layer, 1).add(gpu, &*attended, &mut *x)?;
            }
            if has(Stage::Norms) {
                norm().run(gpu, &*x, &mut *normed)?;
            }
            if has(Stage::Products) {
                product(layer, 2).gated(gpu, Activation::Silu, &*normed, &mut *inner)?;
                product(layer, 3).add(gpu, &*inner, &mut *x)?;
            }
        }
        if has(Stage::Logits) {
            norm().run(gpu, &*x, &mut *normed)?;
            product(0, 4).run_f32(gpu, &*normed, &mut *logits)?;
            sample(gpu, &*logits, &scene.draws, &mut *scene.tokens.borrow_mut())?;
        }
        Ok(())
    }
}

// === impl Scene ===

impl Scene {
    fn new(gpu: &Gpu, rows: usize) -> Self {
        let each = CONTEXT.div_ceil(PAGE_TOKENS);
        let pool = PoolShape {
            form: KvForm::Plain,
            pages: rows * each,
            layers: LAYERS,
            page_tokens: PAGE_TOKENS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
        };
        let last = CONTEXT - 1;
        let slot = |row: usize| ((row * each + last / PAGE_TOKENS) * PAGE_TOKENS + last % PAGE_TOKENS) as i32;
        let limits = Limits { sequences: rows, tokens: rows * CONTEXT };
        let decode = Decode::new(gpu, HEADS, pool, Split::Even, limits).unwrap();
        Self {
            pages: cell(gpu, pool.pages * pool.page_halves()),
            table: gpu.upload(&(0..pool.pages as i32).collect::<Vec<_>>()).unwrap(),
            lengths: gpu.upload(&vec![CONTEXT as i32; rows]).unwrap(),
            positions: gpu.upload(&vec![last as i32; rows]).unwrap(),
            slots: gpu.upload(&(0..rows).map(slot).collect::<Vec<_>>()).unwrap(),
            shares: RefCell::new(decode.shares(gpu, None).unwrap()),
            decode: RefCell::new(decode),
            x: cell(gpu, rows * HIDDEN),
            normed: cell(gpu, rows * HIDDEN),
            qkv: cell(gpu, rows * SHAPES[0].1),
            attended: cell(gpu, rows * HIDDEN),
            inner: cell(gpu, rows * INNER),
            logits: RefCell::new(gpu.zeros(rows * SHAPES[4].1).unwrap()),
            draws: gpu.upload(&Draw::LIKELIEST.words().repeat(rows)).unwrap(),
            tokens: RefCell::new(gpu.zeros(rows).unwrap()),
            rows,
            pool,
        }
    }

    fn turn(
        &self,
        gpu: &Gpu,
        frequencies: &CudaSlice<f32>,
        layer: usize,
        qkv: &mut CudaSlice<Half>,
    ) -> Result<(), GpuError> {
        let frequencies = frequencies.as_view();
        let rope = Rope { frequencies, magnitude: 1.0, heads: HEADS, layer, pool: self.pool };
        let places = Places { positions: self.positions.as_view(), slots: self.slots.as_view() };
        rope.write(gpu, &places, qkv, &mut *self.pages.borrow_mut())
    }

    fn attend(
        &self,
        gpu: &Gpu,
        layer: usize,
        qkv: &CudaSlice<Half>,
        attended: &mut CudaSlice<Half>,
    ) -> Result<(), GpuError> {
        let attention = Attention { heads: HEADS, scale: 0.0884, cap: None, window: None, layer };
        let (pages, shares) = (self.pages.borrow(), self.shares.borrow());
        let max_pages = CONTEXT.div_ceil(PAGE_TOKENS);
        let paged = Paged { shape: self.pool, pool: pages.as_view(), table: self.table.as_view(), max_pages };
        let inputs = Inputs { q: qkv, pages: &paged, kv_len: &self.lengths, shares: &shares };
        self.decode.borrow_mut().run(gpu, &attention, &inputs, attended)
    }
}

/// Prints what a step takes, and how much less without each of its stages.
pub(crate) fn table(gpu: &Gpu) {
    println!("\na decode step of the 8B shape, context {CONTEXT}: ms, and ms saved by leaving out");
    let model = Model::new(gpu);
    for rows in [1, 8, 32, 64, 128] {
        let scene = Scene::new(gpu, rows);
        let ms = |out| micros(gpu, |gpu| model.step(gpu, &scene, out)) / 1e3;
        let all = ms(None);
        print!("batch {:<4} {all:.3}", scene.rows);
        for (name, stage) in STAGES {
            print!("  {name} {:.3}", all - ms(Some(stage)));
        }
        println!();
    }
}
