//! The prefix cache's index: a tree of full pages, keyed by chained hash.
//!
//! A hash names everything before it, so the tree is a flat map with links.
//! The links serve eviction: a page is of no use without those before it, so
//! leaves go first, and whatever goes takes what hangs below it along.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use baton_protocol::BlockHash;

use super::PageId;

/// Which page holds the block that a hash names.
#[derive(Default)]
pub(super) struct PrefixTree {
    nodes: HashMap<BlockHash, Node>,
    /// Nodes that nobody holds, in the order of eviction: least recently let
    /// go first; among those let go together the deepest first.
    idle: BTreeSet<IdleKey>,
    /// Counts look-ups and insertions; stands for time.
    clock: u64,
}

type IdleKey = (u64, Reverse<u32>, BlockHash);

struct Node {
    page: PageId,
    parent: Option<BlockHash>,
    children: Vec<BlockHash>,
    /// Blocks before this one.
    depth: u32,
    /// When it was let go, while nobody holds it.
    idle_since: Option<u64>,
}

// === impl PrefixTree ===

impl PrefixTree {
    /// Pages of the longest known prefix of a chain.
    pub(super) fn find(&mut self, chain: &[BlockHash]) -> Vec<PageId> {
        self.clock += 1;
        chain.iter().map_while(|hash| self.nodes.get(hash)).map(|node| node.page).collect()
    }

    /// Length of the longest known prefix of a chain, in blocks.
    pub(super) fn reach(&self, chain: &[BlockHash]) -> usize {
        chain.iter().take_while(|hash| self.contains(hash)).count()
    }

    /// Adds a chain's last block. False when the block is known already, or
    /// the one before it is not.
    pub(super) fn insert(&mut self, parent: Option<BlockHash>, hash: BlockHash, page: PageId) -> bool {
        self.clock += 1;
        if self.nodes.contains_key(&hash) {
            return false;
        }
        let depth = match parent {
            None => 0,
            Some(parent) => match self.nodes.get_mut(&parent) {
                None => return false,
                Some(above) => {
                    above.children.push(hash);
                    above.depth + 1
                }
            },
        };
        self.nodes.insert(hash, Node { page, parent, children: Vec::new(), depth, idle_since: None });
        true
    }

    pub(super) fn contains(&self, hash: &BlockHash) -> bool {
        self.nodes.contains_key(hash)
    }

    /// Nobody holds the page any more: it may be evicted.
    pub(super) fn let_go(&mut self, hash: BlockHash) {
        if let Some(node) = self.nodes.get_mut(&hash) {
            node.idle_since = Some(self.clock);
            self.idle.insert((self.clock, Reverse(node.depth), hash));
        }
    }

    /// Somebody holds the page again.
    pub(super) fn pin(&mut self, hash: BlockHash) {
        if let Some(node) = self.nodes.get_mut(&hash)
            && let Some(since) = node.idle_since.take()
        {
            self.idle.remove(&(since, Reverse(node.depth), hash));
        }
    }

    /// Forgets the oldest idle block, from a leaf up. Returns the pages that
    /// left the tree: one idle page at least, unless nothing is idle.
    pub(super) fn evict(&mut self) -> Vec<PageId> {
        let Some(&(_, _, mut hash)) = self.idle.first() else { return Vec::new() };
        while let Some(child) = self.idle_child(&hash) {
            hash = child;
        }
        self.remove(hash)
    }

