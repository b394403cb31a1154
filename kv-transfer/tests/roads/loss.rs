//! Processes that die in mid-transfer, paths that are closed, and what is left of them.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use baton_kv_transfer::transport::Placement;
use baton_protocol::KvSource;

use crate::{
    STALL, cards, open,
    other::{receiver, send, sender},
    pages::{Pages, frame},
    roads,
};

/// Far more than is ever sent.
const MANY: usize = 1 << 30;
const BYTES: usize = 1 << 20;

/// A sender that dies, three times: the path ends soon, its memory is let go, another one works.
#[test]
fn a_dead_sender_is_noticed_and_another_one_takes_its_place() {
    for road in roads() {
        let gpu = open(cards().1);
        let sink = Pages::empty(&gpu);
        let mut free = Vec::new();
        for round in 0..3 {
            let (mut other, mut link) = sender(road, BYTES, 4);
            other.tell("fill 21");
            assert_eq!(other.hear(), "did fill");
            other.tell(&format!("send {BYTES} 0 {MANY}"));
            for _ in 0..20 {
                assert!(link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
            }
            other.kill();
            let begun = Instant::now();
            while link.end.recv(&mut |_| Placement::Land(sink.clone())).is_ok() {}
            println!("{} round {round}: noticed after {:?}", road.name(), begun.elapsed());
            assert!(begun.elapsed() < STALL + Duration::from_secs(5), "{road:?}");
            drop(link);
            drop(other);
            free.push(gpu.memory().unwrap().free);
        }
        let lost = free[0].saturating_sub(free[2]);
        assert!(lost <= 32 << 20, "{road:?}: {lost} bytes of the card are gone for ever");
        // The card still works, and so does a path.
        let (mut other, mut link) = sender(road, BYTES, 4);
        sink.clear();
        other.tell("fill 22");
        assert_eq!(other.hear(), "did fill");
        other.tell(&format!("send {BYTES} 0 8"));
        for _ in 0..8 {
            assert!(link.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        }
        assert!(sink.holds(22, 0..8 * BYTES / crate::pages::ROW), "{road:?}");
    }
}

#[test]
fn a_dead_receiver_is_noticed() {
    for road in roads() {
        let source = Pages::filled(&open(cards().0), 23);
        let (mut other, mut link) = receiver(road, BYTES, 4);
        assert_eq!(other.hear(), "ready");
        let source: Arc<dyn KvSource> = source;
        send(&mut *link.end, (0..20).map(|seq| frame(seq, BYTES)), &source).unwrap();
        other.kill();
        let begun = Instant::now();
        let ended = send(&mut *link.end, (20..MANY).map(|seq| frame(seq, BYTES)), &source);
        println!("{}: {} after {:?}", road.name(), ended.unwrap_err(), begun.elapsed());
        assert!(begun.elapsed() < STALL + Duration::from_secs(5), "{road:?}");
        drop(link);
        assert_eq!(Arc::strong_count(&source), 1, "{road:?}: the path has let go of pages");
    }
}

#[test]
fn closing_wakes_an_end_that_waits() {
    for road in roads() {
        let (mut other, mut link) = sender(road, BYTES, 4);
        other.tell("fill 24");
        assert_eq!(other.hear(), "did fill");
        let closer = link.closer.clone();
        let waiting = thread::spawn(move || link.end.recv(&mut |_| Placement::Discard).is_err());
        thread::sleep(Duration::from_millis(50));
        closer.close();
        assert!(waiting.join().unwrap(), "{road:?}");
        other.tell(&format!("send {BYTES} 0 {MANY}"));
        assert!(other.hear().starts_with("failed"), "{road:?}");

        let (mut other, mut link) = sender(road, BYTES, 4);
        other.tell("fill 25");
        assert_eq!(other.hear(), "did fill");
        other.tell(&format!("send {BYTES} 0 {MANY}"));
        for _ in 0..10 {
            link.end.recv(&mut |_| Placement::Discard).unwrap();
        }
        // In mid-transfer.
        drop(link);
        assert!(other.hear().starts_with("failed"), "{road:?}");
    }
}
