//! What a node's prefix cache holds, told to coordinators as numbered changes.

use crate::BlockHash;

/// What one stretch of numbered changes comes to. A block that was added and
/// removed meanwhile is named once, by what it is in the end, so that a stretch
/// may be applied again over a later state of the same numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixChanges {
    /// Number of the change before the first; 0 with everything that the cache holds.
    pub after: u64,
    /// Number of the last change.
    pub number: u64,
    /// Blocks that the cache holds now.
    pub added: Vec<BlockHash>,
    /// Blocks that it holds no more.
    pub removed: Vec<BlockHash>,
}
