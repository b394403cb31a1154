//! What holds answers to a form.

use std::sync::{Arc, LazyLock};

use baton_protocol::{Grammar, GrammarKind};

use crate::{GrammarError, ModelText};

/// With bytes for tokens.
static TEXT: LazyLock<ModelText> = LazyLock::new(ModelText::mock);

/// Tokens of an answer under a grammar.
const ANSWER: usize = 6;

/// A JSON Schema.
pub fn json_schema(bytes: &[u8]) {
    grammar(GrammarKind::Json, bytes);
}

/// A regular expression.
pub fn regex(bytes: &[u8]) {
    grammar(GrammarKind::Regex, bytes);
}

/// A grammar in Lark's syntax.
pub fn lark(bytes: &[u8]) {
    grammar(GrammarKind::Lark, bytes);
}

/// What compiles leads an answer on: each token that its mask allows may come.
fn grammar(kind: GrammarKind, bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let grammar = Arc::new(Grammar { kind, source: source.to_owned() });
    let grammars = TEXT.grammars().expect("the mock has grammars");
    let mut state = match grammars.begin(&grammar) {
        Ok(state) => state,
        Err(GrammarError::Source { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    for step in 0..ANSWER {
        let Ok(mask) = state.mask() else { return };
        let bit = |token: &u32| mask[*token as usize / 32] >> (token % 32) & 1 == 1;
        let allowed: Vec<u32> = (0..TEXT.vocab_tokens() as u32).filter(bit).collect();
        assert!(!allowed.is_empty(), "neither goes on nor ends");
        let goes_on: Vec<_> = allowed.iter().filter(|token| !TEXT.is_control(**token)).collect();
        let Some(token) = goes_on.get((step * 37) % goes_on.len().max(1)) else { return };
        state.advance(&[**token]).expect("a token of the mask may come");
    }
}
