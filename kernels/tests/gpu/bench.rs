//! Figures of the ops on the shapes of an 8B model, beside the card's own
//! rates: `scripts/test-gpu bench`.
#![expect(clippy::print_stdout, reason = "a table is what this is for")]

use baton_kernels::cuda::{
    Gemm, Gemv, Gpu, GpuError, Graph, Narrow, Weights,
    argmax::argmax,
    cudarc::driver::{CudaSlice, sys::CUevent_flags},
    embed::{Tokens, embed},
    gate::{Activation, gate},
    gemm::Sizes,
    gemv::MAX_ROWS,
    norm::Norm,
    random::fill_uniform,
    rope::{Places, PoolShape, Rope},
};
use half::bf16;

use crate::gpu;

/// Name, outputs and inputs of the 8B shape's products.
const SHAPES: [(&str, usize, usize); 5] = [
    ("qkv", 6144, 4096),
    ("o", 4096, 4096),
    ("gate_up", 28_672, 4096),
    ("down", 4096, 14_336),
    ("lm_head", 128_256, 4096),
];
const HIDDEN: usize = 4096;
const INNER: usize = 14_336;
const LAYERS: usize = 32;

/// Microseconds of what `ops` enqueues: the median of some replays.
fn micros(gpu: &Gpu, ops: impl Fn(&Gpu) -> Result<(), GpuError>) -> f64 {
    ops(gpu).unwrap();
    gpu.synchronize().unwrap();
    let graph = Graph::record(gpu, &ops).unwrap();
    timed(gpu, || graph.replay().unwrap())
}

fn timed(gpu: &Gpu, enqueue: impl Fn()) -> f64 {
    let moment = || gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    enqueue();
    let mut times: Vec<f32> = (0..7)
        .map(|_| {
            let begin = moment();
            enqueue();
            let end = moment();
            end.synchronize().unwrap();
            begin.elapsed_ms(&end).unwrap()
        })
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[times.len() / 2]) * 1e3
}

fn filled(gpu: &Gpu, seed: u64, len: usize, scale: f32) -> CudaSlice<bf16> {
    let mut memory = gpu.unset(len).unwrap();
    fill_uniform(gpu, seed, scale, &mut memory).unwrap();
    gpu.synchronize().unwrap();
    memory
}

/// Bytes read and written each second by a copy of 4 GB, in GB/s.
fn copy_rate(gpu: &Gpu) -> f64 {
    let len = 1 << 30;
    let (from, to) = (filled(gpu, 1, len, 1.0), std::cell::RefCell::new(gpu.unset::<bf16>(len).unwrap()));
    let micros = timed(gpu, || gpu.stream().memcpy_dtod(&from, &mut *to.borrow_mut()).unwrap());
    (4 * len) as f64 / micros / 1e3
}

/// Weights of one shape, copied so often that L2 does not hold them all.
struct Cold {
    memory: CudaSlice<bf16>,
    outputs: usize,
    inputs: usize,
}

impl Cold {
    fn new(gpu: &Gpu, outputs: usize, inputs: usize) -> Self {
        let copies = (600 << 20) / (2 * outputs * inputs) + 1;
        Self { memory: filled(gpu, 5, copies * outputs * inputs, 0.05), outputs, inputs }
    }

    fn copies(&self) -> usize {
        self.memory.len() / (self.outputs * self.inputs)
    }

    fn copy(&self, which: usize) -> Weights<'_> {
        let size = self.outputs * self.inputs;
        let data = self.memory.slice(which * size..(which + 1) * size);
        Weights { data, outputs: self.outputs, inputs: self.inputs }
    }
}

/// A cell that ops can write through a shared reference.
fn cell(gpu: &Gpu, len: usize) -> std::cell::RefCell<CudaSlice<bf16>> {
    std::cell::RefCell::new(filled(gpu, 7, len, 1.0))
}

