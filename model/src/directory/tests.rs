mod hostile;

use std::fs;

use serde_json::{Value as Json, json};

use crate::{ModelText, fixture::safetensors};

/// A directory with a llama of one layer.
struct Fixture {
    directory: tempfile::TempDir,
    config: Json,
}

fn tokenizer() -> Json {
    let bytes = ModelText::mock().to_bytes();
    let document: Json = serde_json::from_slice(&bytes).unwrap();
    document["text"]["tokenizer"].clone()
}

impl Fixture {
    fn new() -> Self {
        let this = Self {
            directory: tempfile::tempdir().unwrap(),
            config: json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                "intermediate_size": 4, "vocab_size": 260, "max_position_embeddings": 64,
                "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu", "eos_token_id": 3,
                "rope_scaling": null, "tie_word_embeddings": true,
            }),
        };
        this.write("tokenizer.json", &tokenizer());
        this.write_tensors(&[]);
        this
    }

    fn write(&self, file: &str, json: &Json) {
        fs::write(self.directory.path().join(file), json.to_string()).unwrap();
    }

    fn write_tensors(&self, more: &[(&str, Vec<usize>)]) {
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![260, 8]),
            ("model.norm.weight".to_owned(), vec![8]),
            (layer("input_layernorm"), vec![8]),
            (layer("self_attn.q_proj"), vec![8, 8]),
            (layer("self_attn.k_proj"), vec![4, 8]),
            (layer("self_attn.v_proj"), vec![4, 8]),
            (layer("self_attn.o_proj"), vec![8, 8]),
            (layer("post_attention_layernorm"), vec![8]),
            (layer("mlp.gate_proj"), vec![4, 8]),
            (layer("mlp.up_proj"), vec![4, 8]),
            (layer("mlp.down_proj"), vec![8, 4]),
        ];
        tensors.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())));
        let mut header = serde_json::Map::new();
        let mut offset = 0;
        for (name, shape) in tensors {
            let bytes = 2 * shape.iter().product::<usize>();
            let info = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + bytes] });
            header.insert(name, info);
            offset += bytes;
        }
        let bytes = safetensors(&Json::Object(header).to_string(), offset);
        fs::write(self.directory.path().join("model.safetensors"), bytes).unwrap();
    }

    fn load(&self) -> Result<crate::Model, String> {
        self.write("config.json", &self.config);
        crate::load(self.directory.path()).map_err(|error| error.to_string())
    }

    fn assert_refused(&self, message: &str) {
        let error = self.load().err().unwrap_or_default();
        assert!(error.contains(message), "said {error:?}, but should have said {message:?}");
    }
}

#[test]
fn a_directory_loads() {
    let fixture = Fixture::new();
    fixture.write("generation_config.json", &json!({ "eos_token_id": [5, 3], "bos_token_id": 1 }));
    let template =
        json!([{ "name": "other", "template": "x" }, { "name": "default", "template": "{{ bos_token }}!" }]);
    fixture.write(
        "tokenizer_config.json",
        &json!({ "chat_template": template, "eos_token": { "content": "a" } }),
    );
    let model = fixture.load().unwrap();
    // Generation's first, then the model's, the tokenizer's, and the end of a turn.
    assert_eq!(model.config.eos_tokens, [5, 3, 97, 257]);
    assert_eq!(
        (model.config.bos_token, model.config.head_dim, model.config.tied_embeddings),
        (Some(1), 4, true)
    );
    assert_eq!(model.text.render(&json!([]), &serde_json::Map::new()).unwrap(), "\u{1}!");
    assert_eq!(model.weights.matrix("model.layers.0.self_attn.k_proj.weight").unwrap().rows, 4);
    fs::write(fixture.directory.path().join("chat_template.jinja"), "file").unwrap();
    let model = fixture.load().unwrap();
    assert_eq!(model.text.render(&json!([]), &serde_json::Map::new()).unwrap(), "file");
}

#[test]
fn a_cut_tokenizer_is_used_whole() {
    let fixture = Fixture::new();
    let mut cut = tokenizer();
    cut["truncation"] =
        json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    fixture.write("tokenizer.json", &cut);
    assert_eq!(fixture.load().unwrap().text.encode("abc", false).unwrap(), [97, 98, 99]);
}

