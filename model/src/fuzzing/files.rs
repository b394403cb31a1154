//! Files of models: whatever loads can be read to its end.

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use serde::Deserialize;
use tempfile::{NamedTempFile, TempDir};

use crate::{ModelText, Weights, fixture::safetensors as with_header, load};

/// Zeros behind what is given, for the values of tensors.
const VALUES: u64 = 1 << 18;

/// A `.gguf` file, of which the header is given.
pub fn gguf(bytes: &[u8]) {
    let file = NamedTempFile::new().expect("there is room for a file");
    fs::write(file.path(), bytes).expect("there is room for a file");
    file.as_file().set_len(bytes.len() as u64 + VALUES).expect("there is room for a file");
    loaded(file.path(), VALUES + bytes.len() as u64);
}

/// The only file of weights of a directory, as it is, and as the header of one that has all that it speaks of.
pub fn safetensors(bytes: &[u8]) {
    let folder = folder();
    let file = folder.path().join("model.safetensors");
    for bytes in [bytes.to_vec(), with_values(bytes)] {
        fs::write(&file, &bytes).expect("there is room for a file");
        loaded(folder.path(), bytes.len() as u64);
    }
}

/// All files of a directory but the tokenizer, with a zero between them; the last is the header of the weights.
pub fn model_directory(bytes: &[u8]) {
    const FILES: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "chat_template.jinja",
    ];
    let folder = folder();
    let mut parts = bytes.split(|byte| *byte == 0);
    for (file, part) in FILES.iter().zip(&mut parts) {
        // An empty one is none.
        if !part.is_empty() {
            fs::write(folder.path().join(file), part).expect("there is room for a file");
        }
    }
    let weights = with_values(parts.next().unwrap_or_default());
    fs::write(folder.path().join("model.safetensors"), &weights).expect("there is room for a file");
    loaded(folder.path(), weights.len() as u64);
}

/// A folder with the mock's tokenizer, and the configuration of a llama of one layer.
fn folder() -> TempDir {
    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 2, "vocab_size": 258, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true}"#;
    static TOKENIZER: LazyLock<String> = LazyLock::new(|| {
        let bytes = ModelText::mock().to_bytes();
        let document: serde_json::Value = serde_json::from_slice(&bytes).expect("the mock's text is JSON");
        document["text"]["tokenizer"].to_string()
    });
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text);
    write("tokenizer.json", &TOKENIZER).expect("there is room for a file");
    write("config.json", CONFIG).expect("there is room for a file");
    folder
}

/// A file with this header and as many values as it speaks of, if they are not too many.
fn with_values(header: &[u8]) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Place {
        data_offsets: (u64, u64),
    }
    let places: BTreeMap<String, Place> = serde_json::from_slice(header).unwrap_or_default();
    let end = places.values().map(|place| place.data_offsets.1).max().unwrap_or(0);
    with_header(&String::from_utf8_lossy(header), end.min(VALUES) as usize)
}

/// What loads can be read, and is no larger than its file.
fn loaded(path: &Path, bytes: u64) {
    let Ok(model) = load(path) else { return };
    assert!(model.weights.stored_bytes() <= bytes);
    model.weights.names().for_each(|name| read(&model.weights, name));
    let tokens = model.text.encode("Hello, 12 wörlds 🦀", true).unwrap_or_default();
    drop(model.text.decode(&tokens));
}

fn read(weights: &Weights, name: &str) {
    match weights.shape(name) {
        Some([_]) => weights.vector(name).map(drop).unwrap_or_default(),
        _ => weights.matrix(name).map(drop).unwrap_or_default(),
    }
}
