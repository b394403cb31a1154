//! Which of a repository's files make a model.

use std::{collections::BTreeSet, path::Path};

use serde::Deserialize;

use super::{super::reference::Pick, error::HubError};
use crate::read_bounded;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 1 << 24;
/// Files without which no checkpoint loads.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that a checkpoint may have besides.
const WANTED: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Weights that are programs when read.
const PICKLES: [&str; 4] = [".bin", ".pth", ".pt", ".ckpt"];

/// What is to be used of a repository.
pub enum Choice {
    /// This file.
    Gguf(String),
    /// Settings, tokenizer and safetensors.
    Checkpoint(Checkpoint),
}

/// A checkpoint's files, as far as the repository's listing says.
pub struct Checkpoint {
    /// Settings, tokenizer, and the index of the weights if there is one.
    pub settings: Vec<String>,
    /// Whether the index says which files hold the weights.
    indexed: bool,
}

/// The names of models in GGUF files; not of what projects images into them.
pub fn gguf_files(names: &BTreeSet<String>) -> Vec<String> {
    let stem = |name: &str| name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let model = |name: &&String| stem(name).ends_with(".gguf") && !stem(name).starts_with("mmproj");
    names.iter().filter(model).cloned().collect()
}

/// Chooses among the files that there are.
///
/// # Errors
/// When nothing can be used, or several things could be meant; says what there is.
pub fn choose(repository: &str, names: &BTreeSet<String>, pick: &Pick) -> Result<Choice, HubError> {
    let indexed = names.contains(INDEX);
    if *pick == Pick::Only && (indexed || names.contains(SINGLE)) {
        let lacks = |file: &str| HubError::Lacks { repository: repository.to_owned(), file: file.to_owned() };
        if let Some(absent) = NEEDED.into_iter().find(|name| !names.contains(*name)) {
            return Err(lacks(absent));
        }
        let all = NEEDED.into_iter().chain(WANTED).chain([INDEX]);
        let settings = all.filter(|name| names.contains(*name)).map(str::to_owned).collect();
        return Ok(Choice::Checkpoint(Checkpoint { settings, indexed }));
    }
    let files = gguf_files(names);
    if files.is_empty() {
        let pickles = names.iter().find(|name| PICKLES.iter().any(|end| name.ends_with(end)));
        let repository = repository.to_owned();
        return Err(match pickles {
            Some(file) => HubError::Pickles { repository, file: file.clone() },
            None => HubError::NoModel { repository },
        });
    }
    let matching: Vec<_> = files.iter().filter(|file| picks(pick, file)).cloned().collect();
    let (repository, listed) = (repository.to_owned(), || list(&files));
    match matching.as_slice() {
        [file] if is_part(file) => Err(HubError::Split { repository, file: file.clone() }),
        [file] => Ok(Choice::Gguf(file.clone())),
        [] => Err(HubError::NoSuchFile { repository, wanted: wanted(pick), available: listed() }),
        [first, ..] if matching.iter().all(|file| is_part(file)) => {
            Err(HubError::Split { repository, file: first.clone() })
        }
        _ => Err(HubError::Ambiguous { repository, matching: list(&matching) }),
    }
}

fn list(files: &[String]) -> String {
    files.join(", ")
}

fn wanted(pick: &Pick) -> String {
    match pick {
        Pick::Only => "GGUF".to_owned(),
        Pick::Quantisation(name) | Pick::File(name) => name.clone(),
    }
}

fn picks(pick: &Pick, file: &str) -> bool {
    match pick {
        Pick::Only => true,
        Pick::File(name) => name == file,
        Pick::Quantisation(name) => quantisation(file).eq_ignore_ascii_case(name),
    }
}

/// What stands before `.gguf`, and before a part's number: `model-Q4_K_M.gguf` is a Q4_K_M.
fn quantisation(file: &str) -> &str {
    let stem = &file[..file.len() - ".gguf".len()];
    let stem = if is_part(file) { &stem[..stem.len() - PART.len()] } else { stem };
    stem.rsplit(['-', '.', '/']).next().unwrap_or(stem)
}

/// How parts of a file are numbered.
const PART: &str = "-00001-of-00002";

fn is_part(file: &str) -> bool {
    let stem = &file.as_bytes()[..file.len() - ".gguf".len()];
    let Some(end) = stem.len().checked_sub(PART.len()).map(|start| &stem[start..]) else { return false };
    end.iter().zip(PART.bytes()).all(|(&found, pattern)| match pattern {
        b'0'..=b'9' => found.is_ascii_digit(),
        pattern => found == pattern,
    })
}

// === impl Checkpoint ===

