//! Which KV heads a node holds, and where its shards and a peer's meet.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The largest tensor-parallel degree.
pub const MAX_TP: u32 = 8;

/// The KV heads that a node holds, and how many ranks share them. Ranks hold
/// equal runs of heads; where there are more ranks than heads, a head lies on
/// several ranks and still travels once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadShare {
    /// Of the model's heads, numbered from 0.
    pub held: Range<u32>,
    /// Tensor-parallel degree: 1, 2, 4 or 8.
    pub tp: u32,
}

/// What a pair of nodes cannot do with its heads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadsError {
    /// Not a degree that exists.
    #[error("a tensor parallel size of {tp}, which is none of 1, 2, 4 and 8")]
    Degree {
        /// As claimed.
        tp: u32,
    },
    /// Ranks would hold unequal shares.
    #[error("{heads} kv heads cannot be shared evenly by {tp} ranks")]
    Uneven {
        /// Heads held.
        heads: u32,
        /// Ranks.
        tp: u32,
    },
    /// No heads, or heads that the model has not.
    #[error("heads {held:?} of a model with {kv_heads}")]
    Outside {
        /// As claimed.
        held: Range<u32>,
        /// Of the model.
        kv_heads: u32,
    },
    /// The sender lacks some of what the receiver holds.
    #[error("heads {wanted:?} are wanted, and only {held:?} are held")]
    Missing {
        /// The receiver's.
        wanted: Range<u32>,
        /// The sender's.
        held: Range<u32>,
    },
}

// === impl HeadShare ===

impl HeadShare {
    /// All heads, on one rank.
    pub const fn whole(kv_heads: u32) -> Self {
        Self { held: 0..kv_heads, tp: 1 }
    }

    /// Whether such a share of a model with `kv_heads` heads can be.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self, kv_heads: u32) -> Result<(), HeadsError> {
        let (held, tp) = (self.held.clone(), self.tp);
        if !(1..=MAX_TP).contains(&tp) || !tp.is_power_of_two() {
            return Err(HeadsError::Degree { tp });
        }
        if held.is_empty() || held.end > kv_heads {
            return Err(HeadsError::Outside { held, kv_heads });
        }
        let heads = held.end - held.start;
        if !heads.is_multiple_of(tp) && !tp.is_multiple_of(heads) {
            return Err(HeadsError::Uneven { heads, tp });
        }
        Ok(())
    }

    /// The ranks' runs of heads in order, each once. The share must be one that can be.
    pub fn shards(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        let each = ((self.held.end - self.held.start) / self.tp).max(1);
        let end = self.held.end;
        self.held.clone().step_by(each as usize).map(move |first| first..(first + each).min(end))
    }

    /// The runs of heads in which KV goes to a peer: together they are all that
    /// the peer holds, and each lies within one shard on either side.
    ///
    /// # Errors
    /// When the peer holds heads that are not held here.
    pub fn runs_to(&self, peer: &Self) -> Result<Vec<Range<u32>>, HeadsError> {
        let (wanted, held) = (peer.held.clone(), self.held.clone());
        if wanted.start < held.start || wanted.end > held.end {
            return Err(HeadsError::Missing { wanted, held });
        }
        let borders = self.shards().chain(peer.shards()).map(|shard| shard.end);
        let mut ends: Vec<u32> = borders.filter(|end| wanted.contains(&(end - 1))).collect();
        ends.sort_unstable();
        ends.dedup();
        let starts = std::iter::once(wanted.start).chain(ends.clone());
        Ok(starts.zip(ends).map(|(start, end)| start..end).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(held: Range<u32>, tp: u32) -> HeadShare {
        HeadShare { held, tp }
    }

    #[test]
    fn runs_follow_the_finer_side() {
        let runs = |from: u32, to: u32| share(0..8, from).runs_to(&share(0..8, to)).unwrap();
        assert_eq!(runs(1, 1), [0..8]);
        assert_eq!(runs(1, 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(runs(2, 1), [0..4, 4..8]);
        assert_eq!(share(0..2, 8).runs_to(&share(0..2, 1)), Ok(vec![0..1, 1..2]));
        assert_eq!(share(0..8, 2).runs_to(&share(2..6, 1)), Ok(vec![2..4, 4..6]));
    }

    #[test]
    fn what_cannot_be_has_a_name() {
        assert_eq!(share(0..8, 3).check(8), Err(HeadsError::Degree { tp: 3 }));
        assert_eq!(share(0..8, 16).check(8), Err(HeadsError::Degree { tp: 16 }));
        assert_eq!(share(0..8, 0).check(8), Err(HeadsError::Degree { tp: 0 }));
        assert_eq!(share(0..3, 2).check(3), Err(HeadsError::Uneven { heads: 3, tp: 2 }));
        assert_eq!(share(4..9, 1).check(8), Err(HeadsError::Outside { held: 4..9, kv_heads: 8 }));
        assert_eq!(share(4..4, 1).check(8), Err(HeadsError::Outside { held: 4..4, kv_heads: 8 }));
        let missing = HeadsError::Missing { wanted: 0..8, held: 0..4 };
        assert_eq!(share(0..4, 1).runs_to(&share(0..8, 2)), Err(missing));
    }

    proptest! {
        #[test]
        fn runs_cover_what_the_peer_holds_and_cross_no_shard(
            heads in 1..64u32, from in 0..4u32, to in 0..4u32, cut in any::<(u32, u32)>(),
        ) {
            let start = cut.0 % heads;
            let (from, to) = (share(0..heads, 1 << from), share(start..start + 1 + cut.1 % (heads - start), 1 << to));
            prop_assume!(from.check(heads).is_ok() && to.check(heads).is_ok());
            let runs = from.runs_to(&to).unwrap();
            prop_assert_eq!(runs.iter().flat_map(Clone::clone).collect::<Vec<_>>(), to.held.clone().collect::<Vec<_>>());
            for run in runs {
                for share in [&from, &to] {
                    let within = |shard: Range<u32>| shard.start <= run.start && run.end <= shard.end;
                    prop_assert!(share.shards().any(within), "{:?} crosses a shard of {:?}", run, share);
                }
            }
        }
    }
}
