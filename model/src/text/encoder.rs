//! Text to tokens. Words that were seen before are looked up: of a prompt in
//! words, that takes a tenth of the time that the tokenizer takes.

use std::{collections::HashMap, ops::Range};

use parking_lot::RwLock;
use tokenizers::Tokenizer;

use super::splits::{cuts_at_words, words};

/// A tokenizer and the words that it has seen of late.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// None: its tokens cannot be had word by word.
    seen: Option<RwLock<Seen>>,
}

/// The tokens of words, in two generations: when one is full, the one before it is forgotten.
#[derive(Default)]
struct Seen {
    young: HashMap<Box<str>, Box<[u32]>>,
    old: HashMap<Box<str>, Box<[u32]>>,
}

/// A word that was not seen, and how many tokens come before it of those that were.
struct Gap<'a> {
    word: &'a str,
    at: usize,
}

/// Words of a generation.
const GENERATION: usize = 1 << 14;
/// Bytes of a word that is worth keeping.
const LONGEST: usize = 48;

// === impl Encoder ===

impl Encoder {
    pub fn new(tokenizer: Tokenizer) -> Self {
        let seen = cuts_at_words(&tokenizer).then(RwLock::default);
        Self { tokenizer, seen }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens of a text, without any that begin or end it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let Some(seen) = &self.seen else {
            return Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        };
        let (tokens, gaps) = seen.read().tokens(text);
        if gaps.is_empty() { Ok(tokens) } else { self.fill(seen, &tokens, &gaps) }
    }

    /// `tokens` with those of the words between them, which are kept.
    fn fill(
        &self,
        seen: &RwLock<Seen>,
        tokens: &[u32],
        gaps: &[Gap<'_>],
    ) -> Result<Vec<u32>, tokenizers::Error> {
        // At once, as the words of one text: a call has its price too.
        let text: String = gaps.iter().map(|gap| gap.word).collect();
        let encoding = self.tokenizer.encode(text, false)?;
        let found = by_word(encoding.get_offsets(), gaps);
        let mut filled = Vec::with_capacity(tokens.len() + encoding.len());
        let mut seen = seen.write();
        let mut copied = 0;
        for (Gap { word, at }, range) in gaps.iter().zip(found) {
            let found = &encoding.get_ids()[range];
            filled.extend_from_slice(&tokens[copied..*at]);
            filled.extend_from_slice(found);
            copied = *at;
            seen.keep(word, found);
        }
        filled.extend_from_slice(&tokens[copied..]);
        Ok(filled)
    }
}

/// Which tokens are whose, by the bytes of the text of all `gaps` that each stands for.
fn by_word(offsets: &[(usize, usize)], gaps: &[Gap<'_>]) -> Vec<Range<usize>> {
    let (mut begin, mut end) = (0, 0);
    let ranges = gaps.iter().map(|gap| {
        end += gap.word.len();
        let tokens = offsets[begin..].iter().take_while(|(first, _)| *first < end).count();
        let range = begin..begin + tokens;
        begin = range.end;
        range
    });
    let mut ranges: Vec<_> = ranges.collect();
    if let Some(last) = ranges.last_mut() {
        last.end = offsets.len();
    }
    ranges
}

// === impl Seen ===

impl Seen {
    /// The tokens of the words of `text` that were seen, and the others.
    fn tokens<'a>(&self, text: &'a str) -> (Vec<u32>, Vec<Gap<'a>>) {
        let (mut tokens, mut gaps) = (Vec::with_capacity(text.len() / 4), Vec::new());
        for word in words(text) {
            match self.young.get(word).or_else(|| self.old.get(word)) {
                Some(known) => tokens.extend_from_slice(known),
                None => gaps.push(Gap { word, at: tokens.len() }),
            }
        }
        (tokens, gaps)
    }

    fn keep(&mut self, word: &str, tokens: &[u32]) {
        if word.len() > LONGEST {
            return;
        }
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(word.into(), tokens.into());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::{
        super::{
            splits::{GPT4O, LLAMA3, QWEN2, TEKKEN},
            vocabulary::byte_name,
        },
        *,
    };

    /// Merges that reach over letters, digits, marks, spaces and line feeds alike, so that a cut in
    /// the wrong place changes tokens.
    const MERGES: [&str; 12] =
        ["a b", "Ġ a", "Ġ Ġ", "ab a", "Ġa b", "' s", "1 1", "Ċ Ċ", "a Ġ", "! Ġ", "Ġ !", "Ã ©"];

    fn split(regex: &str) -> Json {
        json!([{ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }])
    }

    fn gpt2() -> Json {
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
    }

    fn tokenizer(steps: &Json, added: &Json) -> Tokenizer {
        let names = (0..=u8::MAX).filter_map(byte_name).map(String::from);
        let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
        let vocab: serde_json::Map<_, _> =
            names.chain(merged).zip(0u32..).map(|(name, id)| (name, id.into())).collect();
        let model = json!({ "type": "BPE", "vocab": vocab, "merges": MERGES, "ignore_merges": true });
        let bytes = gpt2();
        let json = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": { "type": "NFC" }, "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "post_processor": bytes, "decoder": bytes, "model": model });
        serde_json::from_value(json).unwrap()
    }

