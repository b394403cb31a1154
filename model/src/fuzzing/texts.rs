//! What stands between text and tokens, and what holds answers to a form.

use std::sync::{Arc, LazyLock};

use baton_protocol::{Grammar, GrammarKind};
use serde_json::{Value as Json, json};

use crate::{
    GrammarError, ModelText,
    text::{Document, template::ChatTemplate},
};

/// With bytes for tokens.
static TEXT: LazyLock<ModelText> = LazyLock::new(ModelText::mock);

/// Tokens of an answer under a grammar.
const ANSWER: usize = 6;

/// `tokenizer.json`: whatever it makes of texts is in its vocabulary, and texts survive being stored.
pub fn tokenizer(bytes: &[u8]) {
    let Ok(tokenizer) = crate::text::tokenizer::read(bytes) else { return };
    let document = Document {
        tokenizer,
        chat_template: None,
        bos_token: None,
        adds_bos: false,
        eos_tokens: vec![0],
        context_tokens: 64,
        vocab_tokens: 300,
    };
    let Ok(text) = ModelText::new(document) else { return };
    let again = ModelText::from_bytes(&text.to_bytes()).expect("what was written is a text");
    for sample in ["", "Hello, 12 wörlds 🦀<|im_end|>", "  a\n\n\tb ", &"a1 ".repeat(40)] {
        let Ok(tokens) = text.encode(sample, true) else { continue };
        assert!(tokens.iter().all(|token| (*token as usize) < text.vocab_tokens()), "{tokens:?}");
        assert_eq!(again.encode(sample, true).ok(), Some(tokens.clone()));
        drop(text.decode(&tokens));
    }
}

/// A template, and behind a zero the messages that it renders. Without namespaces: one that holds itself
/// is followed until the stack is over (minijinja 3.1), as `SECURITY.md` says.
pub fn chat_template(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let Some(Ok(source)) = parts.next().map(std::str::from_utf8) else { return };
    let messages = parts.next().and_then(|part| serde_json::from_slice::<Json>(part).ok());
    let messages = messages.unwrap_or_else(
        || json!([{ "role": "system", "content": "Be kind." }, { "role": "user", "content": "Hello" }]),
    );
    if source.contains("namespace") {
        return;
    }
    let Ok(template) = ChatTemplate::new(source.to_owned(), Some("<s>".to_owned()), None) else { return };
    template.reads("tools");
    if let Ok(text) = template.render(&messages, &serde_json::Map::new(), &str::to_owned) {
        assert!(text.len() <= 1 << 24);
    }
}

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
