//! Frames that should be in and are not, and when to ask for them again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// However busy the data path is with other frames: after so many repair
/// timeouts a missing one is asked for again.
const PATIENCE: u32 = 10;

/// Missing frames by number.
#[derive(Debug, Default)]
pub struct Missing {
    frames: BTreeMap<u32, Absence>,
}

#[derive(Clone, Copy, Debug)]
struct Absence {
    nacks: u32,
    since: Instant,
}

/// What is to be done about missing frames.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Ask for this one.
    Nack(u32),
    /// This one was asked for often enough.
    GiveUp(u32),
}

/// Whether the path has been silent for `timeout` since `since`, or that was very long ago.
pub fn is_silent(since: Instant, timeout: Duration, moved: Instant, now: Instant) -> bool {
    now >= since.max(moved) + timeout || now >= since + timeout * PATIENCE
}

// === impl Missing ===

impl Missing {
    /// A frame is out that has not been asked for yet.
    pub fn expect(&mut self, seq: u32, now: Instant) {
        self.frames.entry(seq).or_insert(Absence { nacks: 0, since: now });
    }

    /// A frame is in.
    pub fn found(&mut self, seq: u32) {
        self.frames.remove(&seq);
    }

    /// Whether a frame is out.
    pub fn contains(&self, seq: u32) -> bool {
        self.frames.contains_key(&seq)
    }

    /// Asks for a frame now, or gives up.
    pub fn ask(&mut self, seq: u32, max_nacks: u32, now: Instant) -> Due {
        let absence = self.frames.entry(seq).or_insert(Absence { nacks: 0, since: now });
        if absence.nacks >= max_nacks {
            return Due::GiveUp(seq);
        }
        *absence = Absence { nacks: absence.nacks + 1, since: now };
        Due::Nack(seq)
    }

    /// Frames whose time has come: the path has been silent for `timeout` since
    /// they were expected or last asked for. `moved` is when it last was not.
    pub fn overdue(&self, timeout: Duration, moved: Instant, now: Instant) -> Vec<u32> {
        let due = |absence: &Absence| is_silent(absence.since, timeout, moved, now);
        self.frames.iter().filter(|(_, absence)| due(absence)).map(|(&seq, _)| seq).collect()
    }

    /// Whether nothing is known to be out.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
