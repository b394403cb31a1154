//! Tiny model files for tests, and every way to write them wrongly.

use half::f16;

/// A GGUF file, piece by piece.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Key, type, value as bytes.
    pub keys: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
    /// Written instead of the true numbers of tensors and keys.
    pub claimed: (Option<u64>, Option<u64>),
    pub alignment: usize,
}

#[derive(Clone)]
pub struct GgufTensor {
    pub name: String,
    /// Fastest dimension first.
    pub dims: Vec<u64>,
    pub code: u32,
    pub data: Vec<u8>,
    /// Written instead of the true offset.
    pub claimed_offset: Option<u64>,
}

pub const HIDDEN: usize = 64;
pub const HEADS: usize = 2;
pub const HEAD_DIM: usize = 32;
pub const TOKENS: [&str; 6] = ["<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ"];

// === impl Gguf ===

impl Gguf {
    /// A llama of one layer that loads.
    pub fn tiny() -> Self {
        let mut this = Self {
            magic: *b"GGUF",
            version: 3,
            keys: Vec::new(),
            tensors: Vec::new(),
            claimed: (None, None),
            alignment: 32,
        };
        this.set_text("general.architecture", "llama");
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", 128),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", 32),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", HEAD_DIM as u32),
        ] {
            this.set(&format!("llama.{key}"), 4, value.to_le_bytes().to_vec());
        }
        this.set("llama.rope.freq_base", 6, 500.0f32.to_le_bytes().to_vec());
        this.set("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes().to_vec());
        this.set_text("tokenizer.ggml.model", "gpt2");
        this.set_text("tokenizer.ggml.pre", "smollm");
        this.set_texts("tokenizer.ggml.tokens", &TOKENS);
        this.set_texts("tokenizer.ggml.merges", &["a b"]);
        let types: Vec<u8> = [3i32, 3, 1, 1, 1, 1].iter().flat_map(|kind| kind.to_le_bytes()).collect();
        this.set("tokenizer.ggml.token_type", 9, array(5, 6, &types));
        this.set("tokenizer.ggml.eos_token_id", 4, 1u32.to_le_bytes().to_vec());
        this.add_tensors();
        this
    }

    fn add_tensors(&mut self) {
        let hidden = HIDDEN as u64;
        self.add("token_embd.weight", &[hidden, 6], 30);
        self.add("output_norm.weight", &[hidden], 0);
        self.add("blk.0.attn_norm.weight", &[hidden], 0);
        self.add("blk.0.attn_q.weight", &[hidden, hidden], 1);
        self.add("blk.0.attn_k.weight", &[hidden, 32], 8);
        self.add("blk.0.attn_v.weight", &[hidden, 32], 2);
        self.add("blk.0.attn_output.weight", &[hidden, hidden], 3);
        self.add("blk.0.ffn_norm.weight", &[hidden], 0);
        self.add("blk.0.ffn_gate.weight", &[hidden, 32], 0);
        self.add("blk.0.ffn_up.weight", &[hidden, 32], 0);
        self.add("blk.0.ffn_down.weight", &[32, hidden], 0);
    }

    /// Adds a tensor whose row `r` holds `r` everywhere, in any encoding.
    fn add(&mut self, name: &str, dims: &[u64], code: u32) {
        let cols = dims[0] as usize;
        let rows = dims[1..].iter().product::<u64>() as usize;
        let data = (0..rows).flat_map(|row| encoded(code, row as f32).repeat(cols / block(code))).collect();
        self.tensors.push(GgufTensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            code,
            data,
            claimed_offset: None,
        });
    }

    pub fn set(&mut self, key: &str, code: u32, value: Vec<u8>) {
        self.keys.retain(|(name, _, _)| name != key);
        self.keys.push((key.to_owned(), code, value));
    }

    pub fn set_text(&mut self, key: &str, text: &str) {
        self.set(key, 8, string(text));
    }

    pub fn set_texts(&mut self, key: &str, texts: &[&str]) {
        let items: Vec<u8> = texts.iter().flat_map(|text| string(text)).collect();
        self.set(key, 9, array(8, texts.len() as u64, &items));
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _, _)| name != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("it has this tensor")
    }

    /// Header alone, without padding.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.claimed.0.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.claimed.1.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, code, value) in &self.keys {
            bytes.extend(string(key));
            bytes.extend(code.to_le_bytes());
            bytes.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            bytes.extend(tensor.dims.iter().flat_map(|size| size.to_le_bytes()));
            bytes.extend(tensor.code.to_le_bytes());
            bytes.extend(tensor.claimed_offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&tensor.data);
        }
        bytes
    }
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn array(code: u32, length: u64, items: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(items);
    bytes
}

fn block(code: u32) -> usize {
    if matches!(code, 2 | 3 | 8) { 32 } else { 1 }
}

/// One block that holds `value` everywhere.
fn encoded(code: u32, value: f32) -> Vec<u8> {
    let half = |value: f32| f16::from_f32(value).to_le_bytes().to_vec();
    match code {
        0 => value.to_le_bytes().to_vec(),
        1 => half(value),
        // 4 bits less 8, times a scale.
        2 => [half(value), vec![0x99; 16]].concat(),
        // 4 bits times a scale, plus a minimum.
        3 => [half(value / 4.0), half(value / 2.0), vec![0x22; 16]].concat(),
        8 => [half(value / 2.0), vec![2; 32]].concat(),
        30 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => unreachable!("no such encoding in tests"),
    }
}

/// A safetensors file from its header's JSON and the length of its data.
pub fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}
