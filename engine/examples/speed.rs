#![allow(clippy::all, missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use baton_engine::{
    backend::{Backend, cpu::*},
    batch::*,
    kv::*,
};
use baton_kernels::cpu::ComputePool;
use std::{sync::Arc, time::Instant};
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let threads: usize = std::env::args().nth(2).map_or(2, |a| a.parse().unwrap());
    let precision = if std::env::args().nth(3).as_deref() == Some("reference") {
        Precision::Reference
    } else {
        Precision::Fast
    };
    let t = Instant::now();
    let model = baton_model::load(path.as_ref()).unwrap();
    println!("load {:?}", t.elapsed());
    let t = Instant::now();
    let cpu = CpuModel::load(&model, precision).unwrap();
    println!("pack {:?} {} MB", t.elapsed(), cpu.bytes() >> 20);
    let pool = ComputePool::new(threads).unwrap();
    let mut b = CpuBackend::new(cpu, pool, 16);
    let memory = KvMemory::new(b.kv_shape().clone(), 32 * 64 + 128);
    let text = "The capital of France is";
    let mut tokens = model.text.encode(text, true).unwrap();
    let pages: Vec<PageId> = (0..200).map(PageId).collect();
    let mut start = 0;
    for _ in 0..24 {
        let l = b
            .forward(
                &Batch {
                    sequences: vec![BatchSequence {
                        tokens: &tokens,
                        start,
                        end: tokens.len(),
                        pages: &pages,
                        wants_logits: true,
                    }],
                },
                &memory,
                &mut |_| (),
            )
            .unwrap();
        start = tokens.len();
        let best = (0..l.values.len()).max_by(|a, b| l.values[*a].total_cmp(&l.values[*b])).unwrap();
        tokens.push(best as u32);
    }
    println!("{:?}", model.text.decode(&tokens));
    for n in [128usize, 512, 1024, 2048] {
        let tokens: Vec<u32> = (0..n as u32).map(|i| (i * 7919) % 49000).collect();
        let mut best = f64::MAX;
        let mut first = 0.0;
        for _ in 0..6 {
            let t = Instant::now();
            let mut seen = 0.0;
            b.forward(
                &Batch {
                    sequences: vec![BatchSequence {
                        tokens: &tokens,
                        start: 0,
                        end: n,
                        pages: &pages,
                        wants_logits: true,
                    }],
                },
                &memory,
                &mut |l| {
                    if l == 0 {
                        seen = t.elapsed().as_secs_f64()
                    }
                },
            )
            .unwrap();
            let e = t.elapsed().as_secs_f64();
            if e < best {
                best = e;
                first = seen;
            }
        }
        println!(
            "prefill {n}: {:.1} ms {:.0} tok/s (first layer {:.2} ms)",
            best * 1e3,
            n as f64 / best,
            first * 1e3
        );
    }
    for streams in [1usize, 2, 4, 8, 16, 32] {
        for ctx in [128usize, 512] {
            let tokens: Vec<u32> = (0..1024u32).map(|i| (i * 7919) % 49000).collect();
            let pages: Vec<Vec<PageId>> =
                (0..streams).map(|s| (0..64).map(|p| PageId((s * 64 + p) as u32)).collect()).collect();
            let mut best = f64::MAX;
            let mut all = vec![];
            for i in 0..30 {
                let t = Instant::now();
                b.forward(
                    &Batch {
                        sequences: (0..streams)
                            .map(|s| BatchSequence {
                                tokens: &tokens,
                                start: ctx + i,
                                end: ctx + i + 1,
                                pages: &pages[s],
                                wants_logits: true,
                            })
                            .collect(),
                    },
                    &memory,
                    &mut |_| (),
                )
                .unwrap();
                let e = t.elapsed().as_secs_f64();
                all.push(e);
                best = best.min(e);
            }
            all.sort_by(f64::total_cmp);
            println!(
                "decode {streams} streams ctx {ctx}: min {:.2} ms median {:.2} ms = {:.0} / {:.0} tok/s",
                best * 1e3,
                all[15] * 1e3,
                streams as f64 / best,
                streams as f64 / all[15]
            );
        }
    }
    let _ = Arc::new(0);
}
