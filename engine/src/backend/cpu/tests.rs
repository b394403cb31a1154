use std::ops::Range;

use baton_kernels::reference;
use baton_model::{ModelConfig, Weights};

use super::*;
use crate::{batch::BatchSequence, kv::PageId};

const PAGE_TOKENS: u32 = 4;

fn config(tied_embeddings: bool) -> ModelConfig {
    ModelConfig {
        architecture: "llama".into(),
        layers: 3,
        hidden: 24,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 48,
        vocab: 50,
        context_tokens: 256,
        rope_theta: 10_000.0,
        rms_eps: 1e-5,
        tied_embeddings,
        eos_tokens: vec![0],
        bos_token: None,
    }
}

/// Small numbers that bf16 holds exactly, the same for the same name.
fn values(name: &str, len: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(17_u32, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 25) as f32 / 64.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab, hidden]));
    }
    for layer in 0..config.layers {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        let named = parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape));
        shapes.extend(named);
    }
    shapes
}

fn tensor(name: &str, shape: &[usize]) -> Vec<f32> {
    values(name, shape.iter().product())
}

fn model(config: &ModelConfig, precision: Precision) -> Arc<CpuModel> {
    let named = tensors(config).into_iter().map(|(name, shape)| {
        let values = tensor(&name, &shape);
        (name, shape, values)
    });
    let weights = Weights::from_tensors(named).unwrap();
    Arc::new(CpuModel::pack(config, &weights, precision).unwrap())
}

/// The model in plain Rust: logits after the last of `tokens`.
fn expected_logits(config: &ModelConfig, tokens: &[u32]) -> Vec<f32> {
    let get = |name: &str| {
        let shapes = tensors(config);
        let (name, shape) = shapes.iter().find(|(known, _)| known == name).unwrap();
        tensor(name, shape)
    };
    let (hidden, dim) = (config.hidden, config.head_dim);
    let embedding = get("model.embed_tokens.weight");
    let mut rows: Vec<Vec<f32>> =
        tokens.iter().map(|token| embedding[*token as usize * hidden..][..hidden].to_vec()).collect();
    for layer in 0..config.layers {
        let part = |part: &str| get(&format!("model.layers.{layer}.{part}.weight"));
        let project = |name: &str, row: &[f32]| reference::matmul(&part(name), row);
        let turned = |row: Vec<f32>, position: usize| -> Vec<f32> {
            row.chunks(dim).flat_map(|head| reference::rope(head, position, config.rope_theta)).collect()
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, row) in rows.iter_mut().enumerate() {
            let normed = reference::rms_norm(row, &part("input_layernorm"), config.rms_eps);
            let q = turned(project("self_attn.q_proj", &normed), position);
            keys.push(turned(project("self_attn.k_proj", &normed), position));
            values.push(project("self_attn.v_proj", &normed));
            let mut attended = Vec::new();
            for (head, q) in q.chunks(dim).enumerate() {
                let at = head / (config.heads / config.kv_heads) * dim..;
                let keys: Vec<_> = keys.iter().map(|row: &Vec<f32>| &row[at.clone()][..dim]).collect();
                let values: Vec<_> = values.iter().map(|row: &Vec<f32>| &row[at.clone()][..dim]).collect();
                attended.extend(reference::attention(q, &keys, &values));
            }
            add(row, &project("self_attn.o_proj", &attended));
            let normed = reference::rms_norm(row, &part("post_attention_layernorm"), config.rms_eps);
            let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(|name| project(name, &normed));
            add(row, &project("mlp.down_proj", &reference::silu_mul(&gate, &up)));
        }
    }
    let last = reference::rms_norm(rows.last().unwrap(), &get("model.norm.weight"), config.rms_eps);
    let output = if config.tied_embeddings { embedding } else { get("lm_head.weight") };
    reference::matmul(&output, &last)
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// A backend with memory, and one sequence to feed in chunks.
struct Harness {
    backend: CpuBackend,
    memory: KvMemory,
}

impl Harness {
    fn new(model: &Arc<CpuModel>, threads: usize) -> Self {
        let pool = ComputePool::new(threads).unwrap();
        let backend = CpuBackend::new(Arc::clone(model), pool, PAGE_TOKENS);
        let memory = KvMemory::new(backend.kv_shape().clone(), 64);
        Self { backend, memory }
    }

    fn forward(&mut self, sequences: Vec<BatchSequence<'_>>) -> Result<Logits, BackendError> {
        self.backend.forward(&Batch { sequences }, &self.memory, &mut |_| ())
    }

    /// Logits after the last token, computed in chunks.
    fn chunked(&mut self, tokens: &[u32], pages: &[PageId], chunk: usize) -> Vec<f32> {
        let mut logits = Vec::new();
        for start in (0..tokens.len()).step_by(chunk) {
            let rows = start..tokens.len().min(start + chunk);
            logits = self.forward(vec![part(tokens, pages, rows)]).unwrap().values;
        }
        logits
    }
}

fn part<'a>(tokens: &'a [u32], pages: &'a [PageId], rows: Range<usize>) -> BatchSequence<'a> {
    BatchSequence { tokens, start: rows.start, end: rows.end, pages, wants_logits: true }
}

fn some_tokens(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 13 + seed) % 50).collect()
}

fn pages(range: Range<u32>) -> Vec<PageId> {
    range.map(PageId).collect()
}