#[test]
fn other_models_are_refused_by_name() {
    for (field, value, message) in [
        ("model_type", json!("mamba2"), "architecture `mamba2` is not supported"),
        ("model_type", json!(null), "architecture `(none)` is not supported"),
        ("hidden_act", json!("gelu"), "activation `gelu` is not supported"),
        (
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 8.0 }),
            "`low_freq_factor of the rope scaling` is missing",
        ),
        ("rope_parameters", json!({ "rope_type": "yarn" }), "`factor of the rope scaling` is missing"),
        (
            "rope_scaling",
            json!({ "type": "dynamic", "factor": 2.0 }),
            "rope scaling `dynamic` is not supported",
        ),
        ("rope_scaling", json!({ "type": "linear", "factor": 0.0 }), "`rope frequency` is inf"),
        ("sliding_window", json!(0), "`sliding window` is 0"),
        ("use_bidirectional_attention", json!(true), "bidirectional attention `true` is not supported"),
        ("attention_bias", json!(true), "bias `true` is not supported"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "quantization `gptq` is not supported"),
    ] {
        let mut fixture = Fixture::new();
        fixture.config[field] = value;
        fixture.assert_refused(message);
    }
}

#[test]
fn broken_numbers_are_named() {
    for (field, value, message) in [
        ("hidden_size", json!(0), "`hidden size` is 0"),
        ("hidden_size", json!(-1), "invalid value: integer `-1`"),
        ("hidden_size", json!(1u64 << 40), "hidden size: 1099511627776 is more"),
        ("num_hidden_layers", json!(1_000_000_000), "layers: 1000000000 is more"),
        ("num_attention_heads", json!(3), "`head size` is 2"),
        ("num_key_value_heads", json!(3), "`kv heads` is 3"),
        ("rms_norm_eps", json!("x"), "expected f32"),
        ("rope_theta", json!(0.0), "`rope frequency` is"),
        ("vocab_size", json!(257), "token 257, but the model has only 257"),
        ("vocab_size", json!(300), "has shape [260, 8], but must have [300, 8]"),
        ("tie_word_embeddings", json!(false), "tensor `lm_head.weight` is missing"),
        ("num_hidden_layers", json!(2), "tensor `model.layers.1.input_layernorm.weight` is missing"),
        ("eos_token_id", json!(260), "`eos or bos token` is 260"),
    ] {
        let mut fixture = Fixture::new();
        fixture.config[field] = value.clone();
        if field == "num_attention_heads" {
            fixture.config["num_key_value_heads"] = json!(1);
            fixture.assert_refused("has shape [8, 8], but must have [6, 8]");
            continue;
        }
        fixture.assert_refused(message);
    }
}

#[test]
fn tensors_that_would_change_the_result_are_refused() {
    let fixture = Fixture::new();
    fixture.write_tensors(&[
        ("model.layers.0.self_attn.rotary_emb.inv_freq", vec![2]),
        ("lm_head.weight", vec![1]),
    ]);
    let weights = fixture.load().unwrap().weights;
    // Nor are those kept that change nothing: all that is kept is hashed, read and counted.
    assert!(weights.names().all(|name| name.starts_with("model.") && !name.ends_with("inv_freq")));
    fixture.write_tensors(&[("model.layers.0.self_attn.q_proj.bias", vec![8])]);
    fixture.assert_refused("tensor `model.layers.0.self_attn.q_proj.bias` is no part of a llama model");
}

#[test]
fn missing_and_broken_files_are_named() {
    for (file, message) in [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "model.safetensors"),
    ] {
        let fixture = Fixture::new();
        fixture.write("config.json", &fixture.config);
        fs::remove_file(fixture.directory.path().join(file)).unwrap();
        let error = crate::load(fixture.directory.path()).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
    for (file, message) in [
        ("tokenizer.json", "the tokenizer cannot be used: tokenizer.json"),
        ("tokenizer_config.json", "tokenizer_config.json is not what it should be"),
        ("generation_config.json", "generation_config.json is not what it should be"),
        ("model.safetensors.index.json", "model.safetensors.index.json is not what it should be"),
    ] {
        let fixture = Fixture::new();
        fs::write(fixture.directory.path().join(file), "{\"eos_token_id\": {}").unwrap();
        fixture.assert_refused(message);
    }
}

#[test]
fn hostile_tokenizers_are_refused() {
    let merge_of_nothing = |mut json: Json| {
        json["model"]["merges"] = json!([["zz", "yy"]]);
        json
    };
    let unknown_decoder = |mut json: Json| {
        json["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
        json
    };
    let bad_regex = |mut json: Json| {
        json["pre_tokenizer"] =
            json!({ "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false });
        json
    };
    for broken in
        [merge_of_nothing(tokenizer()), unknown_decoder(tokenizer()), bad_regex(tokenizer()), json!([])]
    {
        let fixture = Fixture::new();
        fixture.write("tokenizer.json", &broken);
        fixture.assert_refused("the tokenizer cannot be used");
    }
}
