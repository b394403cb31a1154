use std::fs;

use proptest::prelude::*;

use super::*;
use crate::fixture::safetensors;

fn refusal(header: &str, data_bytes: usize) -> String {
    refusal_of(&safetensors(header, data_bytes))
}

fn refusal_of(bytes: &[u8]) -> String {
    match parse(bytes, bytes.len() as u64, "model.safetensors") {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

fn tensor(name: &str, shape: &str, offsets: (u64, u64)) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{},{}]}}"#, offsets.0, offsets.1)
}

fn header(tensors: &[String]) -> String {
    format!("{{{}}}", tensors.join(","))
}

#[test]
fn good_headers_are_read() {
    let tensors = header(&[
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        tensor("b", "[2]", (0, 8)),
        tensor("a", "[1,1]", (8, 12)),
    ]);
    let bytes = safetensors(&tensors, 12);
    let (entries, start) = parse(bytes.as_slice(), bytes.len() as u64, "x").unwrap();
    assert_eq!(entries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(start as usize, bytes.len() - 12);
}

#[test]
fn broken_lengths_are_named() {
    assert!(refusal_of(&[1, 2, 3]).contains("inside the length of the header"));
    assert!(refusal_of(&0u64.to_le_bytes()).contains("EOF"));
    assert!(refusal_of(&(1u64 << 63).to_le_bytes()).contains("header: 9223372036854775808 is more"));
    assert!(refusal_of(&100_000_001u64.to_le_bytes()).contains("header: 100000001 is more"));
    assert!(refusal_of(&50_000_000u64.to_le_bytes()).contains("inside the header"));
}

#[test]
fn broken_headers_are_named() {
    for (header, data_bytes, message) in [
        ("not json".to_owned(), 0, "expected"),
        ("[]".to_owned(), 0, "a map of tensors"),
        ("[".repeat(100_000), 0, "a map of tensors"),
        (format!("{{\"x\":{}", "[".repeat(100_000)), 0, "the header of model.safetensors"),
        (header(&[tensor("a", "[1]", (0, 4)), tensor("a", "[1]", (0, 4))]), 4, "`a` appears twice"),
        (header(&[tensor("a", "[1]", (4, 0))]), 4, "a"),
        (header(&[tensor("a", "[1]", (0, 4)), tensor("b", "[1]", (2, 6))]), 6, "b"),
        (header(&[tensor("a", "[1]", (0, 4)), tensor("b", "[1]", (8, 12))]), 12, "b"),
        (header(&[tensor("a", "[2]", (0, 4))]), 4, "model.safetensors"),
        (header(&[tensor("a", "[4194305,4194305,211106198978564]", (0, 16))]), 16, "model.safetensors"),
        (header(&[tensor("a", "[1]", (0, 4))]), 8, "has 8 bytes of data, but its header describes 4"),
        (header(&[tensor("a", "[2]", (0, 8))]), 4, "has 4 bytes of data, but its header describes 8"),
        (header(&[tensor("a", "[-1]", (0, 4))]), 4, "invalid value"),
        (header(&[tensor("a", "[1]", (0, 4)).replace("F32", "F99")]), 4, "F99"),
    ] {
        let error = refusal(&header, data_bytes);
        assert!(error.contains(message), "said {error}, but should have said {message}");
    }
}

#[test]
fn the_number_of_tensors_is_limited() {
    let many: Vec<String> =
        (0..=MAX_TENSORS).map(|index| tensor(&index.to_string(), "[0]", (0, 0))).collect();
    assert!(refusal(&header(&many), 0).contains("more than 65536 tensors"));
}

/// Loads a directory with an index that names `shard`.
fn with_index(shard: &str) -> Result<Weights, FormatError> {
    let directory = tempfile::tempdir().unwrap();
    let index = serde_json::json!({ "weight_map": { "a": shard } });
    fs::write(directory.path().join(INDEX), index.to_string()).unwrap();
    let bytes = safetensors(&header(&[tensor("a", "[1]", (0, 4))]), 4);
    fs::write(directory.path().join("good.safetensors"), bytes).unwrap();
    let empty = safetensors("{}", 0);
    fs::write(directory.path().join("empty.safetensors"), empty).unwrap();
    read(directory.path())
}

#[test]
fn shards_stay_in_their_directory() {
    assert_eq!(with_index("good.safetensors").unwrap().vector("a").unwrap(), [0.0]);
    for shard in [
        "../good.safetensors",
        "/etc/passwd",
        "a/../good.safetensors",
        "./good.safetensors",
        "..",
        "",
        "model.bin",
    ] {
        let error = with_index(shard).err().unwrap();
        assert!(matches!(error, FormatError::ShardName { .. }), "{shard}: {error}");
    }
    assert_eq!(with_index("gone.safetensors").err().unwrap().to_string(), "gone.safetensors is missing");
    assert_eq!(with_index("empty.safetensors").err().unwrap().to_string(), "tensor `a` is missing");
}

#[test]
fn shards_of_every_type_are_read_together() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, dtype: &str, values: &[u8]| {
        let name = file.replace(".safetensors", "");
        let header = header(&[tensor(&name, "[2]", (0, values.len() as u64)).replace("F32", dtype)]);
        let mut bytes = safetensors(&header, values.len());
        let start = bytes.len() - values.len();
        bytes[start..].copy_from_slice(values);
        fs::write(directory.path().join(file), bytes).unwrap();
    };
    write("a.safetensors", "F16", &[0x00, 0x3c, 0x01, 0x00]);
    write("b.safetensors", "BF16", &[0x80, 0x3f, 0x00, 0xc0]);
    write("c.safetensors", "F32", &[0, 0, 0x80, 0x3f, 0, 0, 0x40, 0xc0]);
    let map = ["a", "b", "c"].map(|name| (name.to_owned(), format!("{name}.safetensors").into()));
    let index = serde_json::json!({ "weight_map": serde_json::Map::from_iter(map) });
    fs::write(directory.path().join(INDEX), index.to_string()).unwrap();
    let weights = read(directory.path()).unwrap();
    assert_eq!(weights.vector("a").unwrap(), [1.0, 2.0_f32.powi(-24)]);
    assert_eq!(weights.vector("b").unwrap(), [1.0, -2.0]);
    assert_eq!(weights.vector("c").unwrap(), [1.0, -3.0]);
}

#[test]
fn pickles_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("pytorch_model.bin"), b"\x80\x04").unwrap();
    assert!(read(directory.path()).err().unwrap().to_string().contains("pickled weights"));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(bytes.as_slice(), bytes.len() as u64, "x");
    }

    #[test]
    fn flipped_bytes_never_panic(index in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = safetensors(&header(&[tensor("a", "[1]", (0, 4)), tensor("b", "[2,2]", (4, 20))]), 20);
        let place = index.index(bytes.len());
        bytes[place] = value;
        let end = cut.index(bytes.len()) + 1;
        let _ = parse(&bytes[..end], end as u64, "x");
    }
}
