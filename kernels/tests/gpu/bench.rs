//! Figures of the ops on the shapes of an 8B model, beside the card's own
//! rates: `scripts/test-gpu bench`.
#![expect(clippy::print_stdout, reason = "a table is what this is for")]

use baton_kernels::{
    Draw,
    cuda::{
        Gemm, Gemv, Gpu, GpuError, Graph, Half, Narrow, Weights, Wide,
        cudarc::driver::{CudaSlice, sys::CUevent_flags},
        embed::{Tokens, embed},
        gate::{Activation, gate},
        gemm::{Sizes, Then},
        norm::Norm,
        random::fill_uniform,
        rope::{KvForm, Places, PoolShape, Rope},
        sample::sample,
    },
};

use crate::{gpu, step};

/// Name, outputs and inputs of the 8B shape's products.
pub(crate) const SHAPES: [(&str, usize, usize); 5] = [
    ("qkv", 6144, 4096),
    ("o", 4096, 4096),
    ("gate_up", 28_672, 4096),
    ("down", 4096, 14_336),
    ("lm_head", 128_256, 4096),
];
pub(crate) const HIDDEN: usize = 4096;
pub(crate) const INNER: usize = 14_336;
pub(crate) const LAYERS: usize = 32;

/// Microseconds of what `ops` enqueues: the median of some replays.
pub(crate) fn micros(gpu: &Gpu, ops: impl Fn(&Gpu) -> Result<(), GpuError>) -> f64 {
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

pub(crate) fn filled(gpu: &Gpu, seed: u64, len: usize, scale: f32) -> CudaSlice<Half> {
    let mut memory = gpu.unset(len).unwrap();
    fill_uniform(gpu, seed, scale, &mut memory).unwrap();
    gpu.synchronize().unwrap();
    memory
}

/// Bytes read and written each second by a copy of 4 GB, in GB/s.
fn copy_rate(gpu: &Gpu) -> f64 {
    let len = 1 << 30;
    let (from, to) = (filled(gpu, 1, len, 1.0), std::cell::RefCell::new(gpu.unset::<Half>(len).unwrap()));
    let micros = timed(gpu, || gpu.stream().memcpy_dtod(&from, &mut *to.borrow_mut()).unwrap());
    (4 * len) as f64 / micros / 1e3
}

/// Weights of one shape, copied so often that L2 does not hold them all.
struct Cold {
    memory: CudaSlice<Half>,
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
pub(crate) fn cell(gpu: &Gpu, len: usize) -> std::cell::RefCell<CudaSlice<Half>> {
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
            let timed = &gemm.tune(&[Sizes { n, k, m }], Then::Store).unwrap()[0].1;
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
    let pool = |form| PoolShape { form, pages: 128, layers: 1, page_tokens: 64, kv_heads: 8, head_dim: 128 };
    let [plain, fp8] = [KvForm::Plain, KvForm::Fp8].map(pool);
    for m in [1, 8, 64, 256, 8192] {
        let positions = gpu.upload(&(0..m as i32).collect::<Vec<_>>()).unwrap();
        let (x, y, out) = (cell(gpu, m * HIDDEN), cell(gpu, m * HIDDEN), cell(gpu, m * HIDDEN));
        let (qkv, pages) = (cell(gpu, m * 6144), cell(gpu, plain.pages * plain.page_halves()));
        let (wide, inner) = (filled(gpu, 2, m * 2 * INNER, 1.0), cell(gpu, m * INNER));
        let norm = || Norm { weight: weight.as_view(), eps: 1e-5 };
        let each = |op: &dyn Fn(&Gpu) -> Result<(), GpuError>| {
            micros(gpu, |gpu| (0..20).try_for_each(|_| op(gpu))) / 20.0
        };
        let add = each(&|gpu| norm().add(gpu, &mut *x.borrow_mut(), &*y.borrow(), &mut *out.borrow_mut()));
        let [turn, turn_fp8] = [plain, fp8].map(|pool| {
            each(&|gpu| {
                let frequencies = frequencies.as_view();
                let rope = Rope { frequencies, magnitude: 1.0, heads: 32, layer: 0, pool };
                let places = Places { positions: positions.as_view(), slots: positions.as_view() };
                let mut pages = pages.borrow_mut();
                let mut pages = pages.slice_mut(..pool.pages * pool.page_halves());
                rope.write(gpu, &places, &mut *qkv.borrow_mut(), &mut pages)
            })
        });
        let gated = each(&|gpu| gate(gpu, Activation::Silu, INNER, &wide, &mut *inner.borrow_mut()));
        println!(
            "M={m:<5} add_rms_norm {add:>7.2}  rope_write {turn:>7.2}, in fp8 {turn_fp8:>7.2}  gate {gated:>7.2}"
        );
    }
    let logits = logits_of(gpu, 256 * 128_256);
    let draws = [
        ("likeliest", Draw::LIKELIEST),
        ("any", Draw { temperature: 1.0, share: 1 << 63, ..Draw::LIKELIEST }),
        ("top-p 0.9", Draw { temperature: 1.0, top_p: 0.9, share: 1 << 63, ..Draw::LIKELIEST }),
        ("top-k 50, top-p 0.9", Draw { temperature: 1.0, top_k: 50, top_p: 0.9, ..Draw::LIKELIEST }),
    ];
    for (name, draw) in draws {
        for rows in [1, 64, 256] {
            let draws = gpu.upload(&draw.words().repeat(rows)).unwrap();
            let tokens = std::cell::RefCell::new(gpu.zeros::<i32>(rows).unwrap());
            let logits = logits.slice(..rows * 128_256);
            let micros = micros(gpu, |gpu| sample(gpu, &logits, &draws, &mut *tokens.borrow_mut()));
            println!("sample, {name}, {rows} rows of 128256: {micros:.1} us");
        }
    }
}

/// Logits about as spread as a model's.
fn logits_of(gpu: &Gpu, len: usize) -> CudaSlice<f32> {
    let mut random = fastrand::Rng::with_seed(9);
    let mut one = || (0..6).map(|_| 4.0 * random.f32() - 2.0).sum();
    gpu.upload(&(0..len).map(|_| one()).collect::<Vec<f32>>()).unwrap()
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

/// Microseconds of `op`, in a row for so long that the card's clock is what it can hold.
fn sustained(gpu: &Gpu, mut op: impl FnMut(usize)) -> f64 {
    let moment = || gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let mut run = |times: usize| {
        let begin = moment();
        (0..times).for_each(&mut op);
        let end = moment();
        end.synchronize().unwrap();
        f64::from(begin.elapsed_ms(&end).unwrap()) * 1e3 / times as f64
    };
    let times = (250e3 / run(4)) as usize + 1;
    run(times);
    run(times)
}

fn wide_table(gpu: &Gpu, rows: &[usize]) {
    println!("\nwide products, sustained: us, TFLOP/s; beside cuBLASLt's, with the gate after it");
    let gemm = Gemm::new(gpu, None).unwrap();
    for &m in rows {
        for (name, n, k) in &SHAPES[..4] {
            let (n, k) = (*n, *k);
            let then = if matches!(*name, "o" | "down") { Then::Add } else { Then::Store };
            gemm.tune(&[Sizes { n, k, m }], then).unwrap();
            let (cold, x) = (Cold::new(gpu, n, k), filled(gpu, 6, m * k, 1.0));
            let (mut out, mut inner) = (gpu.unset(m * n).unwrap(), gpu.unset(m * n / 2).unwrap());
            let theirs = sustained(gpu, |i| {
                let weights = cold.copy(i % cold.copies());
                match *name {
                    "gate_up" => {
                        gemm.run(&weights, &x, &mut out).unwrap();
                        gate(gpu, Activation::Silu, n / 2, &out, &mut inner).unwrap();
                    }
                    "qkv" => gemm.run(&weights, &x, &mut out).unwrap(),
                    _ => gemm.add(&weights, &x, &mut out).unwrap(),
                }
            });
            let ours = sustained(gpu, |i| {
                let product = Wide::new(gpu, cold.copy(i % cold.copies())).unwrap();
                match *name {
                    "gate_up" => product.gated(gpu, Activation::Silu, &x, &mut inner).unwrap(),
                    "qkv" => product.run(gpu, &x, &mut out).unwrap(),
                    _ => product.add(gpu, &x, &mut out).unwrap(),
                }
            });
            let rate = |micros: f64| (2 * m * n * k) as f64 / micros / 1e6;
            println!(
                "{name:>8} M={m:<5} {ours:>8.1} us {:>6.1} TF; cuBLASLt {theirs:>8.1} us {:>6.1} TF",
                rate(ours),
                rate(theirs)
            );
        }
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
    step::table(&gpu);
    wide_table(&gpu, &[256, 512, 1024, 2048, 8192]);
    gemm_table(&gpu, &[8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192]);
}
