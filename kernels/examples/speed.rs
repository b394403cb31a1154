#![allow(clippy::all, clippy::disallowed_methods, missing_docs, clippy::print_stdout)]
use baton_kernels::cpu::*;
use half::bf16;
use std::time::Instant;
fn rnd(n: usize) -> Vec<bf16> { (0..n).map(|_| bf16::from_f32(fastrand::f32() - 0.5)).collect() }
fn best(reps: usize, mut f: impl FnMut()) -> f64 {
    let mut b = f64::MAX;
    for _ in 0..reps { let t = Instant::now(); f(); b = b.min(t.elapsed().as_secs_f64()); }
    b
}
fn main() {
    let threads: usize = std::env::args().nth(1).map_or(2, |a| a.parse().unwrap());
    let pool = ComputePool::new(threads).unwrap();
    println!("isa {} threads {threads}", pool.isa().as_str());
    for (name, k, n) in [("qkv", 576, 960), ("o", 576, 576), ("gate_up", 576, 3072), ("down", 1536, 576), ("head", 576, 49152)] {
        if name == "gate_up" {
            for m in [1usize, 8, 32, 128, 512] {
            let copies = if m < 32 { 20 } else { 4 };
            let ws: Vec<_> = (0..copies).map(|_| { let g = rnd(k * n / 2); PackedMatrix::pack_gated(&g, &g, k).unwrap() }).collect();
            let a = rnd(m * k);
            let mut out = vec![bf16::ZERO; m * n / 2];
            pool.drive(|_| {
            let t = best(15, || for w in &ws { gemm_gated(&pool, &a, w, &mut out); }) / copies as f64;
            println!("gated    m={m:4} {:9.1} us  {:7.1} GMAC/s  {:6.1} GB/s", t * 1e6, (m * k * n) as f64 / t / 1e9, (k * n * 2) as f64 / t / 1e9);
            }, &mut |_| ());
            }
        }
        for m in [1usize, 2, 4, 8, 12, 16, 32, 128, 512] {
            if name == "head" && m > 32 { continue; }
            if let Some(only) = std::env::args().nth(2) { if only != name { continue; } }
            let copies = if m < 32 { (64usize << 20).div_ceil(k * n * 2) } else { 4 };
            let ws: Vec<_> = (0..copies).map(|_| { let w = rnd(k * n); PackedMatrix::pack(&[&w], k).unwrap() }).collect();
            if let Some(only) = std::env::args().nth(2) { if only != name { continue; } }
            let a = rnd(m * k);
            let mut out = vec![0f32; m * n];
            let mut i = 0;
            pool.drive(|_| {
            let t = best(7, || for w in &ws { gemm(&pool, &a, w, &mut out); i += 1; }) / copies as f64;
            println!("{name:8} m={m:4} {:9.1} us  {:7.1} GMAC/s  {:6.1} GB/s", t * 1e6, (m * k * n) as f64 / t / 1e9, (k * n * 2) as f64 / t / 1e9);
            }, &mut |_| ());
        }
    }
    let shape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, page_tokens: 16 };
    for (seqs, start, rows) in [(1, 0, 512), (1, 0, 2048), (1, 512, 1), (1, 2048, 1), (8, 512, 1), (32, 512, 1)] {
        let row = 2 * 3 * 64;
        let pages: Vec<Vec<bf16>> = (0..seqs * (start + rows as usize).div_ceil(16)).map(|_| rnd(16 * row)).collect();
        let per = pages.len() / seqs;
        let s: Vec<_> = (0..seqs).map(|i| AttentionSequence { first_row: i * rows, rows, start, pages: pages[i * per..(i + 1) * per].iter().map(|p| &p[..]).collect() }).collect();
        let q = rnd(seqs * rows * 576);
        let mut out = q.clone();
        pool.drive(|_| {
        let t = best(10, || attention(&pool, shape, &s, &q, &mut out));
        println!("attention seqs={seqs} start={start} rows={rows}: {:.1} us", t * 1e6);
        }, &mut |_| ());
    }
}