    /// Forgets a block and everything below it. Returns the pages that left the tree.
    pub(super) fn remove(&mut self, hash: BlockHash) -> Vec<PageId> {
        if let Some(parent) = self.nodes.get(&hash).and_then(|node| node.parent)
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children.retain(|child| *child != hash);
        }
        let mut pages = Vec::new();
        let mut below = vec![hash];
        while let Some(hash) = below.pop() {
            let Some(node) = self.nodes.remove(&hash) else { continue };
            if let Some(since) = node.idle_since {
                self.idle.remove(&(since, Reverse(node.depth), hash));
            }
            below.extend(node.children);
            pages.push(node.page);
        }
        pages
    }

    /// Forgets everything. Returns the pages that left the tree.
    pub(super) fn clear(&mut self) -> Vec<PageId> {
        self.idle.clear();
        self.nodes.drain().map(|(_, node)| node.page).collect()
    }

    /// What every node holds: its hash, its page, and whether it is idle.
    pub(super) fn entries(&self) -> impl Iterator<Item = (BlockHash, PageId, bool)> {
        self.nodes.iter().map(|(hash, node)| (*hash, node.page, node.idle_since.is_some()))
    }

    /// Every block with the number of blocks before it.
    pub(super) fn blocks(&self) -> Vec<(u32, BlockHash)> {
        self.nodes.iter().map(|(hash, node)| (node.depth, *hash)).collect()
    }

    /// The first thing that is wrong with the links, if any.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let mut linked = 0;
        for (hash, node) in &self.nodes {
            linked += node.children.len();
            match node.parent {
                None if node.depth != 0 => return Some("a block without a parent is not the first"),
                None => {}
                Some(parent) => match self.nodes.get(&parent) {
                    None => return Some("a block's parent is not in the tree"),
                    Some(above) if above.depth + 1 != node.depth => return Some("a block's depth is wrong"),
                    Some(above) if !above.children.contains(hash) => return Some("a parent lacks its child"),
                    Some(_) => {}
                },
            }
            if let Some(since) = node.idle_since
                && !self.idle.contains(&(since, Reverse(node.depth), *hash))
            {
                return Some("an idle block cannot be evicted");
            }
        }
        let idle = self.nodes.values().filter(|node| node.idle_since.is_some()).count();
        let with_parent = self.nodes.values().filter(|node| node.parent.is_some()).count();
        match () {
            () if idle != self.idle.len() => Some("the order of eviction names blocks that are not idle"),
            () if linked != with_parent => Some("a parent names a child that is not its own"),
            () => None,
        }
    }

    fn idle_child(&self, hash: &BlockHash) -> Option<BlockHash> {
        let is_idle = |hash: &&BlockHash| self.nodes.get(*hash).is_some_and(|node| node.idle_since.is_some());
        self.nodes.get(hash)?.children.iter().find(is_idle).copied()
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::chain;
    use proptest::prelude::*;

    use super::*;

    fn insert_chain(tree: &mut PrefixTree, hashes: &[BlockHash], first_page: u32) {
        let mut parent = None;
        for (i, hash) in hashes.iter().enumerate() {
            tree.insert(parent, *hash, PageId(first_page + i as u32));
            parent = Some(*hash);
        }
    }

    #[test]
    fn leaves_go_first_and_the_longest_unused_before_others() {
        let mut tree = PrefixTree::default();
        let (old, new) = (chain("t", 1, &[1, 2, 3]), chain("t", 1, &[1, 9]));
        insert_chain(&mut tree, &old, 0);
        insert_chain(&mut tree, &new, 10);
        for hash in &old[1..] {
            tree.let_go(*hash);
        }
        tree.find(&[]);
        tree.let_go(new[1]);
        tree.let_go(old[0]);
        let order: Vec<u32> = (0..4).flat_map(|_| tree.evict()).map(|page| page.0).collect();
        assert_eq!(order, [2, 1, 11, 0]);
        assert!(tree.evict().is_empty());
    }

    #[test]
    fn a_held_block_leaves_the_tree_with_the_one_before_it() {
        let mut tree = PrefixTree::default();
        let hashes = chain("t", 1, &[1, 2]);
        insert_chain(&mut tree, &hashes, 0);
        tree.let_go(hashes[0]);
        assert_eq!(tree.evict(), [PageId(0), PageId(1)]);
        assert_eq!(tree.find(&hashes), []);
        assert_eq!(tree.fault(), None);
    }

    #[test]
    fn a_block_without_its_parent_is_not_taken() {
        let mut tree = PrefixTree::default();
        let hashes = chain("t", 1, &[1, 2]);
        assert!(!tree.insert(Some(hashes[0]), hashes[1], PageId(1)));
        assert!(tree.insert(None, hashes[0], PageId(0)));
        assert!(!tree.insert(None, hashes[0], PageId(7)), "known already");
        assert_eq!(tree.find(&hashes), [PageId(0)]);
    }

    proptest! {
        /// The tree finds exactly the longest prefix that was inserted and not removed since.
        #[test]
        fn finds_what_a_list_of_prefixes_would(
            chains in prop::collection::vec((prop::collection::vec(0..3u32, 1..6), 0..4u8), 1..30)
        ) {
            let mut tree = PrefixTree::default();
            let mut known: BTreeSet<Vec<u32>> = BTreeSet::new();
            for (at, (tokens, action)) in chains.iter().enumerate() {
                let hashes = chain("t", 1, tokens);
                match action {
                    0 => {
                        tree.remove(hashes[hashes.len() - 1]);
                        known.retain(|prefix| !prefix.starts_with(tokens));
                    }
                    1 if known.contains(tokens) => {
                        tree.let_go(hashes[hashes.len() - 1]);
                        tree.pin(hashes[hashes.len() - 1]);
                    }
                    _ => {
                        insert_chain(&mut tree, &hashes, at as u32 * 10);
                        known.extend((1..=tokens.len()).map(|len| tokens[..len].to_vec()));
                    }
                }
                prop_assert_eq!(tree.fault(), None);
                prop_assert_eq!(tree.entries().count(), known.len());
                let expected = (1..=tokens.len()).take_while(|len| known.contains(&tokens[..*len])).count();
                prop_assert_eq!(tree.find(&hashes).len(), expected);
            }
        }
    }
}