fn gemv_table(gpu: &Gpu, copy: f64) {
    println!("\ngemv: GB/s of weights with overlap (copy moves {copy:.0} GB/s)");
    println!("{:>8} {:>14} {:>7} {:>7} {:>7} {:>7}  not overlapping: M=1, M=8", "", "", 1, 4, 8, 16);
    for (name, n, k) in SHAPES {
        let cold = Cold::new(gpu, n, k);
        let rate = |gpu: &Gpu, m: usize| {
            let (x, out) = (filled(gpu, 6, m * k, 1.0), cell(gpu, m * n));
            let all = micros(gpu, |gpu| {
                (0..cold.copies())
                    .try_for_each(|i| Gemv::new(cold.copy(i)).run(gpu, &x, &mut *out.borrow_mut()))
            });
            (cold.copies() * 2 * n * k) as f64 / all / 1e3
        };
        print!("{name:>8} {:>14}", format!("{n}x{k}"));
        for m in [1, 4, 8, 16] {
            print!(" {:>7.0}", rate(gpu, m));
        }
        let alone = gpu.overlapping(false);
        println!("  {:.0} {:.0}", rate(&alone, 1), rate(&alone, 8));
    }
}

fn gemm_table(gpu: &Gpu, rows: &[usize]) {
    let gemm = Gemm::new(gpu, None).unwrap();
    println!("\ncuBLASLt, weights not in L2: us, GB/s of all memory, TFLOP/s; first choice us");
    for &m in rows {
        for (name, n, k) in SHAPES {
            if name == "lm_head" && m > 512 {
                continue;
            }
            let timed = &gemm.tune(&[Sizes { n, k, m }]).unwrap()[0].1;
            let micros = f64::from(timed.best.micros);
            let bytes = 2 * (n * k + m * (n + k));
            println!(
                "{name:>8} M={m:<5} {micros:>8.1} us {:>6.0} GB/s {:>6.1} TF  first {:>8.1} of {}",
                bytes as f64 / micros / 1e3,
                (2 * m * n * k) as f64 / micros / 1e6,
                timed.first_micros,
                timed.candidates,
            );
        }
    }
}

fn small_table(gpu: &Gpu) {
    println!("\nother ops: us each, one of 20 in a row");
    let weight = filled(gpu, 1, HIDDEN, 1.0);
    let frequencies = gpu.upload(&vec![0.1_f32; 64]).unwrap();
    let pool = PoolShape { pages: 128, layers: 1, page_tokens: 64, kv_heads: 8, head_dim: 128 };
    for m in [1, 8, 64, 256, 8192] {
        let positions = gpu.upload(&(0..m as i32).collect::<Vec<_>>()).unwrap();
        let (x, y, out) = (cell(gpu, m * HIDDEN), cell(gpu, m * HIDDEN), cell(gpu, m * HIDDEN));
        let (qkv, pages) = (cell(gpu, m * 6144), cell(gpu, pool.pages * pool.page_elements()));
        let (wide, inner) = (filled(gpu, 2, m * 2 * INNER, 1.0), cell(gpu, m * INNER));
        let norm = || Norm { weight: weight.as_view(), eps: 1e-5 };
        let each = |op: &dyn Fn(&Gpu) -> Result<(), GpuError>| {
            micros(gpu, |gpu| (0..20).try_for_each(|_| op(gpu))) / 20.0
        };
        let add = each(&|gpu| norm().add(gpu, &mut *x.borrow_mut(), &*y.borrow(), &mut *out.borrow_mut()));
        let turn = each(&|gpu| {
            let frequencies = frequencies.as_view();
            let rope = Rope { frequencies, magnitude: 1.0, heads: 32, layer: 0, pool };
            let places = Places { positions: positions.as_view(), slots: positions.as_view() };
            rope.write(gpu, &places, &mut *qkv.borrow_mut(), &mut *pages.borrow_mut())
        });
        let gated = each(&|gpu| gate(gpu, Activation::Silu, INNER, &wide, &mut *inner.borrow_mut()));
        println!("M={m:<5} add_rms_norm {add:>7.2}  rope_write {turn:>7.2}  gate {gated:>7.2}");
    }
    let tokens = std::cell::RefCell::new(gpu.zeros::<i32>(8).unwrap());
    let logits = gpu.upload(&vec![0.5_f32; 8 * 128_256]).unwrap();
    let one = micros(gpu, |gpu| {
        let (logits, mut tokens) = (logits.slice(..128_256), tokens.borrow_mut());
        argmax(gpu, &logits, &mut tokens.slice_mut(..1))
    });
    let eight = micros(gpu, |gpu| argmax(gpu, &logits, &mut *tokens.borrow_mut()));
    println!("argmax f32 of 128256: 1 row {one:.1} us, 8 rows {eight:.1} us");
}

