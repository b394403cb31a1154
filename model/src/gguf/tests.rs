use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::{
    Rotary,
    fixture::{Gguf, HIDDEN, array, string},
};

fn load(bytes: &[u8]) -> Result<Parts, FormatError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    read(file.path())
}

#[test]
fn a_tiny_model_loads() {
    let Parts { config, weights, text } = load(&Gguf::tiny().bytes()).unwrap();
    assert_eq!((config.layers, config.hidden, config.head_dim, config.vocab), (1, 64, 32, 6));
    assert_eq!((config.context_tokens, config.tied_embeddings), (128, true));
    assert_eq!(config.rotaries, [Rotary::plain(32, 500.0)]);
    assert_eq!(config.eos_tokens, [1]);
    assert_eq!(text.encode("ab a<|im_end|>", true).unwrap(), [4, 5, 2, 1]);
    assert_eq!(weights.names().count(), 11);
}

#[test]
fn every_encoding_is_read() {
    let weights = load(&Gguf::tiny().bytes()).unwrap().weights;
    // Queries and keys come in another order; see below.
    for name in
        ["embed_tokens", "layers.0.self_attn.v_proj", "layers.0.self_attn.o_proj", "layers.0.mlp.up_proj"]
    {
        let matrix = weights.matrix(&format!("model.{name}.weight")).unwrap();
        assert_eq!(matrix.cols, HIDDEN);
        for (row, values) in matrix.values.chunks(HIDDEN).enumerate() {
            assert!(values.iter().all(|value| value.to_f32() == row as f32), "row {row} of {name}");
        }
    }
}

#[test]
fn interleaved_rows_are_put_in_halves() {
    let weights = load(&Gguf::tiny().bytes()).unwrap().weights;
    for (name, heads) in [("q", 2), ("k", 1)] {
        let matrix = weights.matrix(&format!("model.layers.0.self_attn.{name}_proj.weight")).unwrap();
        let rows: Vec<f32> = matrix.values.chunks(HIDDEN).map(|row| row[0].to_f32()).collect();
        let expected: Vec<f32> = (0..heads)
            .flat_map(|head| (0..2).flat_map(move |half| (0..16).map(move |pair| (head, half, pair))))
            .map(|(head, half, pair)| (head * 32 + pair * 2 + half) as f32)
            .collect();
        assert_eq!(rows, expected);
    }
}

#[test]
fn the_fingerprint_follows_the_weights() {
    let fingerprint = |file: &Gguf| {
        let Parts { config, weights, .. } = load(&file.bytes()).unwrap();
        weights.fingerprint(&config, &|_, _| ()).unwrap()
    };
    let mut file = Gguf::tiny();
    let first = fingerprint(&file);
    assert_eq!(fingerprint(&file), first);
    file.set_text("tokenizer.chat_template", "hello");
    assert_eq!(fingerprint(&file), first);
    file.tensor("blk.0.ffn_up.weight").data[0] ^= 1;
    assert_ne!(fingerprint(&file), first);
}

