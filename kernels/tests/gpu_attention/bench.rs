//! Figures of attention on the heads of an 8B model, beside the card's copy rate:
//! `scripts/test-gpu bench`.

use std::cell::RefCell;

use baton_kernels::cuda::{
    Gpu, Graph, Half,
    attention::{
        Attention, Chunk, Decode, Inputs, Limits, Paged, Rows, Split, prefill, prefill_on_any_card, row_tiles,
    },
    cudarc::driver::{CudaSlice, sys::CUevent_flags},
    random::fill_uniform,
    rope::{KvForm, PoolShape},
};

use crate::fixture::gpu;

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const PAGE_TOKENS: usize = 64;

/// So much of other layers is read between two readings of one that L2 has none of it left.
const COLD_BYTES: usize = 256 << 20;

fn timed(gpu: &Gpu, enqueue: impl Fn()) -> f64 {
    let moment = || gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    enqueue();
    let mut times: Vec<f32> = (0..5)
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

fn filled(gpu: &Gpu, seed: u64, len: usize) -> CudaSlice<Half> {
    let mut memory = gpu.unset(len).unwrap();
    fill_uniform(gpu, seed, 1.0, &mut memory).unwrap();
    memory
}

/// Bytes read and written each second by a copy of 2 GB, in GB/s.
fn copy_rate(gpu: &Gpu) -> f64 {
    let len = 1 << 30;
    let (from, to) = (filled(gpu, 1, len), RefCell::new(gpu.unset::<Half>(len).unwrap()));
    let micros = timed(gpu, || gpu.stream().memcpy_dtod(&from, &mut *to.borrow_mut()).unwrap());
    (4 * len) as f64 / micros / 1e3
}

/// Sequences of one length whose pages are all over a pool.
struct Scene {
    shape: PoolShape,
    pool: CudaSlice<Half>,
    table: CudaSlice<i32>,
    max_pages: usize,
}

impl Scene {
    fn new(gpu: &Gpu, form: KvForm, sequences: usize, tokens: usize) -> Self {
        let max_pages = tokens.div_ceil(PAGE_TOKENS);
        let pages = sequences * max_pages;
        let layer_bytes = pages * PAGE_TOKENS * 2 * KV_HEADS * HEAD_DIM;
        let layers = (COLD_BYTES / layer_bytes + 1).clamp(2, 64);
        let (kv_heads, head_dim) = (KV_HEADS, HEAD_DIM);
        let shape = PoolShape { form, pages, layers, page_tokens: PAGE_TOKENS, kv_heads, head_dim };
        let mut table: Vec<i32> = (0..pages as i32).collect();
        fastrand::Rng::with_seed(3).shuffle(&mut table);
        let pool = filled(gpu, 2, pages * shape.page_halves());
        Self { shape, pool, table: gpu.upload(&table).unwrap(), max_pages }
    }

    fn pages(&self) -> Paged<'_> {
        let (pool, table) = (self.pool.as_view(), self.table.as_view());
        Paged { shape: self.shape, pool, table, max_pages: self.max_pages }
    }

    fn attention(layer: usize) -> Attention {
        Attention { heads: HEADS, scale: 0.0884, cap: None, window: None, layer }
    }
}

/// Microseconds of one layer.
fn decode_micros(gpu: &Gpu, scene: &Scene, sequences: usize, tokens: usize, split: Split) -> f64 {
    let limits = Limits { sequences, tokens: sequences * tokens };
    let mut decode = Decode::new(gpu, HEADS, scene.shape, split, limits).unwrap();
    let mut shares = decode.shares(gpu, None).unwrap();
    let kv_len = gpu.upload(&vec![tokens as i32; sequences]).unwrap();
    let q = filled(gpu, 7, sequences * HEADS * HEAD_DIM);
    let mut out = filled(gpu, 8, sequences * HEADS * HEAD_DIM);
    decode.plan(gpu, &kv_len, scene.max_pages, &mut shares).unwrap();
    let pages = scene.pages();
    let mut layers = |gpu: &Gpu| {
        for layer in 0..scene.shape.layers {
            let inputs = Inputs { q: &q, pages: &pages, kv_len: &kv_len, shares: &shares };
            decode.run(gpu, &Scene::attention(layer), &inputs, &mut out)?;
        }
        Ok(())
    };
    layers(gpu).unwrap();
    gpu.synchronize().unwrap();
    let graph = Graph::record(gpu, layers).unwrap();
    timed(gpu, || graph.replay().unwrap()) / scene.shape.layers as f64
}