impl Checkpoint {
    /// The files that hold the weights; `directory` holds the settings by now.
    ///
    /// # Errors
    /// When the index is not one.
    pub fn shards(&self, directory: &Path) -> Result<Vec<String>, HubError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        if !self.indexed {
            return Ok(vec![SINGLE.to_owned()]);
        }
        let wrong = |reason: String| HubError::Index { path: directory.join(INDEX), reason };
        let bytes = read_bounded(&directory.join(INDEX), MAX_INDEX_BYTES)
            .map_err(|error| wrong(error.to_string()))?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        let shards: BTreeSet<_> = index.weight_map.into_values().collect();
        let plain = |shard: &&String| shard.ends_with(".safetensors") && !shard.contains(['/', '\\', '\0']);
        match shards.iter().find(|shard| !plain(shard)) {
            Some(shard) => Err(wrong(format!("`{shard}` is no name of a safetensors file"))),
            None => Ok(shards.into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn file(there: &[&str], pick: &Pick) -> Result<String, HubError> {
        match choose("org/name", &names(there), pick)? {
            Choice::Gguf(file) => Ok(file),
            Choice::Checkpoint(_) => Ok("checkpoint".to_owned()),
        }
    }

    fn quantised(name: &str) -> Pick {
        Pick::Quantisation(name.to_owned())
    }

    #[test]
    fn a_checkpoint_is_its_needed_files() {
        let there = names(&[
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors.index.json",
            "modeling_x.py",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "chat_template.jinja",
        ]);
        let Choice::Checkpoint(checkpoint) = choose("org/name", &there, &Pick::Only).unwrap() else {
            panic!()
        };
        let settings =
            ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"];
        assert_eq!(checkpoint.settings, settings);
        let directory = tempfile::tempdir().unwrap();
        let index = |text: &str| std::fs::write(directory.path().join(INDEX), text).unwrap();
        index(r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#);
        assert_eq!(checkpoint.shards(directory.path()).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for hostile in ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.bin"] {
            index(&format!(r#"{{"weight_map": {{"a": "{hostile}"}}}}"#));
            assert!(matches!(checkpoint.shards(directory.path()), Err(HubError::Index { .. })), "{hostile}");
        }
    }

    #[test]
    fn the_one_file_of_a_quantisation_is_picked() {
        let there = [
            "x-q4_k_m.gguf",
            "x-Q4_K_S.gguf",
            "x-IQ4_K.gguf",
            "mmproj-Q8_0.gguf",
            "x.Q8_0.gguf",
            "F16/x-f16.gguf",
        ];
        for (wanted, found) in [
            ("Q4_K_M", "x-q4_k_m.gguf"),
            ("q4_k_s", "x-Q4_K_S.gguf"),
            ("Q8_0", "x.Q8_0.gguf"),
            ("F16", "F16/x-f16.gguf"),
        ] {
            assert_eq!(file(&there, &quantised(wanted)).unwrap(), found);
        }
        let error = file(&there, &quantised("Q4_K")).unwrap_err();
        assert!(
            matches!(error, HubError::NoSuchFile { .. }) && error.to_string().contains("x-Q4_K_S.gguf"),
            "{error}"
        );
        let error = file(&there, &Pick::Only).unwrap_err();
        assert!(
            matches!(error, HubError::Ambiguous { .. }) && error.to_string().contains("x.Q8_0.gguf"),
            "{error}"
        );
        let twice = ["a-Q4_0.gguf", "b-Q4_0.gguf"];
        assert!(matches!(file(&twice, &quantised("Q4_0")), Err(HubError::Ambiguous { .. })));
        assert_eq!(file(&twice, &Pick::File("b-Q4_0.gguf".to_owned())).unwrap(), "b-Q4_0.gguf");
        assert_eq!(file(&["README.md", "only.gguf"], &Pick::Only).unwrap(), "only.gguf");
        let split = ["x-Q4_0-00001-of-00002.gguf", "x-Q4_0-00002-of-00002.gguf", "y-Q8_0.gguf"];
        assert!(matches!(file(&split, &quantised("Q4_0")), Err(HubError::Split { .. })));
        assert_eq!(file(&split, &quantised("Q8_0")).unwrap(), "y-Q8_0.gguf");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let pickled = ["config.json", "tokenizer.json", "pytorch_model.bin"];
        assert!(matches!(file(&pickled, &Pick::Only), Err(HubError::Pickles { .. })));
        assert!(matches!(file(&["README.md"], &Pick::Only), Err(HubError::NoModel { .. })));
        let bare = ["config.json", "model.safetensors"];
        assert!(matches!(file(&bare, &Pick::Only), Err(HubError::Lacks { .. })));
        assert!(matches!(file(&bare, &quantised("Q4_0")), Err(HubError::NoModel { .. })));
    }
}
