//! Pieces of text with scores, as of SentencePiece: BPE whose merges follow from the scores.

use std::collections::HashMap;

use rayon::prelude::*;
use serde_json::json;
use tokenizers::{
    Tokenizer,
    models::bpe::{BPE, Merges},
};

use super::{NORMAL, Tokens, UNUSED, unusable};
use crate::{error::FormatError, gguf::metadata::Metadata};

const SCORES: &str = "tokenizer.ggml.scores";

/// Builds the tokenizer as Transformers converts those of SentencePiece.
pub fn tokenizer(metadata: &Metadata, tokens: Tokens<'_>) -> Result<Tokenizer, FormatError> {
    let missing = || FormatError::Missing { key: SCORES.to_owned() };
    let scores = metadata.optional_floats(SCORES)?.ok_or_else(missing)?;
    if scores.len() != tokens.names.len() || scores.iter().any(|score| score.is_nan()) {
        let found = format!("an array of {} numbers", scores.len());
        let expected = "one number for each token";
        return Err(FormatError::Value { key: SCORES.to_owned(), found, expected });
    }
    let mut bpe = BPE::builder()
        .vocab_and_merges(tokens.ids(), merges(tokens, scores))
        .byte_fallback(true)
        .fuse_unk(true);
    let unknown = metadata.token("tokenizer.ggml.unknown_token_id")?;
    if let Some(unknown) = unknown.and_then(|token| tokens.names.get(token as usize)) {
        bpe = bpe.unk_token(unknown.clone());
    }
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(|error| unusable(&error))?);
    let prefixes = metadata.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let normalizer = match prefixes {
        true => json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, escape] }),
        false => escape,
    };
    let unescape = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let mut decoders = vec![unescape, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefixes {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let normalizer: tokenizers::NormalizerWrapper =
        serde_json::from_value(normalizer).map_err(|error| unusable(&error))?;
    let decoder = json!({ "type": "Sequence", "decoders": decoders });
    let decoder: tokenizers::DecoderWrapper =
        serde_json::from_value(decoder).map_err(|error| unusable(&error))?;
    tokenizer.with_normalizer(Some(normalizer));
    tokenizer.with_decoder(Some(decoder));
    Ok(tokenizer)
}

/// Every pair of pieces that makes a third, the ones that make the best first. Control tokens,
/// bytes and what is matched as a whole are never made by merging.
fn merges(tokens: Tokens<'_>, scores: &[f32]) -> Merges {
    let made = |kind: i128| [NORMAL, UNUSED].contains(&kind);
    let ids: HashMap<&str, u32> =
        tokens.iter().filter(|(_, kind, _)| made(*kind)).map(|(name, _, id)| (name, id)).collect();
    let mut best: Vec<(&str, u32)> = ids.iter().map(|(name, id)| (*name, *id)).collect();
    best.par_sort_unstable_by(|(_, one), (_, other)| {
        scores[*other as usize].total_cmp(&scores[*one as usize]).then(one.cmp(other))
    });
    let splits = |(name, _): &(&str, u32)| {
        let cuts = name.char_indices().skip(1).map(|(at, _)| name.split_at(at));
        let known = cuts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable_by(|one, other| other.cmp(one));
        known.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect::<Vec<_>>()
    };
    best.par_iter().flat_map_iter(splits).collect()
}

#[cfg(test)]
mod tests;
