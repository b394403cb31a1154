//! What sessions look like when no trace says it.

use std::time::Duration;

use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::{Length, Piece, Session, Turn};

/// Lengths of a session's parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Tokens that are said in each turn.
    pub input: Length,
    /// Tokens of each answer.
    pub output: Length,
    /// Turns; each begins with all that was said and answered before.
    pub turns: Length,
    /// From an answer to the next turn.
    pub pause_ms: u64,
    /// What sessions begin with.
    pub prefixes: Prefixes,
}

/// Beginnings that sessions share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefixes {
    /// Tokens of each; 0: sessions share nothing.
    pub tokens: usize,
    /// Different ones; each session begins with one of them.
    pub count: usize,
}

// === impl Shape ===

impl Default for Shape {
    /// One turn of 128 tokens, and 64 of an answer.
    fn default() -> Self {
        Self {
            input: Length::fixed(128),
            output: Length::fixed(64),
            turns: Length::fixed(1),
            pause_ms: 0,
            prefixes: Prefixes::default(),
        }
    }
}

impl Shape {
    /// A session, without its time. `seed` is that of the workload: prefixes are the same in all of it.
    pub(super) fn session(&self, class: usize, seed: u64, random: &mut impl Rng) -> Session {
        let turns = (0..self.turns.draw(random).max(1)).map(|turn| Turn {
            pause: if turn == 0 { Duration::ZERO } else { Duration::from_millis(self.pause_ms) },
            said: vec![Piece::Drawn { seed: random.next_u64(), tokens: self.input.draw(random) }],
            output_tokens: self.output.draw(random).max(1),
        });
        let turns = turns.collect();
        Session { at: Duration::ZERO, class, prefix: self.prefixes.draw(class, seed, random), turns }
    }
}

// === impl Prefixes ===

impl Prefixes {
    fn draw(self, class: usize, seed: u64, random: &mut impl RngCore) -> Option<Piece> {
        if self.tokens == 0 {
            return None;
        }
        let number = random.random_range(0..self.count.max(1) as u64);
        // Far from the seeds of turns, which are drawn.
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((class as u64) << 32 | number);
        Some(Piece::Drawn { seed, tokens: self.tokens })
    }
}
