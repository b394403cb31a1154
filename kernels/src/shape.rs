//! What is done to a row of logits before a token is drawn from it.

use bytemuck::{Pod, Zeroable};

/// Penalties of tokens that were there before, and whose list says which they are. First
/// biases are added, then tokens of the list become less likely, then tokens are forbidden.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Shape {
    /// A positive logit is divided by it, another multiplied; of every token of the list.
    pub repetition: f32,
    /// Taken from a token that is in the answer.
    pub presence: f32,
    /// Taken from a token for each time that it is in the answer.
    pub frequency: f32,
    /// Place of the sequence's list ([`List::words`]); negative: none.
    pub slot: i32,
    /// Row of the step whose token joins the list first; negative: none does.
    pub newest: i32,
    /// How often that is in the answer thereby: 0 for a token of the prompt.
    pub times: i32,
    /// Whether the row's mask says which tokens may be drawn: 0 or 1.
    pub masked: i32,
    /// Fills the record.
    pub unused: i32,
}

// === impl Shape ===

impl Shape {
    /// Words of one in memory.
    pub const WORDS: usize = size_of::<Self>() / 4;

    /// Leaves a row as it is.
    pub const NONE: Self = Self {
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        slot: -1,
        newest: -1,
        times: 0,
        masked: 0,
        unused: 0,
    };

    /// As a kernel reads it.
    #[must_use]
    pub fn words(&self) -> &[i32] {
        bytemuck::cast_slice(std::slice::from_ref(self))
    }
}

/// Words of a mask of `vocab` tokens, of which bit `token % 32` of word `token / 32` allows a token.
#[must_use]
pub const fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// What shapes a sequence's rows besides penalties. No token twice in either part.
#[derive(Clone, Copy, Debug, Default)]
pub struct List<'a> {
    /// Tokens, and what is added to their logits.
    pub biases: &'a [(u32, f32)],
    /// Tokens seen so far, and how often each is in the answer.
    pub seen: &'a [(u32, u32)],
}

// === impl List ===

impl List<'_> {
    /// As a kernel reads it: pairs, of which the first says how many there are in all, and how many biases.
    #[must_use]
    pub fn words(&self) -> Vec<i32> {
        let head = [(1 + self.biases.len() + self.seen.len()) as i32, self.biases.len() as i32];
        let biases = self.biases.iter().map(|(token, bias)| [*token as i32, bias.to_bits() as i32]);
        let seen = self.seen.iter().map(|(token, times)| [*token as i32, *times as i32]);
        std::iter::once(head).chain(biases).chain(seen).flatten().collect()
    }
}
