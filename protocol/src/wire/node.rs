//! What nodes tell of themselves: load, costs, cached blocks.

use super::{LoadReport, Malformed, PageCounts, PrefixChanges, StepCost, missing, own};

// === PageCounts ===

impl From<own::PageCounts> for PageCounts {
    fn from(c: own::PageCounts) -> Self {
        Self {
            free: c.free,
            cached: c.cached,
            running: c.running,
            receiving: c.receiving,
            sending: c.sending,
            quarantined: c.quarantined,
            total: c.total,
            promised: c.promised,
        }
    }
}

impl From<PageCounts> for own::PageCounts {
    fn from(c: PageCounts) -> Self {
        Self {
            free: c.free,
            cached: c.cached,
            running: c.running,
            receiving: c.receiving,
            sending: c.sending,
            quarantined: c.quarantined,
            total: c.total,
            promised: c.promised,
        }
    }
}

// === StepCost ===

impl From<own::StepCost> for StepCost {
    fn from(cost: own::StepCost) -> Self {
        let own::StepCost { base, unit, context } = cost;
        Self { base, unit, context }
    }
}

impl LoadReport {
    /// The node's step model; what cannot be believed counts as not said.
    pub fn step_model(&self) -> own::StepModel {
        let believed = |cost: &Option<StepCost>| {
            let StepCost { base, unit, context } = (*cost)?;
            Some(own::StepCost { base, unit, context }).filter(own::StepCost::is_sane)
        };
        own::StepModel { prefill: believed(&self.prefill_cost), decode: believed(&self.decode_cost) }
    }
}

// === PrefixChanges ===

/// Blocks named in one message, far below gRPC's limit for it.
const BLOCKS_IN_PART: usize = 4096;

impl PrefixChanges {
    /// Changes in parts of bounded size; `whole` when they are all that the
    /// cache holds. There is one part at least.
    pub fn parts(changes: &own::PrefixChanges, whole: bool) -> Vec<Self> {
        let of = |added: &[own::BlockHash], removed: &[own::BlockHash]| Self {
            after: changes.after,
            number: changes.after,
            whole: false,
            added: added.iter().flat_map(|hash| hash.0).collect(),
            removed: removed.iter().flat_map(|hash| hash.0).collect(),
        };
        let removed = changes.removed.chunks(BLOCKS_IN_PART).map(|removed| of(&[], removed));
        let added = changes.added.chunks(BLOCKS_IN_PART).map(|added| of(added, &[]));
        let mut parts: Vec<_> = removed.chain(added).collect();
        if parts.is_empty() {
            parts.push(of(&[], &[]));
        }
        parts[0].whole = whole;
        parts.last_mut().expect("there is a part").number = changes.number;
        parts
    }
}

impl TryFrom<&PrefixChanges> for own::PrefixChanges {
    type Error = Malformed;

    fn try_from(changes: &PrefixChanges) -> Result<Self, Malformed> {
        let hashes = |bytes: &[u8]| {
            let (hashes, rest) = bytes.as_chunks::<16>();
            if rest.is_empty() {
                Ok(hashes.iter().copied().map(own::BlockHash).collect())
            } else {
                Err(missing("blocks"))
            }
        };
        if changes.number < changes.after {
            return Err(missing("number of changes"));
        }
        Ok(Self {
            after: changes.after,
            number: changes.number,
            added: hashes(&changes.added)?,
            removed: hashes(&changes.removed)?,
        })
    }
}