#[test]
#[ignore = "a bench"]
fn bench_decode() {
    let gpu = gpu();
    let copy = copy_rate(&gpu);
    println!("copy {copy:.0} GB/s");
    println!("decode: us a layer, GB/s of keys and values, share of the copy rate; apart: no overlap");
    println!(
        "{:>5} {:>5}  {:>26} {:>12} {:>12} {:>12} {:>19}",
        "batch", "ctx", "even", "apart", "every 256", "every 512", "even in fp8"
    );
    for tokens in [1024, 4096] {
        for sequences in [1, 8, 32, 64, 128, 256] {
            let scene = Scene::new(&gpu, KvForm::Plain, sequences, tokens);
            let bytes = (sequences * tokens * 2 * KV_HEADS * HEAD_DIM * 2) as f64;
            let micros = |gpu: &Gpu, split| decode_micros(gpu, &scene, sequences, tokens, split);
            let even = micros(&gpu, Split::Even);
            let apart = micros(&gpu.overlapping(false), Split::Even);
            let [short, long] = [256, 512].map(|tokens| micros(&gpu, Split::Every(tokens)));
            drop(scene);
            let scene = Scene::new(&gpu, KvForm::Fp8, sequences, tokens);
            let fp8 = decode_micros(&gpu, &scene, sequences, tokens, Split::Even);
            let fp8_bytes = (sequences * tokens * 2 * scene.shape.row_halves()) as f64;
            let (rate, fp8_rate) = (bytes / even / 1e3, fp8_bytes / fp8 / 1e3);
            println!(
                "{sequences:>5} {tokens:>5}  {even:>9.2} {rate:>8.0} {:>6.1}% {apart:>12.2} {short:>12.2} {long:>12.2} {fp8:>10.2} {fp8_rate:>8.0}",
                100.0 * rate / copy
            );
        }
    }
}

/// Microseconds of one layer.
fn prefill_micros(gpu: &Gpu, scene: &Scene, chunks: &[Chunk], on_any_card: bool) -> f64 {
    let rows = chunks.iter().map(|chunk| chunk.rows).sum();
    let q = filled(gpu, 7, rows * HEADS * HEAD_DIM);
    let out = RefCell::new(filled(gpu, 8, rows * HEADS * HEAD_DIM));
    let tiles = gpu.upload(&row_tiles(chunks)).unwrap();
    let (rows, pages) = (Rows { q: &q, rows, tiles: &tiles }, scene.pages());
    let run = || {
        let (attention, mut out) = (Scene::attention(1), out.borrow_mut());
        if on_any_card {
            prefill_on_any_card(gpu, &attention, &rows, &pages, &mut *out).unwrap();
        } else {
            prefill(gpu, &attention, &rows, &pages, &mut *out).unwrap();
        }
    };
    timed(gpu, run)
}

#[test]
#[ignore = "a bench"]
fn bench_prefill() {
    let gpu = gpu();
    println!("prefill: us a layer, TFLOP/s");
    println!(
        "{:>22}  {:>18} {:>18} {:>18} {:>18}",
        "", "this card", "any card", "this card, fp8", "any card, fp8"
    );
    let scenes = [(1, 0, 512), (1, 0, 2048), (1, 0, 8192), (1, 8192, 2048), (16, 0, 1024), (1, 0, 32_768)];
    for (sequences, start, rows) in scenes {
        let chunk = |sequence| Chunk { sequence, first_row: sequence * rows, rows, start };
        let chunks: Vec<Chunk> = (0..sequences).map(chunk).collect();
        let pairs = sequences * (rows * start + rows * (rows + 1) / 2);
        let flop = (4 * pairs * HEADS * HEAD_DIM) as f64;
        print!("{sequences:>3} x {rows:>6} at {start:>6} ");
        for form in [KvForm::Plain, KvForm::Fp8] {
            let scene = Scene::new(&gpu, form, sequences, start + rows);
            for on_any_card in [false, true] {
                let micros = prefill_micros(&gpu, &scene, &chunks, on_any_card);
                print!(" {micros:>10.1} {:>7.0}", flop / micros / 1e6);
            }
        }
        println!();
    }
}
