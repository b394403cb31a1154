use std::collections::{HashMap, HashSet};

use baton_protocol::{KvDtype, chain};
use proptest::prelude::*;

use super::*;

fn pool(pages: usize) -> Arc<KvPool> {
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: 1 };
    KvPool::new(shape, PoolConfig { pages, max_promised: pages / 2, max_prefill: pages, max_decode: pages })
}

fn blocks(tokens: &[u32]) -> Vec<BlockHash> {
    chain("t", 1, tokens)
}

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

#[derive(Clone, Copy, Debug)]
enum Op {
    Sequence { family: u32, pages: usize },
    Insert(usize),
    Drop(usize),
    Hold(usize, Hold),
    Promise(usize),
    Bind(usize),
    Unpromise(usize),
    Forget(usize),
    Flush,
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

/// What a user of the pool knows: who holds what, and what was written where.
#[derive(Default)]
struct Model {
    groups: Vec<(Vec<BlockHash>, Vec<PageRef>)>,
    promises: Vec<Promise>,
    content: HashMap<PageId, BlockHash>,
}

impl Model {
    fn held(&self) -> HashMap<PageId, Hold> {
        let mut held = HashMap::new();
        for page in self.groups.iter().flat_map(|(_, pages)| pages) {
            let strongest = held.entry(page.id()).or_insert(page.hold());
            *strongest = page.hold().max(*strongest);
        }
        held
    }

    fn wrote(&mut self, fresh: &[PageRef], names: &[BlockHash]) {
        let held: HashSet<PageId> = self.held().into_keys().collect();
        for (index, page) in fresh.iter().enumerate() {
            assert!(!held.contains(&page.id()), "page {page:?} was given away while held");
            match names.get(index) {
                Some(name) => self.content.insert(page.id(), *name),
                None => self.content.remove(&page.id()),
            };
        }
    }

    fn apply(&mut self, pool: &Arc<KvPool>, op: Op) {
        let counts = pool.counts();
        let spare = (counts.free + counts.cached - counts.promised) as usize;
        let at = |index: usize, len: usize| (len > 0).then(|| index % len.max(1));
        match op {
            Op::Sequence { family, pages } => {
                let hashes = blocks(&(0..pages as u32).map(|i| family * 100 + i).collect::<Vec<_>>());
                let mut held = pool.match_prefix(&hashes);
                for (page, hash) in held.iter().zip(&hashes) {
                    assert_eq!(self.content[&page.id()], *hash, "the cache returned another block's page");
                }
                if let Some(fresh) = pool.allocate(pages - held.len()) {
                    self.wrote(&fresh, &hashes[held.len()..]);
                    held.extend(fresh);
                    self.groups.push((hashes, held));
                } else {
                    assert!(spare < pages, "{pages} of {spare} spare pages were refused");
                }
            }
            Op::Insert(group) => {
                if let Some(at) = at(group, self.groups.len()) {
                    pool.insert(&self.groups[at].0, &self.groups[at].1);
                }
            }
            Op::Drop(group) => drop(at(group, self.groups.len()).map(|at| self.groups.swap_remove(at))),
            Op::Hold(group, hold) => {
                if let Some(at) = at(group, self.groups.len()) {
                    let pages = self.groups[at].1.iter().map(|page| page.held_as(hold)).collect();
                    self.groups.push((Vec::new(), pages));
                }
            }
            Op::Promise(pages) => {
                let may = spare >= pages && counts.promised as usize + pages <= pool.config().max_promised;
                let promise = pool.promise(pages);
                assert_eq!(promise.is_some(), may);
                self.promises.extend(promise);
            }
            Op::Bind(promise) => {
                if let Some(at) = at(promise, self.promises.len()) {
                    let promise = self.promises.swap_remove(at);
                    let promised = promise.pages();
                    let fresh = promise.bind();
                    assert_eq!(fresh.len(), promised);
                    self.wrote(&fresh, &[]);
                    self.groups.push((Vec::new(), fresh));
                }
            }
            Op::Unpromise(promise) => {
                drop(at(promise, self.promises.len()).map(|at| self.promises.swap_remove(at)));
            }
            Op::Forget(group) => {
                if let Some(at) = at(group, self.groups.len()) {
                    pool.forget(&self.groups[at].1);
                }
            }
            Op::Flush => pool.flush_cache(),
        }
    }

    fn check(&self, pool: &KvPool) {
        pool.check_integrity().unwrap();
        let (counts, held) = (pool.counts(), self.held());
        assert!(counts.sums_to_total());
        let of = |hold: Hold| held.values().filter(|strongest| **strongest == hold).count() as u64;
        assert_eq!(counts.running, of(Hold::Running));
        assert_eq!(counts.sending, of(Hold::Sending));
        assert_eq!(counts.receiving, of(Hold::Receiving));
        assert_eq!(counts.quarantined, of(Hold::Quarantined));
        assert_eq!(counts.promised, self.promises.iter().map(|promise| promise.pages() as u64).sum::<u64>());
        assert!(counts.free + counts.cached >= counts.promised);
    }
}

proptest! {
    #[test]
    fn books_agree_with_a_model(ops in prop::collection::vec(op(), 1..120)) {
        let pool = pool(12);
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
