//! Files that mean harm, or go bad while they are read. Beside these: the tables in `gguf/tests.rs`,
//! `directory/shards/tests.rs`, `text/template/tests.rs` and `catalog/hub/tests.rs`.

use std::{fs::File, os::unix::fs::symlink, path::PathBuf, sync::Arc};

use super::*;
use crate::{
    FormatError, ModelError,
    fixture::Gguf,
    weights::{Encoding, Stored},
};

impl Fixture {
    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }
}

/// Files are read and not mapped: what is not there any more is an error, not the end of the process.
#[test]
fn a_file_that_shrinks_while_it_is_used_is_an_error() {
    let fixture = Fixture::new();
    let gguf = fixture.path("tiny.gguf");
    fs::write(&gguf, Gguf::tiny().bytes()).unwrap();
    for (model, file) in [
        (fixture.load().unwrap(), fixture.path("model.safetensors")),
        (crate::load(&gguf).unwrap(), gguf.clone()),
    ] {
        let name = "model.layers.0.mlp.down_proj.weight";
        model.weights.matrix(name).unwrap();
        File::options().write(true).open(file).unwrap().set_len(64).unwrap();
        let error = model.weights.matrix(name).unwrap_err();
        assert!(matches!(error, ModelError::Tensor(FormatError::Io(_))), "{error}");
    }
}

/// Where nothing is mapped, this file fails as a broken disk does.
#[test]
fn a_disk_that_fails_is_an_error() {
    let file = Arc::new(File::open("/proc/self/mem").unwrap());
    let error = Stored::in_file(vec![4], file, 0, Encoding::F32).vector("a").unwrap_err();
    assert!(matches!(&error, FormatError::Io(io) if io.raw_os_error() == Some(5)), "{error}");
}

#[test]
fn no_more_is_read_than_files_may_have() {
    for file in ["tokenizer.json", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"] {
        let fixture = Fixture::new();
        File::create(fixture.path(file)).unwrap().set_len(1 << 40).unwrap();
        fixture.assert_refused("file: ");
        fixture.assert_refused("is more than the limit of");
    }
}

#[test]
fn code_beside_a_model_is_not_run_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let plain = fixture.load().unwrap().fingerprint;
    fixture.config["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_x.X" });
    fixture.config["trust_remote_code"] = json!(true);
    fs::write(fixture.path("modeling_x.py"), "raise SystemExit(1)").unwrap();
    fs::write(fixture.path("pytorch_model.bin"), b"\x80\x04").unwrap();
    assert_eq!(fixture.load().unwrap().fingerprint, plain);
}