    fn added(content: &str) -> Json {
        json!([{ "id": 300, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }])
    }

    fn all() -> Vec<Encoder> {
        let mut steps = vec![json!([gpt2()])];
        steps.push(json!([{ "type": "Digits", "individual_digits": true }, gpt2()]));
        steps.extend([LLAMA3, QWEN2, GPT4O, TEKKEN].map(split));
        steps.iter().map(|steps| Encoder::new(tokenizer(steps, &added("<|a|>")))).collect()
    }

    #[test]
    fn what_cannot_be_cut_is_not() {
        let is_cut = |steps: &Json, token| cuts_at_words(&tokenizer(steps, &added(token)));
        assert!(is_cut(&json!([gpt2()]), "<|a|>"));
        assert!(!is_cut(&json!([gpt2()]), "a b"));
        assert!(!is_cut(&split(r"\s?\S+\s?"), "<|a|>"));
        assert!(!is_cut(
            &json!([gpt2(), { "type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true }]),
            "<|a|>"
        ));
    }

    #[test]
    fn words_begin_with_a_space_before_a_letter() {
        let all: Vec<_> = words(" one two  three\n four, 5 é six\u{a0} x ").collect();
        assert_eq!(all, [" one", " two  three\n four, 5", " é", " six\u{a0} x "]);
        assert_eq!(words("").count(), 0);
    }

    #[test]
    fn generations_are_forgotten() {
        let mut seen = Seen::default();
        for word in 0..3 * GENERATION {
            seen.keep(&word.to_string(), &[word as u32]);
        }
        assert!(seen.young.len() <= GENERATION && seen.old.len() <= GENERATION);
        assert_eq!(seen.tokens(&(3 * GENERATION - 1).to_string()).0, [(3 * GENERATION - 1) as u32]);
        assert_eq!(seen.tokens("0").1.len(), 1);
    }

    proptest! {
        /// Whatever the text, and whichever of its words were seen: the tokens are the tokenizer's own.
        #[test]
        fn tokens_are_the_tokenizers(
            texts in prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec![
                    "a", "ab", "b", "é", "e\u{301}", "\u{301}", "中", "Ⅷ", "1", "11", "'s", "'", "!", "/", "<|a|>", "_",
                    " ", " ", " ", "  ", "\t", "\n", "\r\n", "\u{a0}", "\u{3000}", "\u{1f600}", "\u{200d}", "A", "ǅ",
                ]), 0..40),
                1..4,
            ),
        ) {
            for encoder in all() {
                for text in texts.iter().chain(&texts).map(|parts| parts.concat()) {
                    let own = encoder.tokenizer().encode_fast(text.as_str(), false).unwrap();
                    prop_assert_eq!(encoder.encode(&text).unwrap(), own.get_ids(), "{:?}", text);
                }
            }
        }
    }
}
