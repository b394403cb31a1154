use std::collections::HashSet;

use proptest::prelude::*;

use super::{
    model::{Model, Op, PAGES, blocks, pool},
    *,
};

#[test]
fn promises_are_kept_against_allocation_and_pins() {
    let pool = pool(8);
    let hashes = blocks(&[1, 2, 3]);
    let cached = pool.allocate(3).unwrap();
    pool.insert(&hashes, &cached);
    drop(cached);
    let promise = pool.promise(4).unwrap();
    assert!(pool.promise(1).is_none(), "beyond the share");
    assert!(pool.allocate(5).is_none());
    let held = pool.allocate(3).unwrap();
    // One page is left beside the promise, so of three cached ones a single one may be pinned.
    assert_eq!(pool.match_prefix(&hashes).len(), 1);
    let bound = promise.bind();
    assert_eq!((bound.len(), pool.counts().receiving, pool.counts().promised), (4, 4, 0));
    drop((held, bound));
    assert_eq!(pool.counts().free + pool.counts().cached, 8);
    pool.check_integrity().unwrap();
}

#[test]
fn the_strongest_hold_is_the_state() {
    let pool = pool(2);
    let page = pool.allocate(1).unwrap().remove(0);
    let sending = page.held_as(Hold::Sending);
    let quarantined = page.held_as(Hold::Quarantined);
    assert_eq!(pool.counts().quarantined, 1);
    drop(quarantined);
    assert_eq!(pool.counts().sending, 1);
    drop(sending);
    let page = page.into_hold(Hold::Receiving);
    assert_eq!((pool.counts().receiving, pool.counts().running), (1, 0));
    drop(page);
    assert_eq!(pool.counts().free, 2);
}

#[test]
fn cached_pages_are_evicted_and_held_ones_are_not() {
    let pool = pool(4);
    let hashes = blocks(&[1, 2]);
    let pages = pool.allocate(2).unwrap();
    pool.insert(&hashes, &pages);
    drop(pages);
    let matched = pool.match_prefix(&hashes[..1]);
    assert_eq!(pool.allocate(3).unwrap().len(), 3);
    assert_eq!(pool.match_prefix(&hashes).len(), 1);
    drop(matched);
    pool.flush_cache();
    assert_eq!(pool.counts().free, 4);
}

/// What pages hold that others wrote to, as a sequence and a handoff that take them find it.
fn left_behind(zeroes: bool) -> Vec<f32> {
    let config = PoolConfig { zeroes, ..pool(2).config().clone() };
    let memory = Arc::new(KvMemory::new(pool(2).shape().clone(), 2));
    let pool = KvPool::over(Arc::clone(&memory) as Arc<dyn KvStore>, config);
    for page in pool.allocate(2).unwrap() {
        memory.write(page.id(), 0).f32().fill(7.0);
    }
    let taken = [pool.allocate(1).unwrap(), pool.promise(1).unwrap().bind()];
    taken.iter().flatten().flat_map(|page| memory.read(page.id(), 0).f32().to_vec()).collect()
}

#[test]
fn nobody_finds_what_others_left_where_that_is_asked_for() {
    assert!(left_behind(true).iter().all(|value| *value == 0.0));
    assert!(left_behind(false).iter().all(|value| *value == 7.0));
}

fn op() -> impl Strategy<Value = Op> {
    let hold = prop::sample::select(Hold::ALL.to_vec());
    prop_oneof![
        5 => (0..3u32, 1..7usize).prop_map(|(family, pages)| Op::Sequence { family, pages }),
        4 => (0..8usize).prop_map(Op::Insert),
        4 => (0..8usize).prop_map(Op::Drop),
        2 => (0..8usize, hold).prop_map(|(group, hold)| Op::Hold(group, hold)),
        2 => (0..5usize).prop_map(Op::Promise),
        1 => (0..8usize).prop_map(Op::Bind),
        1 => (0..8usize).prop_map(Op::Unpromise),
        1 => (0..8usize).prop_map(Op::Forget),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #[test]
    fn books_agree_with_a_model(ops in prop::collection::vec(op(), 1..120)) {
        let pool = pool(PAGES);
        let mut model = Model::default();
        let (mut told, mut number) = (HashSet::new(), 0);
        for op in ops {
            model.apply(&pool, op);
            model.check(&pool);
            let changes = pool.prefix_changes(number);
            prop_assert_eq!(changes.after, number);
            told.retain(|hash| !changes.removed.contains(hash));
            told.extend(changes.added);
            number = changes.number;
            let snapshot = pool.prefix_snapshot();
            prop_assert_eq!((snapshot.number, snapshot.added.len()), (number, told.len()));
            prop_assert!(snapshot.added.iter().all(|hash| told.contains(hash)));
        }
        drop(model);
        prop_assert!(pool.counts().is_idle());
        pool.check_integrity().unwrap();
    }
}