/// A change that breaks the file, and a part of what is said about it.
type Break = (&'static str, fn(&mut Gguf));

const METADATA: &[Break] = &[
    ("neither a gguf file", |file| file.magic = *b"GGML"),
    ("gguf version 0 ", |file| file.version = 0),
    ("gguf version 1 ", |file| file.version = 1),
    ("gguf version 99 ", |file| file.version = 99),
    ("gguf version 50331648 ", |file| file.version = 3u32.swap_bytes()),
    ("number of tensors: 9223372036854775808 is more", |file| file.claimed.0 = Some(1 << 63)),
    ("inside number of tensors", |file| file.claimed.0 = Some(60_000)),
    ("number of metadata keys: 18446744073709551615 is more", |file| file.claimed.1 = Some(u64::MAX)),
    ("`general.architecture` is missing", |file| file.remove("general.architecture")),
    ("architecture `mamba` is not supported", |file| file.set_text("general.architecture", "mamba")),
    ("a metadata string: 9223372036854775808 is more", |file| {
        file.set("general.name", 8, (1u64 << 63).to_le_bytes().to_vec());
    }),
    ("inside a metadata string", |file| {
        file.set("general.name", 8, 8_000_000u64.to_le_bytes().to_vec());
    }),
    ("a metadata string is not UTF-8", |file| {
        file.set("general.name", 8, [1u64.to_le_bytes().as_slice(), &[0xFF]].concat());
    }),
    ("`general.name` has the unknown type 4294967295", |file| file.set("general.name", u32::MAX, vec![])),
    ("`general.name` has the unknown type 999", |file| file.set("general.name", 9, array(999, 1, &[0; 8]))),
    ("`general.name` is an array of arrays", |file| {
        file.set("general.name", 9, array(9, 1, &array(0, 0, &[])));
    }),
    ("length of a metadata array: 9223372036854775808 is more", |file| {
        file.set("general.name", 9, array(4, 1 << 63, &[]));
    }),
    ("inside length of a metadata array", |file| file.set("general.name", 9, array(8, 1 << 21, &[]))),
    ("`general.flag` is 2, but must be a boolean", |file| file.set("general.flag", 7, vec![2])),
    ("`general.file_type` appears twice", |file| {
        let twice = ("general.file_type".to_owned(), 4, vec![0; 4]);
        file.keys.extend([twice.clone(), twice]);
    }),
    ("`general.alignment` is 0", |file| file.set("general.alignment", 4, vec![0; 4])),
    ("`general.alignment` is 3", |file| file.set("general.alignment", 4, vec![3, 0, 0, 0])),
    ("`general.alignment` is 2147483648", |file| {
        file.set("general.alignment", 4, (1u32 << 31).to_le_bytes().to_vec());
    }),
    ("`general.alignment` is -1, but must be a size", |file| file.set("general.alignment", 5, vec![0xFF; 4])),
    ("`llama.context_length` is \"x\", but must be a size", |file| {
        file.set_text("llama.context_length", "x");
    }),
    ("`context length` is 0", |file| file.set("llama.context_length", 4, vec![0; 4])),
    ("layers: 4294967295 is more than the limit", |file| file.set("llama.block_count", 4, vec![0xFF; 4])),
    ("`kv heads` is 0", |file| file.set("llama.attention.head_count_kv", 4, vec![0; 4])),
    ("`kv heads` is 3", |file| file.set("llama.attention.head_count_kv", 4, vec![3, 0, 0, 0])),
    ("`heads` is 0", |file| file.set("llama.attention.head_count", 4, vec![0; 4])),
    ("`rope frequency` is NaN", |file| file.set("llama.rope.freq_base", 6, f32::NAN.to_le_bytes().to_vec())),
    ("`llama.rope.dimension_count` is 16", |file| {
        file.set("llama.rope.dimension_count", 4, vec![16, 0, 0, 0]);
    }),
    ("rope scaling `mystery` is not supported", |file| file.set_text("llama.rope.scaling.type", "mystery")),
    ("`llama.rope.scaling.factor` is missing", |file| file.set_text("llama.rope.scaling.type", "yarn")),
    ("architecture `qwen2moe` is not supported", |file| file.set_text("general.architecture", "qwen2moe")),
    ("`llama.expert_count` is 8", |file| file.set("llama.expert_count", 4, vec![8, 0, 0, 0])),
    ("`eos or bos token` is 6", |file| file.set("tokenizer.ggml.eos_token_id", 4, vec![6, 0, 0, 0])),
];

const VOCABULARY: &[Break] = &[
    ("tokenizer `bert` is not supported", |file| file.set_text("tokenizer.ggml.model", "bert")),
    ("`tokenizer.ggml.scores` is missing", |file| file.set_text("tokenizer.ggml.model", "llama")),
    ("pre-tokenizer `mystery` is not supported", |file| file.set_text("tokenizer.ggml.pre", "mystery")),
    ("`tokenizer.ggml.tokens` is missing", |file| file.remove("tokenizer.ggml.tokens")),
    ("a list with \"a\" in it twice", |file| {
        file.set_texts("tokenizer.ggml.tokens", &["x", "y", "a", "a", "ab", "b"]);
    }),
    ("`tokenizer.ggml.merges` is \"a c\"", |file| file.set_texts("tokenizer.ggml.merges", &["a c"])),
    ("`tokenizer.ggml.merges` is \"ab\"", |file| file.set_texts("tokenizer.ggml.merges", &["ab"])),
    ("`tokenizer.ggml.token_type` is an array of 1 numbers", |file| {
        file.set("tokenizer.ggml.token_type", 9, array(5, 1, &[1, 0, 0, 0]));
    }),
    ("the chat template cannot be used", |file| file.set_text("tokenizer.chat_template", "{% if %}")),
];

const TENSORS: &[Break] = &[
    ("has 0 dimensions", |file| file.tensors[3].dims = vec![]),
    ("has 5 dimensions", |file| file.tensors[3].dims = vec![64, 1, 1, 1, 1]),
    ("`blk.0.attn_q.weight` has a dimension of 0", |file| file.tensors[3].dims = vec![64, 0]),
    ("`blk.0.attn_q.weight` is larger than any memory", |file| file.tensors[3].dims = vec![1 << 62, 1 << 62]),
    // The product wraps to 4 in 64 bits, and to a small number in 32.
    ("is larger than any memory", |file| {
        file.tensors[3].dims = vec![4_194_305, 4_194_305, 211_106_198_978_564];
    }),
    ("of a file of", |file| file.tensors[3].dims = vec![1 << 32, 2]),
    ("rows of 16 values, which blocks of 32", |file| file.tensors[4].dims = vec![16, 128]),
    ("`blk.0.attn_q.weight` has type IQ4_XS, which is not supported", |file| file.tensors[3].code = 23),
    ("has type number 4294967295", |file| file.tensors[3].code = u32::MAX),
    ("`blk.0.attn_q.weight` has rows of 64 values, which blocks of 256 cannot hold", |file| {
        file.tensors[3].code = 12;
    }),
    ("offset 1, which is no multiple of 32", |file| file.tensors[3].claimed_offset = Some(1)),
    ("ends at byte", |file| file.tensors[3].claimed_offset = Some(1 << 40)),
    ("is larger than any memory", |file| file.tensors[3].claimed_offset = Some(u64::MAX - 31)),
    ("overlap", |file| file.tensors[3].claimed_offset = Some(0)),
    ("ends at byte", |file| {
        file.tensors[10].data.pop();
    }),
    ("tensor `blk.0.attn_q.weight` appears twice", |file| {
        file.tensors[4].name = "blk.0.attn_q.weight".into();
    }),
    ("tensor `blk.00.attn_q.weight` is no part", |file| file.tensors[3].name = "blk.00.attn_q.weight".into()),
    ("tensor `rope_freqs.weight` has rank 2", |file| file.tensors[3].name = "rope_freqs.weight".into()),
    ("tensor `model.layers.0.self_attn.q_proj.weight` is missing", |file| {
        file.tensors[3].name = "blk.7.attn_q.weight".into();
    }),
    ("has shape [128, 32], but must have [64, 64]", |file| file.tensors[3].dims = vec![32, 128]),
    ("a tensor name: 2000 is more than the limit", |file| file.tensors[3].name = "x".repeat(2000)),
];

fn assert_refused(broken: &[Break]) {
    for (message, change) in broken {
        let mut file = Gguf::tiny();
        change(&mut file);
        match load(&file.bytes()) {
            Ok(_) => panic!("loaded, but should have said {message:?}"),
            Err(error) => {
                assert!(error.to_string().contains(message), "said {error}, but should have said {message}");
            }
        }
    }
}

#[test]
fn broken_metadata_is_named() {
    assert_refused(METADATA);
}

#[test]
fn broken_vocabularies_are_named() {
    assert_refused(VOCABULARY);
}

#[test]
fn broken_tensor_tables_are_named() {
    assert_refused(TENSORS);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = Gguf::tiny().bytes();
    let header_bytes = Gguf::tiny().header().len();
    for end in 0..header_bytes {
        assert!(header::parse(&bytes[..end], end as u64).is_err(), "cut at {end}");
    }
    for end in (header_bytes..bytes.len()).step_by(97) {
        assert!(load(&bytes[..end]).is_err(), "cut at {end}");
    }
}

/// Limits hold by themselves: a file that claims to be endless is no excuse.
#[test]
fn limits_do_not_depend_on_the_size_of_the_file() {
    let mut start = b"GGUF\x03\0\0\0".to_vec();
    start.extend(0u64.to_le_bytes());
    start.extend(1u64.to_le_bytes());
    for value in [(1u64 << 62).to_le_bytes().to_vec(), array(8, 1 << 62, &[])] {
        let code = if value.len() == 8 { 8u32 } else { 9 };
        let bytes = [start.clone(), string("key"), code.to_le_bytes().to_vec(), value].concat();
        let error = header::parse(bytes.as_slice(), u64::MAX).unwrap_err();
        assert!(matches!(error, FormatError::Limit { .. }), "{error}");
    }
    let endless = std::io::Read::chain(start.as_slice(), std::io::repeat(0));
    assert!(header::parse(endless, u64::MAX).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let file = Gguf::tiny();
        let mut bytes = file.bytes();
        let header_bytes = file.header().len();
        for (index, value) in flips {
            bytes[index.index(header_bytes)] = value;
        }
        if let Ok(Parts { weights, .. }) = load(&bytes) {
            for name in weights.names() {
                // Either is fine; what is read must have been in the file.
                let _ = weights.matrix(name);
            }
        }
    }

    #[test]
    fn random_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &bytes].concat();
        let _ = header::parse(bytes.as_slice(), bytes.len() as u64);
    }
}
