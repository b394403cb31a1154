use baton_protocol::chain;
use proptest::prelude::*;

use super::{
    model::{Cache, FAR, NODES, Op, added, apply, blocks, check, removed},
    *,
};

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
            prompts.iter().for_each(|prompt| check(&index, &holders, &caches, prompt));
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