fn gap_table(gpu: &Gpu) {
    let table = filled(gpu, 1, 8 * 64, 1.0);
    let tokens = gpu.upload(&[1]).unwrap();
    let out = cell(gpu, 64);
    let each = |gpu: &Gpu| {
        let one = |gpu: &Gpu| {
            let weights = Weights { data: table.as_view(), outputs: 8, inputs: 64 };
            let rows = Tokens { rows: tokens.as_view(), drawn: None };
            embed(gpu, &weights, &rows, 1.0, &mut *out.borrow_mut())
        };
        micros(gpu, |gpu| (0..400).try_for_each(|_| one(gpu))) / 400.0
    };
    let (overlapping, alone) = (each(gpu), each(&gpu.overlapping(false)));
    println!("\ntiny kernels in a graph: {overlapping:.2} us each overlapping, {alone:.2} us not");
}

/// All weights of the 8B shape, and a step's buffers for `m` rows.
struct Model {
    weights: CudaSlice<bf16>,
    gain: CudaSlice<bf16>,
    m: usize,
    x: std::cell::RefCell<CudaSlice<bf16>>,
    normed: std::cell::RefCell<CudaSlice<bf16>>,
    qkv: std::cell::RefCell<CudaSlice<bf16>>,
    inner: std::cell::RefCell<CudaSlice<bf16>>,
    logits: std::cell::RefCell<CudaSlice<f32>>,
    tokens: std::cell::RefCell<CudaSlice<i32>>,
}

impl Model {
    fn weight(&self, layer: usize, which: usize) -> Weights<'_> {
        let size = |(_, n, k): (&str, usize, usize)| n * k;
        let layer_size: usize = SHAPES[..4].iter().copied().map(size).sum();
        let at = layer * layer_size + SHAPES[..which].iter().copied().map(size).sum::<usize>();
        let (_, outputs, inputs) = SHAPES[which];
        let at = if which == 4 { LAYERS * layer_size } else { at };
        Weights { data: self.weights.slice(at..at + outputs * inputs), outputs, inputs }
    }

    /// A decode step without attention and rotary embedding.
    fn step(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let (mut x, mut qkv) = (self.x.borrow_mut(), self.qkv.borrow_mut());
        let (mut inner, mut logits) = (self.inner.borrow_mut(), self.logits.borrow_mut());
        let norm = || Norm { weight: self.gain.as_view(), eps: 1e-5 };
        let plain = |layer, which| Gemv::new(self.weight(layer, which));
        let normed = |layer, which| Gemv::normed(self.weight(layer, which), norm());
        for layer in 0..LAYERS {
            normed(layer, 0).run(gpu, &*x, &mut *qkv)?;
            plain(layer, 1).add(gpu, &qkv.slice(..self.m * HIDDEN), &mut *x)?;
            normed(layer, 2).gated(gpu, Activation::Silu, &*x, &mut *inner)?;
            plain(layer, 3).add(gpu, &*inner, &mut *x)?;
        }
        normed(0, 4).run_f32(gpu, &*x, &mut *logits)?;
        argmax(gpu, &*logits, &mut *self.tokens.borrow_mut())
    }
}

