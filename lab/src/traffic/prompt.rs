//! Prompts by the number of their tokens, and how they are spelled.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A part of a prompt. Equal pieces are spelled alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Drawn from a seed.
    Drawn {
        /// Decides on what is said.
        seed: u64,
        /// How long it should be.
        tokens: usize,
    },
    /// What a trace has.
    Text(String),
}

/// How a server is told so many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Vocabulary {
    /// As ids from `low` on, below `high`: exactly as many as wanted.
    Ids {
        /// The first.
        low: u32,
        /// The first that is not used.
        high: u32,
    },
    /// As words. What a server makes of them is measured once.
    Words {
        /// Tokens of a word with the blank before it.
        tokens_of_word: f64,
        /// Tokens that every prompt has beside its words: of a chat template, say.
        tokens_around: f64,
    },
}

/// Words of four letters that common vocabularies have as one token each, so
/// that also a server which counts bytes gives all of them the same length.
const WORDS: [&str; 64] = [
    "time", "year", "work", "part", "week", "case", "hand", "life", "side", "head", "home", "book", "line",
    "city", "name", "team", "idea", "body", "face", "door", "room", "food", "land", "wall", "road", "form",
    "game", "town", "tree", "wind", "ship", "snow", "rain", "fire", "moon", "star", "gold", "blue", "dark",
    "cold", "warm", "deep", "high", "long", "good", "free", "full", "real", "true", "open", "next", "last",
    "same", "such", "much", "many", "more", "most", "some", "when", "here", "only", "then", "over",
];
/// Of text whose tokens nobody counted.
const BYTES_OF_TOKEN: usize = 4;

// === impl Piece ===

impl Piece {
    /// Its tokens: as wanted, or guessed from the text's length.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Drawn { tokens, .. } => *tokens,
            Self::Text(text) => guess_tokens(text),
        }
    }

    /// So many ids of some vocabulary, equal for equal pieces: where nobody reads them.
    pub(crate) fn any_ids(&self) -> Vec<u32> {
        let seed = match self {
            Self::Drawn { seed, .. } => *seed,
            Self::Text(text) => text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            }),
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        (0..self.tokens()).map(|_| random.next_u32()).collect()
    }
}

/// Tokens of text, at four bytes each; at least one.
pub(super) fn guess_tokens(text: &str) -> usize {
    (text.len() / BYTES_OF_TOKEN).max(1)
}

// === impl Vocabulary ===

impl Vocabulary {
    /// One word a token, and nothing around.
    pub const PLAIN: Self = Self::Words { tokens_of_word: 1.0, tokens_around: 0.0 };

    /// Fits words to what a server counted in two prompts: (words, tokens) of each.
    pub fn fit((words, tokens): (usize, usize), (more_words, more_tokens): (usize, usize)) -> Option<Self> {
        let slope = (more_tokens as f64 - tokens as f64) / (more_words as f64 - words as f64);
        let around = tokens as f64 - slope * words as f64;
        (slope.is_finite() && slope > 0.0)
            .then_some(Self::Words { tokens_of_word: slope, tokens_around: around.max(0.0) })
    }

    /// The piece as text. The first of a prompt makes up for what is around all of it.
    pub fn text(&self, piece: &Piece, is_first: bool) -> String {
        let (seed, tokens) = match piece {
            Piece::Text(text) => return text.clone(),
            Piece::Drawn { seed, tokens } => (*seed, *tokens as f64),
        };
        let (of_word, around) = match *self {
            Self::Words { tokens_of_word, tokens_around } => (tokens_of_word, tokens_around),
            Self::Ids { .. } => (1.0, 0.0),
        };
        let wanted = tokens - if is_first { around } else { 0.0 };
        let words = (wanted / of_word).round().max(1.0) as usize;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut text = String::with_capacity(words * 5);
        for _ in 0..words {
            text.push(' ');
            text.push_str(WORDS[random.random_range(0..WORDS.len())]);
        }
        text
    }

    /// The piece as ids; none: words or a trace's text have none.
    pub fn ids(&self, piece: &Piece) -> Option<Vec<u32>> {
        match (self, piece) {
            (Self::Ids { low, high }, Piece::Drawn { seed, tokens }) => {
                let mut random = ChaCha8Rng::seed_from_u64(*seed);
                Some((0..*tokens).map(|_| random.random_range(*low..*high)).collect())
            }
            _ => None,
        }
    }
}
