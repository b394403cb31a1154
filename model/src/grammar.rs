//! What an answer must be, as tokens: JSON Schemas, regular expressions and Lark grammars, through `llguidance`.
//!
//! - [`Grammars`]: compiles for the vocabulary of one model, within limits, and keeps the last few
//! - [`GrammarState`]: where one answer stands, and the tokens that may follow
//! - `source`: what `llguidance` is given; `formats`: what it does not know of formats

mod formats;
mod source;

use std::{fmt, sync::Arc, thread};

use baton_protocol::Grammar;
use llguidance::{
    Matcher, ParserFactory, panic_utils,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use parking_lot::Mutex;

pub use source::on_one_line;

use crate::text::ModelText;

/// Compiles grammars for the vocabulary of one model.
pub struct Grammars {
    factory: ParserFactory,
    /// Most recently used last. The lock is held for a look, never while compiling.
    compiled: Mutex<Vec<(Arc<Grammar>, GrammarState)>>,
    mask_words: usize,
}

/// Where an answer stands in its grammar. Clones go on by themselves, over shared caches.
#[derive(Clone)]
pub struct GrammarState {
    matcher: Box<Matcher>,
    mask_words: usize,
}

/// Why there is no grammar, or none any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It cannot be compiled, or exceeds the limits on what compiling may take.
    #[error("{reason}")]
    Source {
        /// What is wrong.
        reason: String,
    },
    /// The model has no token that ends an answer.
    #[error("the model has no token that ends an answer")]
    NoEnd,
    /// The vocabulary cannot be used.
    #[error("the vocabulary cannot be used for grammars: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// Nothing can be compiled now.
    #[error("no thread for compiling grammars could be started: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
    /// The answer cannot go on: it has left the grammar, or a step exceeds the limits.
    #[error("the answer cannot go on within its grammar: {reason}")]
    Stuck {
        /// What happened.
        reason: String,
    },
}

/// Grammars that are kept compiled.
const KEPT: usize = 32;

/// Stack of what compiles: `llguidance` calls itself for each reference in a chain of them, some KiB a time,
/// and 64 KiB of source hold a chain of thousands. What is not used is never touched.
const STACK: usize = 256 << 20;

/// A lexer's states take one to two KiB each.
const MAX_LEXER_STATES: usize = 30_000;

/// Symbols in a grammar's productions.
const MAX_SYMBOLS: usize = 100_000;

/// Characters of a message that is passed on.
const MAX_REASON: usize = 300;

// === impl Grammars ===

impl Grammars {
    /// For the vocabulary of `text`. Takes about as long as loading its tokenizer.
    ///
    /// # Errors
    /// When answers of the model cannot end, or its vocabulary is not usable.
    pub(crate) fn new(text: &ModelText) -> Result<Self, GrammarError> {
        let eos_tokens = text.eos_tokens();
        let first = *eos_tokens.first().ok_or(GrammarError::NoEnd)?;
        let vocab_tokens = text.vocab_tokens();
        let words: Vec<Vec<u8>> = (0..vocab_tokens as u32)
            .map(|token| {
                let bytes = text.token_bytes(token);
                // No text may become a token that steers the model.
                if text.is_control(token) || eos_tokens.contains(&token) {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
                } else {
                    bytes
                }
            })
            .collect();
        let build = || {
            let info = TokRxInfo::new(vocab_tokens as u32, first);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(eos_tokens);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        };
        let built = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(build));
        let mut factory = built.map_err(|error| GrammarError::Vocabulary { reason: reason(&error) })?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_SYMBOLS;
        limits.verbose_errors = false;
        Ok(Self { factory, compiled: Mutex::default(), mask_words: vocab_tokens.div_ceil(32) })
    }

    /// An answer's state before its first token. Compiling can take a second.
    ///
    /// # Errors
    /// When the grammar is none, or too large.
    pub fn begin(&self, grammar: &Arc<Grammar>) -> Result<GrammarState, GrammarError> {
        if let Some(state) = self.kept(grammar) {
            return Ok(state);
        }
        let state = thread::scope(|scope| {
            let thread = thread::Builder::new().name("compile-grammar".to_owned()).stack_size(STACK);
            let compiling = thread.spawn_scoped(scope, || self.compile(grammar));
            let compiling = compiling.map_err(|error| GrammarError::Thread { reason: error.to_string() })?;
            compiling
                .join()
                .unwrap_or_else(|_| Err(GrammarError::Source { reason: "it breaks the compiler".into() }))
        })?;
        let mut compiled = self.compiled.lock();
        if compiled.len() >= KEPT {
            compiled.remove(0);
        }
        compiled.push((Arc::clone(grammar), state.clone()));
        Ok(state)
    }

    fn compile(&self, grammar: &Grammar) -> Result<GrammarState, GrammarError> {
        let top = source::top_level(grammar)?;
        let compile = || self.factory.create_parser(top);
        let parser = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(compile));
        let parser = parser.map_err(|error| GrammarError::Source { reason: reason(&error) })?;
        let mut state =
            GrammarState { matcher: Box::new(Matcher::new(Ok(parser))), mask_words: self.mask_words };
        // Shows what is wrong only once it runs, such as a grammar that accepts nothing.
        state.mask().map_err(|error| match error {
            GrammarError::Stuck { reason } => GrammarError::Source { reason },
            other => other,
        })?;
        Ok(state)
    }

    fn kept(&self, grammar: &Grammar) -> Option<GrammarState> {
        let mut compiled = self.compiled.lock();
        let found = compiled.iter().position(|(kept, _)| **kept == *grammar)?;
        let entry = compiled.remove(found);
        let state = entry.1.clone();
        compiled.push(entry);
        Some(state)
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammars").field("kept", &self.compiled.lock().len()).finish_non_exhaustive()
    }
}

// === impl GrammarState ===

impl GrammarState {
    /// Takes the next tokens of the answer, none of which ends it.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`] when one of them may not come here.
    pub fn advance(&mut self, tokens: &[u32]) -> Result<(), GrammarError> {
        self.matcher.consume_tokens(tokens).map_err(|error| stuck(&error))
    }

    /// Tokens that may come next: bit `token % 32` of word `token / 32`. Those that end an
    /// answer are among them where it may end, and alone where it has to.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`] when none may, or finding out takes too much.
    pub fn mask(&mut self) -> Result<Arc<[u32]>, GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| stuck(&error))?;
        let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0)).take(self.mask_words);
        Ok(words.collect())
    }
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GrammarState").finish_non_exhaustive()
    }
}

fn stuck(error: &impl fmt::Display) -> GrammarError {
    GrammarError::Stuck { reason: reason(error) }
}

/// The first line of an error, not too long: what follows are traces.
fn reason(error: &impl fmt::Display) -> String {
    let text = format!("{error:#}");
    let text = text.split("<backtrace>").next().unwrap_or_default();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests;
