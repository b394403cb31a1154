use std::collections::HashSet;

use baton_protocol::chain;
use proptest::prelude::*;

use super::*;

const FAR: PrefixLimits = PrefixLimits { pages: u64::MAX, pages_of_node: u64::MAX };

fn blocks(tokens: &[u32]) -> Vec<BlockHash> {
    chain("t", 1, tokens)
}

fn added(blocks: &[BlockHash]) -> PrefixChanges {
    PrefixChanges { added: blocks.to_vec(), ..PrefixChanges::default() }
}

fn removed(blocks: &[BlockHash]) -> PrefixChanges {
    PrefixChanges { removed: blocks.to_vec(), ..PrefixChanges::default() }
}

fn pages(index: &PrefixIndex, chain: &[BlockHash], nodes: &[&Holder]) -> Vec<usize> {
    let held = index.held(chain);
    nodes.iter().map(|node| held.pages(node)).collect()
}

#[test]
fn each_node_is_found_at_the_end_of_what_it_holds() {
    let index = PrefixIndex::new(FAR);
    let (a, b, c) = (index.join(), index.join(), index.join());
    let prompt = blocks(&(0..513).collect::<Vec<_>>());
    a.apply(&added(&prompt[..512]));
    b.apply(&added(&prompt[..7]));
    assert_eq!(pages(&index, &prompt, &[&a, &b, &c]), [512, 7, 0]);
    assert_eq!(pages(&index, &prompt[..5], &[&a, &b, &c]), [5, 5, 0]);
    assert_eq!(pages(&index, &[], &[&a, &b, &c]), [0, 0, 0]);
    // The first block differs, and so all.
    assert_eq!(pages(&index, &chain("u", 1, &[0, 1, 2]), &[&a, &b, &c]), [0, 0, 0]);
    assert_eq!(index.stats(), PrefixStats { pages: 519, sets: 2 });
    b.apply(&removed(&prompt[3..7]));
    assert_eq!(pages(&index, &prompt, &[&a, &b, &c]), [512, 3, 0]);
}

#[test]
fn who_leaves_is_forgotten_and_a_newcomer_starts_with_nothing() {
    let index = PrefixIndex::new(FAR);
    let (a, b) = (index.join(), index.join());
    let (shared, own) = (blocks(&[1, 2]), blocks(&[9, 8, 7]));
    a.apply(&added(&shared));
    a.apply(&added(&own));
    b.apply(&added(&shared[..1]));
    drop(a);
    assert_eq!(index.stats().pages, 1);
    let again = index.join();
    assert_eq!(pages(&index, &own, &[&again, &b]), [0, 0]);
    assert_eq!(pages(&index, &shared, &[&again, &b]), [0, 1]);
    again.apply(&added(&own));
    assert_eq!(pages(&index, &own, &[&again, &b]), [3, 0]);
    again.clear();
    assert_eq!(pages(&index, &own, &[&again, &b]), [0, 0]);
}

#[test]
fn what_nobody_holds_is_swept_out() {
    let index = PrefixIndex::new(FAR);
    let (a, b) = (index.join(), index.join());
    a.apply(&added(&blocks(&(0..5000).collect::<Vec<_>>())));
    drop(a);
    let entries = |index: &PrefixIndex| index.state.read().table.blocks();
    assert_eq!(entries(&index), 5000);
    let own = blocks(&[70_000]);
    // A change sweeps a part: so many sweep all.
    for _ in 0..1024 {
        b.apply(&added(&own));
    }
    assert_eq!(entries(&index), 1);
    assert_eq!(index.stats(), PrefixStats { pages: 1, sets: 1 });
}

#[test]
fn what_is_beyond_the_limits_is_kept_out_and_counted() {
    let index = PrefixIndex::new(PrefixLimits { pages: 10, pages_of_node: 6 });
    let (a, b) = (index.join(), index.join());
    let prompt = blocks(&(0..9).collect::<Vec<_>>());
    assert_eq!(a.apply(&added(&prompt)), 3);
    assert_eq!(a.apply(&added(&prompt[..6])), 0, "known already");
    assert_eq!(b.apply(&added(&prompt)), 5);
    assert_eq!((pages(&index, &prompt, &[&a, &b]), index.stats().pages), (vec![6, 4], 10));
    a.apply(&removed(&prompt[5..]));
    assert_eq!(b.apply(&added(&prompt[..5])), 0, "there is room again");
}

/// Something that happens to the cache of a node.
#[derive(Clone, Debug)]
enum Op {
    /// It computes a prompt: all its blocks are held.
    Compute(usize, Vec<u32>),
    /// It lets go of a block, and of all below it.
    Evict(usize, Vec<u32>),
    /// It tells everything anew.
    Repair(usize),
    /// It leaves, and another takes its place.
    Leave(usize),
}

const NODES: usize = 4;

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES;
    let tokens = || prop::collection::vec(0..2u32, 1..12);
    prop_oneof![
        6 => (node.clone(), tokens()).prop_map(|(node, tokens)| Op::Compute(node, tokens)),
        3 => (node.clone(), tokens()).prop_map(|(node, tokens)| Op::Evict(node, tokens)),
        1 => node.clone().prop_map(Op::Repair),
        1 => node.prop_map(Op::Leave),
    ]
}

/// Prefixes that a node holds, as tokens.
type Cache = HashSet<Vec<u32>>;

fn name(tokens: &[u32]) -> BlockHash {
    *blocks(tokens).last().unwrap()
}

fn apply(index: &Arc<PrefixIndex>, holders: &mut [Holder], caches: &mut [Cache], op: Op) {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn finds_what_a_list_of_prefixes_would(
        ops in prop::collection::vec(op(), 1..40),
        prompts in prop::collection::vec(prop::collection::vec(0..2u32, 1..12), 1..8),
    ) {
        let index = PrefixIndex::new(FAR);
        let mut holders: Vec<_> = (0..NODES).map(|_| index.join()).collect();
        let mut caches = vec![Cache::default(); NODES];
        for op in ops {
            apply(&index, &mut holders, &mut caches, op);
            for prompt in &prompts {
                let held = index.held(&blocks(prompt));
                for (holder, cache) in holders.iter().zip(&caches) {
                    let expected = (1..=prompt.len()).take_while(|len| cache.contains(&prompt[..*len])).count();
                    prop_assert_eq!(held.pages(holder), expected);
                }
            }
            prop_assert_eq!(index.stats().pages, caches.iter().map(|cache| cache.len() as u64).sum::<u64>());
        }
    }

    /// An index that was told anything at all answers, within the prompt.
    #[test]
    fn holes_are_survived(changes in prop::collection::vec((0..40usize, any::<bool>()), 0..60)) {
        let index = PrefixIndex::new(PrefixLimits { pages: 20, pages_of_node: 15 });
        let prompt = blocks(&(0..40).collect::<Vec<_>>());
        let node = index.join();
        for (at, is_held) in changes {
            node.apply(&if is_held { added(&prompt[at..=at]) } else { removed(&prompt[at..=at]) });
            let held = index.held(&prompt).pages(&node);
            prop_assert!(held == 0 || index.held(&prompt[held - 1..held]).pages(&node) == 1, "a held block is named");
        }
    }
}
