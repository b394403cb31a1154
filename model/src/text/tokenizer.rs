//! Tokenizers from bytes.

use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

/// A tokenizer whose decoder is JSON. The reader of `tokenizers` takes that for granted and panics
/// where it is not (`DecoderWrapper`, 0.22), so that whoever reads one looks at this before.
#[derive(Deserialize)]
pub struct Plain {
    #[serde(rename = "decoder", default)]
    _decoder: Json,
}

/// Reads a `tokenizer.json`.
pub fn read(bytes: &[u8]) -> tokenizers::Result<Tokenizer> {
    serde_json::from_slice::<Plain>(bytes)?;
    Tokenizer::from_bytes(bytes)
}
