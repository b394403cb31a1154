use std::collections::BTreeMap;

use super::*;
use crate::gguf::metadata::Value;

/// Control tokens, a byte, a piece that is matched as a whole, and pieces from the best on.
const PIECES: [(&str, i128); 14] = [
    ("<unk>", 3),
    ("<s>", 3),
    ("<0x21>", 6),
    ("  ", 4),
    ("ab", 1),
    ("bc", 1),
    ("▁ab", 1),
    ("abc", 1),
    ("▁", 1),
    ("a", 1),
    ("b", 1),
    ("c", 1),
    ("<", 1),
    ("s", 1),
];

fn metadata(prefix: Option<bool>) -> Metadata {
    let scores = (0..PIECES.len()).map(|rank| -(rank as f32)).collect();
    let mut values = BTreeMap::from([
        (SCORES.to_owned(), Value::Floats(scores)),
        ("tokenizer.ggml.unknown_token_id".to_owned(), Value::Int(0)),
    ]);
    values.extend(prefix.map(|prefix| ("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(prefix))));
    Metadata::new(values)
}

fn built(prefix: Option<bool>) -> Tokenizer {
    let names: Vec<String> = PIECES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let types: Vec<i128> = PIECES.iter().map(|(_, kind)| *kind).collect();
    let tokens = Tokens { names: &names, types: &types };
    let mut tokenizer = tokenizer(&metadata(prefix), tokens).unwrap();
    tokenizer.add_tokens(&tokens.added());
    tokenizer
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> String {
    tokenizer.encode(text, false).unwrap().get_tokens().join("|")
}

#[test]
fn the_best_merge_comes_first() {
    let tokenizer = built(Some(false));
    assert_eq!(pieces(&tokenizer, "abc"), "abc");
    // `ab` is better than `bc`, so `bc` is not there for `a` to meet.
    assert_eq!(pieces(&tokenizer, "abcc"), "abc|c");
    assert_eq!(pieces(&tokenizer, "bcab"), "bc|ab");
    assert_eq!(pieces(&tokenizer, "a ab"), "a|▁ab");
}

#[test]
fn bytes_stand_for_what_is_no_piece() {
    let tokenizer = built(Some(false));
    assert_eq!(pieces(&tokenizer, "a!"), "a|<0x21>");
    // A byte that has no token, either.
    assert_eq!(pieces(&tokenizer, "?"), "<unk>");
    // Its name is no way to write it.
    assert!(!pieces(&tokenizer, "<0x21>").contains("<0x21>"));
}

#[test]
fn some_texts_begin_with_a_space() {
    assert_eq!(pieces(&built(None), "ab"), "▁ab");
    assert_eq!(pieces(&built(Some(true)), "ab"), "▁ab");
    assert_eq!(pieces(&built(Some(false)), "ab"), "ab");
}

#[test]
fn control_tokens_and_whole_pieces_are_exact() {
    let mut tokenizer = built(Some(false));
    assert_eq!(pieces(&tokenizer, "<s>ab"), "<s>|ab");
    assert_eq!(pieces(&tokenizer, "a  b"), "a|  |b");
    tokenizer.set_encode_special_tokens(true);
    assert_eq!(pieces(&tokenizer, "<s>"), "<|s|<unk>");
}