#[test]
fn formats_that_carry_code_are_no_models() {
    let directory = tempfile::tempdir().unwrap();
    for (file, magic) in [
        ("model.pt", b"PK\x03\x04archive/data.pkl".as_slice()),
        ("model.bin", b"\x80\x02}q\0."),
        ("model.pkl", b"\x80\x05\x95"),
        ("model.h5", b"\x89HDF\r\n\x1a\n"),
        ("model.onnx", b"\x08\x07\x12\x07pytorch"),
        ("model.gguf", b"PK\x03\x04"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
    ] {
        let path = directory.path().join(file);
        fs::write(&path, magic).unwrap();
        let error = crate::load(&path).err().unwrap().to_string();
        assert!(error.contains("neither a gguf file nor a directory"), "{file}: {error}");
    }
}

#[test]
fn tokenizers_with_holes_twins_and_crowds_are_refused_or_work() {
    let vocabulary = |change: fn(&mut Json)| {
        let mut json = tokenizer();
        change(&mut json);
        json
    };
    let added = |json: &mut Json, ids: std::ops::Range<u32>| {
        let token = |id: u32| {
            json!({ "id": id, "content": format!("<|{id}|>"), "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        };
        json["added_tokens"].as_array_mut().unwrap().extend(ids.map(token));
    };
    let mut crowd = tokenizer();
    added(&mut crowd, 258..100_000);
    for (json, refused) in [
        (vocabulary(|json| drop(json["model"]["vocab"].as_object_mut().unwrap().remove("a"))), false),
        (vocabulary(|json| json["model"]["vocab"]["b"] = json!(97)), true),
        (vocabulary(|json| json["model"]["vocab"]["zz"] = json!(u32::MAX)), true),
        (vocabulary(|json| json["model"]["vocab"]["zz"] = json!(-1)), true),
        (crowd, true),
    ] {
        let fixture = Fixture::new();
        fixture.write("tokenizer.json", &json);
        match fixture.load() {
            Err(error) => assert!(error.contains("token"), "{error}"),
            Ok(model) => {
                assert!(!refused, "loads");
                let tokens = model.text.encode("ab<|im_end|>", true).unwrap();
                assert!(tokens.iter().all(|token| *token < 260));
            }
        }
    }
}

/// The crate that reads them panics at these.
#[test]
fn decoders_that_are_no_json_are_refused() {
    let whole = String::from_utf8(ModelText::mock().to_bytes()).unwrap();
    let mut json = tokenizer();
    let decoder = format!("\"decoder\":{}", json["decoder"]);
    assert!(whole.contains(&decoder));
    json["decoder"] = json!("HERE");
    for bad in [r#"{"type":"Fuse"]"#, r#"{"type":1e999}"#, r#"{"a":"\ud800"}"#, &"[".repeat(200)] {
        let fixture = Fixture::new();
        fs::write(fixture.path("tokenizer.json"), json.to_string().replace("\"HERE\"", bad)).unwrap();
        fixture.assert_refused("the tokenizer cannot be used");
        let text = whole.replace(&decoder, &format!("\"decoder\":{bad}"));
        let error = ModelText::from_bytes(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("not the text of a model"), "{error}");
    }
}

/// Expressions that look back give up after so many steps, instead of after years.
#[test]
fn an_expression_that_explodes_fails_the_text_and_not_the_process() {
    let fixture = Fixture::new();
    let mut json = tokenizer();
    json["pre_tokenizer"] = json!({ "type": "Split", "behavior": "Isolated", "invert": false,
        "pattern": { "Regex": "(?=(a+)+$)\\1b" } });
    fixture.write("tokenizer.json", &json);
    let text = fixture.load().unwrap().text;
    let long = "a".repeat(4096) + "!";
    let _either_is_fine = text.encode(&long, false);
    assert_eq!(text.encode("!", false).unwrap(), [33]);
}

#[test]
fn shards_hold_what_they_should_and_nothing_else() {
    let cases = [
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}"#, 0, "invalid"),
        (
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
            0,
            "has a dimension of 0",
        ),
        (r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#, 4, "has type I8"),
        (
            r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
            4,
            "`model.embed_tokens.weight` is missing",
        ),
    ];
    for (header, data_bytes, message) in cases {
        let fixture = Fixture::new();
        fs::write(fixture.path("model.safetensors"), safetensors(header, data_bytes)).unwrap();
        fixture.assert_refused(message);
    }
    let fixture = Fixture::new();
    let index = json!({ "weight_map": { "a": "model.safetensors.index.json" } });
    fixture.write("model.safetensors.index.json", &index);
    fixture.assert_refused("which is no plain file name");
}

/// The Hub's cache is made of links: whoever may write into a model's directory is trusted with it.
#[test]
fn links_to_files_are_followed() {
    let (fixture, elsewhere) = (Fixture::new(), tempfile::tempdir().unwrap());
    let (link, blob) = (fixture.path("model.safetensors"), elsewhere.path().join("blob"));
    fs::rename(&link, &blob).unwrap();
    symlink(&blob, &link).unwrap();
    fixture.load().unwrap();
    fs::remove_file(&blob).unwrap();
    symlink(&link, &blob).unwrap();
    fixture.assert_refused("model.safetensors");
}