#[test]
fn reference_precision_is_the_model_in_plain_rust() {
    for tied in [true, false] {
        let config = config(tied);
        let tokens = some_tokens(70, 1);
        let expected = expected_logits(&config, &tokens);
        let found =
            Harness::new(&model(&config, Precision::Reference), 2).chunked(&tokens, &pages(0..18), 70);
        let scale = expected.iter().fold(0.0_f32, |scale, x| scale.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-3 * scale, "{found} is not {expected}");
        }
    }
}

#[test]
fn fast_precision_is_close_to_reference() {
    let config = config(true);
    let tokens = some_tokens(70, 1);
    let [exact, fast] = [Precision::Reference, Precision::Fast]
        .map(|precision| Harness::new(&model(&config, precision), 2).chunked(&tokens, &pages(0..18), 70));
    let size = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    let error = size(&mut exact.iter().zip(&fast).map(|(exact, fast)| exact - fast));
    assert!(error < 0.05 * size(&mut exact.iter().copied()), "{error}");
    assert_ne!(exact, fast);
}

#[test]
fn chunks_pages_and_threads_do_not_change_a_bit() {
    for precision in [Precision::Fast, Precision::Reference] {
        let model = model(&config(true), precision);
        let tokens = some_tokens(70, 1);
        let whole = Harness::new(&model, 1).chunked(&tokens, &pages(0..18), 70);
        let mut scattered: Vec<PageId> = pages(20..60);
        scattered.reverse();
        for chunk in [1, 3, 16, 64] {
            let found = Harness::new(&model, chunk.min(3)).chunked(&tokens, &scattered, chunk);
            assert!(found == whole, "{precision:?} in chunks of {chunk}");
        }
    }
}

#[test]
fn other_sequences_do_not_change_a_bit() {
    let model = model(&config(true), Precision::Fast);
    let (one, two, three) = (some_tokens(40, 1), some_tokens(9, 2), some_tokens(90, 3));
    let pages = [pages(0..10), pages(10..13), pages(13..36)];
    let mut alone = Harness::new(&model, 1);
    let expected = [(&one, &pages[0]), (&two, &pages[1]), (&three, &pages[2])]
        .map(|(tokens, pages)| alone.chunked(tokens, pages, 100));
    let mut harness = Harness::new(&model, 2);
    harness.chunked(&one[..39], &pages[0], 100);
    let mut silent = part(&two, &pages[1], 0..8);
    silent.wants_logits = false;
    let first = harness.forward(vec![part(&one, &pages[0], 39..40), silent, part(&three, &pages[2], 0..90)]);
    let rows: Vec<Vec<f32>> = first.unwrap().rows().map(<[f32]>::to_vec).collect();
    assert!(rows == [expected[0].clone(), expected[2].clone()]);
    assert!(harness.forward(vec![part(&two, &pages[1], 8..9)]).unwrap().values == expected[1]);
}

#[test]
fn layers_are_reported_in_order_with_their_rows_in_memory() {
    let model = model(&config(true), Precision::Fast);
    let mut harness = Harness::new(&model, 2);
    let (tokens, pages) = (some_tokens(5, 1), pages(0..2));
    let mut seen = Vec::new();
    let memory = &harness.memory;
    let batch =
        Batch { sequences: vec![BatchSequence { wants_logits: false, ..part(&tokens, &pages, 0..5) }] };
    let logits = harness
        .backend
        .forward(&batch, memory, &mut |layer| {
            assert!(memory.read(PageId(1), layer).bf16().iter().any(|value| *value != bf16::ZERO));
            seen.push(layer);
        })
        .unwrap();
    assert_eq!(seen, [0, 1, 2]);
    assert!(logits.values.is_empty());
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let model = model(&config(true), Precision::Fast);
    let mut harness = Harness::new(&model, 1);
    let pages = pages(0..2);
    let tokens = [1, 50];
    let error = harness.forward(vec![part(&[1], &pages, 0..1), part(&tokens, &pages, 0..2)]).unwrap_err();
    assert!(matches!(error, BackendError::Token { sequence: 1, token: 50, vocab: 50 }), "{error}");
    for (tokens, rows) in [(some_tokens(9, 0), 0..9), (some_tokens(4, 0), 4..4), (some_tokens(4, 0), 2..5)] {
        let error = harness.forward(vec![part(&tokens, &pages, rows)]).unwrap_err();
        assert!(matches!(error, BackendError::Device(_)), "{error}");
    }
    harness.memory = KvMemory::new(model.kv_shape(8), 4);
    assert!(matches!(harness.forward(vec![part(&[1], &pages, 0..1)]), Err(BackendError::Device(_))));
}

#[test]
fn weights_of_another_shape_are_refused() {
    let config = config(true);
    let named = tensors(&config).into_iter().map(|(name, shape)| {
        let shape = if name.ends_with("1.mlp.up_proj.weight") { vec![shape[0], shape[1] - 2] } else { shape };
        let values = tensor(&name, &shape);
        (name, shape, values)
    });
    let weights = Weights::from_tensors(named).unwrap();
    let error = CpuModel::pack(&config, &weights, Precision::Fast).err().unwrap();
    assert_eq!(error.to_string(), "model.layers.1.mlp.up_proj.weight is 48 x 22, not 48 x 24");
}
