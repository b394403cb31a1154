//! Caches of nodes as plain sets of prefixes, for property tests of the index, and for the fuzzer, which
//! feeds any bytes as what happens to them (`fuzz/`).

use std::collections::HashSet;

use arbitrary::{Result, Unstructured};
use baton_protocol::chain;

use super::*;

/// Limits that nothing reaches.
pub const FAR: PrefixLimits = PrefixLimits { pages: u64::MAX, pages_of_node: u64::MAX };

pub fn blocks(tokens: &[u32]) -> Vec<BlockHash> {
    chain("t", 1, tokens)
}

pub fn added(blocks: &[BlockHash]) -> PrefixChanges {
    PrefixChanges { added: blocks.to_vec(), ..PrefixChanges::default() }
}

pub fn removed(blocks: &[BlockHash]) -> PrefixChanges {
    PrefixChanges { removed: blocks.to_vec(), ..PrefixChanges::default() }
}

pub const NODES: usize = 4;

/// Something that happens to the cache of a node.
#[derive(Clone, Debug)]
pub enum Op {
    /// It computes a prompt: all its blocks are held.
    Compute(usize, Vec<u32>),
    /// It lets go of a block, and of all below it.
    Evict(usize, Vec<u32>),
    /// It tells everything anew.
    Repair(usize),
    /// It leaves, and another takes its place.
    Leave(usize),
}

/// Prefixes that a node holds, as tokens.
pub type Cache = HashSet<Vec<u32>>;

fn name(tokens: &[u32]) -> BlockHash {
    *blocks(tokens).last().expect("a prefix has a token")
}

pub fn apply(index: &Arc<PrefixIndex>, holders: &mut [Holder], caches: &mut [Cache], op: Op) {
    match op {
        Op::Compute(node, tokens) => {
            caches[node].extend((1..=tokens.len()).map(|len| tokens[..len].to_vec()));
            holders[node].apply(&added(&blocks(&tokens)));
        }
        Op::Evict(node, tokens) => {
            let gone: Vec<_> =
                caches[node].iter().filter(|prefix| prefix.starts_with(&tokens)).cloned().collect();
            let names: Vec<_> = gone.iter().map(|prefix| name(prefix)).collect();
            caches[node].retain(|prefix| !prefix.starts_with(&tokens));
            holders[node].apply(&removed(&names));
        }
        Op::Repair(node) => {
            holders[node].clear();
            let names: Vec<_> = caches[node].iter().map(|prefix| name(prefix)).collect();
            holders[node].apply(&added(&names));
        }
        Op::Leave(node) => {
            holders[node] = index.join();
            caches[node].clear();
        }
    }
}

/// Anything that happens to caches: the index finds what a list of prefixes would.
pub fn prefix_index(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let index = PrefixIndex::new(FAR);
    let mut holders: Vec<_> = (0..NODES).map(|_| index.join()).collect();
    let mut caches = vec![Cache::default(); NODES];
    while !input.is_empty() {
        let (Ok(op), Ok(prompt)) = (op(&mut input), tokens(&mut input)) else { break };
        apply(&index, &mut holders, &mut caches, op);
        check(&index, &holders, &caches, &prompt);
    }
}

/// Holds the index to what caches hold of a prompt, and to their sizes.
pub fn check(index: &PrefixIndex, holders: &[Holder], caches: &[Cache], prompt: &[u32]) {
    let held = index.held(&blocks(prompt));
    for (holder, cache) in holders.iter().zip(caches) {
        let expected = (1..=prompt.len()).take_while(|len| cache.contains(&prompt[..*len])).count();
        assert_eq!(held.pages(holder), expected);
    }
    assert_eq!(index.stats().pages, caches.iter().map(|cache| cache.len() as u64).sum::<u64>());
}

fn op(input: &mut Unstructured<'_>) -> Result<Op> {
    let node = input.choose_index(NODES)?;
    Ok(match input.choose_index(11)? {
        0..6 => Op::Compute(node, tokens(input)?),
        6..9 => Op::Evict(node, tokens(input)?),
        9 => Op::Repair(node),
        _ => Op::Leave(node),
    })
}

fn tokens(input: &mut Unstructured<'_>) -> Result<Vec<u32>> {
    (0..input.int_in_range(1..=11)?).map(|_| input.int_in_range(0..=1)).collect()
}
