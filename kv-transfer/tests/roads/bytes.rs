//! What arrives is what was sent, where it should be.

use std::sync::Arc;

use baton_kv_transfer::transport::{Placement, cuda_ipc};
use parking_lot::Mutex;

use crate::{
    Road, cards, limits, open,
    other::sender,
    pages::{Host, Pages, ROW, TOKENS, frame},
    roads,
};

/// Two ranks on one card take turns, milliseconds each.
fn most_frames(road: Road) -> usize {
    if road == Road::CudaIpc || cards().0 != cards().1 { 4096 } else { 24 }
}

#[test]
fn every_byte_is_right_at_every_size() {
    for road in roads() {
        let (mut other, mut link) = sender(road, 64 << 20, 3);
        other.tell("fill 11");
        let sink = Pages::empty(&open(cards().1));
        assert_eq!(other.hear(), "did fill");
        for kib in [16, 64, 256, 1024, 4096, 8192, 16_384, 65_536] {
            let bytes = kib << 10;
            let frames = (TOKENS * ROW / bytes).min(most_frames(road));
            sink.clear();
            other.tell(&format!("send {bytes} 0 {frames}"));
            for seq in 0..frames {
                let received = link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
                assert_eq!((received.header.seq as usize, received.intact), (seq, true));
            }
            assert_eq!(other.hear(), "did send");
            let tokens = frames * bytes / ROW;
            assert!(sink.holds(11, 0..tokens), "{road:?}, frames of {kib} KiB");
            assert!(sink.is_clear(tokens..TOKENS), "{road:?}, frames of {kib} KiB");
            println!("{}: {frames} frames of {kib} KiB, every byte right", road.name());
        }
    }
}

/// Frames of handoffs that were aborted, in every mixture with others, and damaged ones.
#[test]
fn the_bit_bucket_and_damage_keep_the_path_in_step() {
    for road in roads() {
        let (mut other, mut link) = sender(road, 1 << 20, 4);
        other.tell("fill 12");
        let sink = Pages::empty(&open(cards().1));
        assert_eq!(other.hear(), "did fill");
        let (bytes, frames) = (256 << 10, 60);
        other.tell(&format!("send {bytes} 0 {frames}"));
        let lands = |seq: u32| seq % 7 < 4 && !(20..30).contains(&seq);
        for seq in 0..frames {
            let place = &mut |header: &baton_protocol::FrameHeader| {
                if lands(header.seq) { Placement::Land(sink.clone()) } else { Placement::Discard }
            };
            let received = link.end.recv(place).unwrap();
            assert_eq!((received.header.seq, received.intact), (seq, true));
        }
        assert_eq!(other.hear(), "did send");
        for seq in 0..frames {
            let span = frame(seq as usize, bytes).span.tokens;
            let tokens = span.start as usize..span.end as usize;
            let right = if lands(seq) { sink.holds(12, tokens) } else { sink.is_clear(tokens) };
            assert!(right, "{road:?} frame {seq}");
        }
        other.tell(&format!("damage {bytes} 3"));
        assert!(!link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert_eq!(other.hear(), "did damage");
        other.tell(&format!("send {bytes} 4 1"));
        assert!(link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert_eq!(other.hear(), "did send");
    }
}

#[test]
fn pages_of_the_machines_memory_travel_too() {
    for road in roads() {
        let (mut other, mut link) = sender(road, 1 << 20, 2);
        let bytes = 300 << 10;
        let sink = Arc::new(Host(Mutex::new(vec![0; bytes])));
        other.tell(&format!("host 13 {bytes}"));
        assert!(link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert!(sink.0.lock().iter().enumerate().all(|(at, &byte)| byte == (at * 13) as u8), "{road:?}");
        assert_eq!(other.hear(), "did host");
        // A landing of another size: not intact, and still in step.
        let small = Arc::new(Host(Mutex::new(vec![0; bytes - 4])));
        other.tell(&format!("host 14 {bytes}"));
        assert!(!link.end.recv(&mut |_| Placement::Land(small.clone())).unwrap().intact);
        assert_eq!(other.hear(), "did host");
        other.tell(&format!("host 15 {bytes}"));
        assert!(link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert!(sink.0.lock().iter().enumerate().all(|(at, &byte)| byte == (at * 15) as u8), "{road:?}");
    }
}

#[test]
fn one_process_is_refused_by_name() {
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let (gpu, limits) = (open(cards().0), limits(1 << 20, 2));
    let near = cuda_ipc::sender(&gpu, near, &limits).unwrap();
    let error = cuda_ipc::receiver(&gpu, far, &limits).err().unwrap();
    assert!(error.to_string().contains("two processes"), "{error}");
    drop(near);
}
