//! A user of the pool who knows what must be: for property tests, and for the fuzzer, which feeds any
//! bytes as operations (`fuzz/`).

use std::collections::{HashMap, HashSet};

use arbitrary::{Result, Unstructured};
use baton_protocol::{KvDtype, chain};

use super::*;

/// Pages of the pool that a model uses.
pub const PAGES: usize = 12;

pub fn pool(pages: usize) -> Arc<KvPool> {
    let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: 1 };
    KvPool::new(
        shape,
        PoolConfig { pages, max_promised: pages / 2, max_prefill: pages, max_decode: pages, zeroes: false },
    )
}

pub fn blocks(tokens: &[u32]) -> Vec<BlockHash> {
    chain("t", 1, tokens)
}

/// What is done with a pool.
#[derive(Clone, Copy, Debug)]
pub enum Op {
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

/// What a user of the pool knows: who holds what, and what was written where.
#[derive(Default)]
pub struct Model {
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

    pub fn apply(&mut self, pool: &Arc<KvPool>, op: Op) {
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

    pub fn check(&self, pool: &KvPool) {
        pool.check_integrity().expect("the books are right");
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

/// Any operations, which leave the pool as they found it once all is let go.
pub fn page_pool(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let pool = pool(PAGES);
    let mut model = Model::default();
    while !input.is_empty() {
        let Ok(op) = op(&mut input) else { break };
        model.apply(&pool, op);
        model.check(&pool);
    }
    drop(model);
    assert!(pool.counts().is_idle());
    pool.check_integrity().expect("the books are right");
}

fn op(input: &mut Unstructured<'_>) -> Result<Op> {
    let mut below = |limit: usize| input.choose_index(limit);
    Ok(match below(20)? {
        0..5 => Op::Sequence { family: below(3)? as u32, pages: 1 + below(6)? },
        5..9 => Op::Insert(below(8)?),
        9..13 => Op::Drop(below(8)?),
        13..15 => Op::Hold(below(8)?, Hold::ALL[below(4)?]),
        15..17 => Op::Promise(below(5)?),
        17 => Op::Bind(below(8)?),
        18 => [Op::Unpromise, Op::Forget][below(2)?](below(8)?),
        _ => Op::Flush,
    })
}
