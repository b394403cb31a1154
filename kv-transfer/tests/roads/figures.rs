//! Rates of both roads beside copies of the same run, at each size of frames:
//! `cargo test --release -p baton-kv-transfer --features cuda --test card_roads -- --ignored --nocapture figures`
#![expect(unsafe_code, reason = "launches of pieces have no safe call")]

use std::{sync::Arc, time::Instant};

use baton_kernels::cuda::{Gpu, PieceCopy, Pieces, Region, join};
use baton_kv_transfer::transport::{FrameReceiver, Link, Placement};
use baton_protocol::KvSource;

use crate::{
    Road, cards, open,
    other::{Other, sender},
    own,
    pages::{Pages, ROW, TOKENS, frame},
    roads,
};

/// What is moved for a figure, at most.
pub const MOST_BYTES: usize = 4 << 30;
pub const MOST_FRAMES: usize = 2000;
pub const RUNS: usize = 3;
const SLOTS: usize = 8;

type Ends = (Other, Link<dyn FrameReceiver>);

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// GB/s of one copy after the other from card to card, or on one card.
fn copy_rate((from, to): (&Gpu, &Gpu), bytes: usize) -> f64 {
    let size = TOKENS * ROW;
    let (source, mut target) = (Region::new(from, size).unwrap(), Region::new(to, size).unwrap());
    let stream = to.beside().unwrap();
    let copies = (MOST_BYTES / bytes).min(MOST_FRAMES);
    let mut seconds = Vec::new();
    for _ in 0..=RUNS {
        let begun = Instant::now();
        for copy in 0..copies {
            target.copy_from(&stream, copy % (size / bytes) * bytes, &source, bytes).unwrap();
        }
        stream.synchronize().unwrap();
        seconds.push(begun.elapsed().as_secs_f64());
    }
    (copies * bytes) as f64 / 1e9 / median(seconds.split_off(1))
}

/// GB/s of gathering frames with check words into eight slots, one launch behind the other: what
/// the kernel alone can do.
fn gather_rate(gpu: &Gpu, pages: &Arc<Pages>, bytes: usize) -> f64 {
    let gpu = gpu.beside().unwrap().overlapping(false);
    let ring = Region::new(&gpu, SLOTS * bytes).unwrap();
    let mut lists: Vec<Pieces> = (0..SLOTS).map(|_| Pieces::new(&gpu).unwrap()).collect();
    let copies = (MOST_BYTES / bytes).min(MOST_FRAMES);
    let mut seconds = Vec::new();
    for _ in 0..=RUNS {
        let begun = Instant::now();
        for copy in 0..copies {
            let slot = copy % SLOTS;
            let span = KvSource::on_device(&**pages, &frame(copy, bytes).span).unwrap().unwrap();
            let mut to = ring.address() + (slot * bytes) as u64;
            let piece = |(from, bytes)| {
                to += bytes;
                PieceCopy { from, to: to - bytes, bytes }
            };
            let pieces: Vec<_> = span.pieces.into_iter().map(piece).collect();
            // SAFETY: pages and ring live until the wait below.
            unsafe { lists[slot].copy(&gpu, &pieces, true).unwrap() };
        }
        gpu.synchronize().unwrap();
        seconds.push(begun.elapsed().as_secs_f64());
    }
    (copies * bytes) as f64 / 1e9 / median(seconds.split_off(1))
}

/// GB/s, pages to pages with check words, and microseconds of a frame on its own.
fn road_rate(road: Road, (other, link): &mut Ends, sink: &Arc<Pages>, bytes: usize) -> (f64, f64) {
    let slow = road == Road::Nccl && cards().0 == cards().1;
    let frames = (MOST_BYTES / bytes).min(if slow { 40 } else { MOST_FRAMES });
    let mut run = |frames: usize| {
        other.tell(&format!("send {bytes} 0 {frames}"));
        let mut begun = None;
        for _ in 0..frames {
            let received = link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
            assert!(received.intact);
            begun.get_or_insert_with(Instant::now);
        }
        let seconds = begun.unwrap().elapsed().as_secs_f64();
        assert_eq!(other.hear(), "did send");
        seconds / (frames - 1) as f64
    };
    run(8);
    let each = median((0..RUNS).map(|_| run(frames)).collect());
    // The clock starts with the first of the two.
    let second = median((0..9).map(|_| run(2)).collect());
    (bytes as f64 / 1e9 / each, second * 1e6)
}

#[test]
#[ignore = "figures for people"]
fn figures() {
    let (from, to) = (open(cards().0), open(cards().1));
    println!("from card {} to card {}: {}", cards().0, cards().1, to.name());
    if from.ordinal() != to.ordinal() {
        join(&from, &to).unwrap();
    }
    let sizes = [16, 256, 1024, 4096, 8192, 16_384, 65_536];
    let copies = sizes.map(|kib| copy_rate((&from, &to), kib << 10));
    let sink = Pages::empty(&to);
    for (kib, copy) in sizes.into_iter().zip(copies) {
        let gather = gather_rate(&to, &sink, kib << 10);
        println!("gathering frames of {kib} KiB alone: {gather:.1} GB/s beside {copy:.1}");
    }
    println!("| road | slots | frame | GB/s | copy GB/s | share | the second of two, us |");
    for road in roads() {
        let slots: &[usize] = if road == Road::Nccl { &[16, 24] } else { &[4, 8, 16] };
        for &slots in slots {
            let mut ends = sender(road, 64 << 20, slots);
            ends.0.tell("fill 31");
            assert_eq!(ends.0.hear(), "did fill");
            for (kib, copy) in sizes.into_iter().zip(copies) {
                let (rate, second) = road_rate(road, &mut ends, &sink, kib << 10);
                let (name, share) = (road.name(), rate / copy);
                println!(
                    "| {name} | {slots} | {kib} KiB | {rate:.1} | {copy:.1} | {share:.2} | {second:.0} |"
                );
            }
        }
    }
    // Ranks of one card take turns.
    if roads().contains(&Road::Nccl) && from.ordinal() != to.ordinal() {
        own::figures(&sizes, &copies);
    }
}
