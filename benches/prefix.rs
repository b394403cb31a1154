//! The prefix index: a hundred nodes, a thousand conversations of 512 pages; and the hashes of pages.

use std::{hint::black_box, sync::Arc};

use baton_coordinator::prefix::{Holder, PrefixIndex, PrefixLimits};
use baton_protocol::{BlockHash, PrefixChanges, chain as hashes};
use criterion::Criterion;
use fastrand::Rng;

const NODES: usize = 100;
const CONVERSATIONS: usize = 1000;
const PAGES: usize = 512;

/// Hashes of a prompt of 512 pages of 16 tokens.
pub fn hash(criterion: &mut Criterion) {
    let tokens: Vec<u32> = (0..16 * PAGES as u32).collect();
    criterion.bench_function("prefix/hash_512", |bencher| {
        bencher.iter(|| hashes("tenant", 16, black_box(&tokens)));
    });
}

/// What a prompt of 512 pages finds.
pub fn look_up(criterion: &mut Criterion) {
    let (index, _holders, chains) = filled();
    let mut at = 0;
    criterion.bench_function("prefix/look_up_512", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % chains.len();
            index.held(black_box(&chains[at]))
        });
    });
}

/// A node says that it holds 32 pages more, and then that it does not.
pub fn apply(criterion: &mut Criterion) {
    let (_index, holders, _) = filled();
    let pages = chain(&mut Rng::with_seed(7), 32);
    let gained = PrefixChanges { added: pages.clone(), ..PrefixChanges::default() };
    let lost = PrefixChanges { removed: pages, ..PrefixChanges::default() };
    criterion.bench_function("prefix/apply_32", |bencher| {
        bencher.iter(|| {
            holders[0].apply(black_box(&gained));
            holders[0].apply(black_box(&lost));
        });
    });
}

fn filled() -> (Arc<PrefixIndex>, Vec<Holder>, Vec<Vec<BlockHash>>) {
    let mut random = Rng::with_seed(2026);
    let index = PrefixIndex::new(PrefixLimits { pages: u64::MAX, pages_of_node: u64::MAX });
    let holders: Vec<_> = (0..NODES).map(|_| index.join()).collect();
    let chains: Vec<_> = (0..CONVERSATIONS).map(|_| chain(&mut random, PAGES)).collect();
    for chain in &chains {
        for _ in 0..=random.usize(..3) {
            let held = chain[..random.usize(1..=PAGES)].to_vec();
            let changes = PrefixChanges { added: held, ..PrefixChanges::default() };
            holders[random.usize(..NODES)].apply(&changes);
        }
    }
    (index, holders, chains)
}

fn chain(random: &mut Rng, pages: usize) -> Vec<BlockHash> {
    (0..pages).map(|_| BlockHash(random.u128(..).to_le_bytes())).collect()
}