impl Model {
    /// The same with norms of their own.
    fn narrow_step(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let (mut x, mut normed) = (self.x.borrow_mut(), self.normed.borrow_mut());
        let (mut qkv, mut inner) = (self.qkv.borrow_mut(), self.inner.borrow_mut());
        let mut logits = self.logits.borrow_mut();
        let norm = || Norm { weight: self.gain.as_view(), eps: 1e-5 };
        let product = |layer, which| Narrow::new(gpu, self.weight(layer, which)).unwrap();
        for layer in 0..LAYERS {
            norm().run(gpu, &*x, &mut *normed)?;
            product(layer, 0).run(gpu, &*normed, &mut *qkv)?;
            product(layer, 1).add(gpu, &qkv.slice(..self.m * HIDDEN), &mut *x)?;
            norm().run(gpu, &*x, &mut *normed)?;
            product(layer, 2).gated(gpu, Activation::Silu, &*normed, &mut *inner)?;
            product(layer, 3).add(gpu, &*inner, &mut *x)?;
        }
        norm().run(gpu, &*x, &mut *normed)?;
        product(0, 4).run_f32(gpu, &*normed, &mut *logits)?;
        argmax(gpu, &*logits, &mut *self.tokens.borrow_mut())
    }
}

fn narrow_table(gpu: &Gpu) {
    println!("\nnarrow products, weights not in L2: us, GB/s of weights");
    for m in [1, 8, 16, 32, 64, 96, 128] {
        print!("M={m:<4}");
        for (name, n, k) in SHAPES {
            let cold = Cold::new(gpu, n, k);
            let (x, out) = (filled(gpu, 6, m * k, 1.0), cell(gpu, m * n));
            let all = micros(gpu, |gpu| {
                let one = |i| Narrow::new(gpu, cold.copy(i)).unwrap().run(gpu, &x, &mut *out.borrow_mut());
                (0..cold.copies()).try_for_each(one)
            });
            let one = all / cold.copies() as f64;
            print!("  {name} {one:.1} us {:.0}", (2 * n * k) as f64 / one / 1e3);
        }
        println!();
    }
}

fn step_table(gpu: &Gpu) {
    println!("\na step of the 8B shape but for attention: ms, GB/s of weights");
    let len = LAYERS * (6144 + 4096 + 28_672 + 14_336) * HIDDEN + 128_256 * HIDDEN;
    let mut model = Model {
        weights: filled(gpu, 3, len, 0.02),
        gain: filled(gpu, 4, HIDDEN, 1.0),
        m: 0,
        x: cell(gpu, 0),
        normed: cell(gpu, 0),
        qkv: cell(gpu, 0),
        inner: cell(gpu, 0),
        logits: std::cell::RefCell::new(gpu.zeros(0).unwrap()),
        tokens: std::cell::RefCell::new(gpu.zeros(0).unwrap()),
    };
    for m in [1, 8, 16, 32, 64, 128] {
        model.m = m;
        model.x = cell(gpu, m * HIDDEN);
        model.qkv = cell(gpu, m * 6144);
        model.inner = cell(gpu, m * INNER);
        model.logits = std::cell::RefCell::new(gpu.zeros(m * 128_256).unwrap());
        model.tokens = std::cell::RefCell::new(gpu.zeros(m).unwrap());
        model.normed = cell(gpu, m * HIDDEN);
        let rate = |ms: f64| (2 * len) as f64 / ms / 1e6;
        if m <= MAX_ROWS {
            let step = |gpu: &Gpu| micros(gpu, |gpu| model.step(gpu)) / 1e3;
            let (ms, alone) = (step(gpu), step(&gpu.overlapping(false)));
            println!("M={m:<3} gemv   {ms:.3} ms, {:.0} GB/s; not overlapping {alone:.3} ms", rate(ms));
        }
        let step = |gpu: &Gpu| micros(gpu, |gpu| model.narrow_step(gpu)) / 1e3;
        let (ms, alone) = (step(gpu), step(&gpu.overlapping(false)));
        println!("M={m:<3} narrow {ms:.3} ms, {:.0} GB/s; not overlapping {alone:.3} ms", rate(ms));
    }
}

#[test]
#[ignore = "prints figures"]
fn bench() {
    let gpu = gpu();
    let copy = copy_rate(&gpu);
    println!("{}: copy {copy:.0} GB/s", gpu.name());
    gap_table(&gpu);
    small_table(&gpu);
    gemv_table(&gpu, copy);
    narrow_table(&gpu);
    step_table(&gpu);
    gemm_table(&gpu, &[8, 16, 32, 64, 128, 256, 512, 2048, 8192]);
}
