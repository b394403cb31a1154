mod families;
mod plain;

use std::ops::Range;

use baton_model::ModelConfig;

use super::*;
use crate::{
    batch::{BatchSequence, Read, Reading, What},
    kv::PageId,
    sampler,
};

const PAGE_TOKENS: u32 = 4;

fn model(config: &ModelConfig, precision: Precision) -> Arc<CpuModel> {
    let weights = plain::weights(plain::shapes(config));
    Arc::new(CpuModel::pack(config, &weights, precision).unwrap())
}

/// A backend with 64 pages, and one sequence to feed in chunks.
struct Harness {
    backend: CpuBackend,
}

impl Harness {
    fn new(model: &Arc<CpuModel>, threads: usize) -> Self {
        let pool = model.precision().pool(threads).unwrap();
        let mut backend = CpuBackend::new(Arc::clone(model), pool, PAGE_TOKENS);
        backend.allocate(64).unwrap();
        Self { backend }
    }

    fn forward(&mut self, sequences: Vec<BatchSequence<'_>>) -> Result<Logits, BackendError> {
        self.backend.forward(&Batch::new(sequences), &mut |_| ())
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
    for (kind, config) in plain::kinds() {
        let tokens = some_tokens(70, 1);
        let expected = plain::logits(&config, &tokens);
        let found =
            Harness::new(&model(&config, Precision::Reference), 2).chunked(&tokens, &pages(0..18), 70);
        let scale = expected.iter().fold(0.0_f32, |scale, x| scale.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-3 * scale, "{kind}: {found} is not {expected}");
        }
    }
}

#[test]
fn fast_precision_is_close_to_reference() {
    for (kind, config) in plain::kinds() {
        let tokens = some_tokens(70, 1);
        let [exact, fast] = [Precision::Reference, Precision::Fast]
            .map(|precision| Harness::new(&model(&config, precision), 2).chunked(&tokens, &pages(0..18), 70));
        let size = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let error = size(&mut exact.iter().zip(&fast).map(|(exact, fast)| exact - fast));
        assert!(error < 0.05 * size(&mut exact.iter().copied()), "{kind}: {error}");
        assert_ne!(exact, fast, "{kind}");
    }
}

#[test]
fn chunks_pages_and_threads_do_not_change_a_bit() {
    for ((kind, config), precision) in
        plain::kinds().iter().flat_map(|kind| [(kind, Precision::Fast), (kind, Precision::Reference)])
    {
        let model = model(config, precision);
        let tokens = some_tokens(70, 1);
        let whole = Harness::new(&model, 1).chunked(&tokens, &pages(0..18), 70);
        let mut scattered: Vec<PageId> = pages(20..60);
        scattered.reverse();
        for chunk in [1, 3, 16, 64] {
            let found = Harness::new(&model, chunk.min(3)).chunked(&tokens, &scattered, chunk);
            assert!(found == whole, "{kind}: {precision:?} in chunks of {chunk}");
        }
    }
}

#[test]
fn other_sequences_do_not_change_a_bit() {
    for (kind, config) in plain::kinds() {
        let model = model(&config, Precision::Fast);
        let (one, two, three) = (some_tokens(40, 1), some_tokens(9, 2), some_tokens(90, 3));
        let pages = [pages(0..10), pages(10..13), pages(13..36)];
        let mut alone = Harness::new(&model, 1);
        let expected = [(&one, &pages[0]), (&two, &pages[1]), (&three, &pages[2])]
            .map(|(tokens, pages)| alone.chunked(tokens, pages, 100));
        let mut harness = Harness::new(&model, 2);
        harness.chunked(&one[..39], &pages[0], 100);
        let mut silent = part(&two, &pages[1], 0..8);
        silent.wants_logits = false;
        let first =
            harness.forward(vec![part(&one, &pages[0], 39..40), silent, part(&three, &pages[2], 0..90)]);
        let rows: Vec<Vec<f32>> = first.unwrap().rows().map(<[f32]>::to_vec).collect();
        assert!(rows == [expected[0].clone(), expected[2].clone()], "{kind}");
        assert!(harness.forward(vec![part(&two, &pages[1], 8..9)]).unwrap().values == expected[1], "{kind}");
    }
}

#[test]
fn layers_are_reported_in_order_with_their_rows_in_memory() {
    let model = model(&plain::llama(), Precision::Fast);
    let mut harness = Harness::new(&model, 2);
    let (tokens, pages) = (some_tokens(5, 1), pages(0..2));
    let mut seen = Vec::new();
    let memory = Arc::clone(&harness.backend.memory);
    let batch = Batch::new(vec![BatchSequence { wants_logits: false, ..part(&tokens, &pages, 0..5) }]);
    let logits = harness
        .backend
        .forward(&batch, &mut |layer| {
            assert!(memory.read(PageId(1), layer).bf16().iter().any(|value| *value != bf16::ZERO));
            seen.push(layer);
        })
        .unwrap();
    assert_eq!(seen, [0, 1, 2]);
    assert!(logits.values.is_empty());
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let model = model(&plain::llama(), Precision::Fast);
    let mut harness = Harness::new(&model, 1);
    let pages = pages(0..2);
    let tokens = [1, 50];
    let error = harness.forward(vec![part(&[1], &pages, 0..1), part(&tokens, &pages, 0..2)]).unwrap_err();
    assert!(matches!(error, BackendError::Token { sequence: 1, token: 50, vocab: 50 }), "{error}");
    for (tokens, rows) in [(some_tokens(9, 0), 0..9), (some_tokens(4, 0), 4..4), (some_tokens(4, 0), 2..5)] {
        let error = harness.forward(vec![part(&tokens, &pages, rows)]).unwrap_err();
        assert!(matches!(error, BackendError::Device(_)), "{error}");
    }
    let error = harness.forward(vec![part(&[1], &[PageId(64)], 0..1)]).unwrap_err();
    assert!(matches!(error, BackendError::Device(_)), "{error}");
}

#[test]
fn weights_of_another_shape_are_refused() {
    let config = ModelConfig { qkv_bias: true, ..plain::llama() };
    for (tensor, problem) in [
        ("model.layers.1.mlp.up_proj.weight", "is 48 x 22, not 48 x 24"),
        ("model.layers.2.self_attn.k_proj.bias", "has 14 elements, not 16"),
    ] {
        let mut shapes = plain::shapes(&config);
        let (_, shape) = shapes.iter_mut().find(|(name, _)| name == tensor).unwrap();
        *shape.last_mut().unwrap() -= 2;
        let error = CpuModel::pack(&config, &plain::weights(shapes), Precision::Fast).err().unwrap();
        assert_eq!(error.to_string(), format!("{tensor} {problem}"));
    }
}

/// Rows that are read are those that would have been drawn from, whatever the chunks are.
#[test]
fn rows_that_are_read_are_those_of_the_tokens_before() {
    for (kind, config) in plain::kinds() {
        let model = model(&config, Precision::Fast);
        let (tokens, pages) = (some_tokens(70, 1), pages(0..18));
        let mut one_by_one = Harness::new(&model, 2);
        let row = |harness: &mut Harness, at: usize| {
            harness.forward(vec![part(&tokens, &pages, at..at + 1)]).unwrap().values
        };
        let rows: Vec<_> = (0..69).flat_map(|at| row(&mut one_by_one, at)).collect();
        let expected = sampler::prompt_tokens(&rows, config.vocab, &tokens[1..], 3);
        for (from, chunk) in [(0, 70), (0, 7), (33, 64), (66, 10)] {
            let mut harness = Harness::new(&model, 2);
            let mut told = Vec::new();
            for start in (0..70).step_by(chunk) {
                let rows = start..70.min(start + chunk);
                let read = rows.start.max(from)..rows.end.min(69);
                let read = (!read.is_empty()).then_some(Read { rows: read, what: What::Tokens(3) });
                let sequence = BatchSequence { wants_logits: rows.end == 70, ..part(&tokens, &pages, rows) };
                let batch = Batch { reads: vec![read], ..Batch::new(vec![sequence]) };
                let logits = harness.backend.forward(&batch, &mut |_| ()).unwrap();
                assert_eq!(logits.values.is_empty(), !batch.sequences[0].wants_logits);
                for (index, reading) in logits.read {
                    let Reading::Tokens(tokens) = reading else { panic!("{reading:?}") };
                    assert_eq!(index, 0);
                    told.extend(tokens);
                }
            }
            assert_eq!(told, expected[from..], "{kind}, from {from} in chunks of {chunk}");
        }
    }
}

#[test]
fn rows_outside_of_a_step_cannot_be_read() {
    let (kind, config) = &plain::kinds()[0];
    let mut harness = Harness::new(&model(config, Precision::Fast), 1);
    let (tokens, pages) = (some_tokens(8, 1), pages(0..2));
    for rows in [0..3, 3..7, 4..4, 5..8] {
        let sequence = part(&tokens, &pages, if rows.start == 5 { 4..8 } else { 2..6 });
        let batch =
            Batch { reads: vec![Some(Read { rows, what: What::Tokens(0) })], ..Batch::new(vec![sequence]) };
        let refused = harness.backend.forward(&batch, &mut |_| ());
        assert!(matches!(refused, Err(BackendError::Device(_))), "{kind}");
    }
}

#[test]
fn sums_of_rows_are_the_models_in_plain_rust() {
    for (kind, config) in plain::kinds() {
        let (tokens, pages) = (some_tokens(40, 1), pages(0..10));
        let expected = plain::rows(&config, &tokens);
        let mut harness = Harness::new(&model(&config, Precision::Reference), 2);
        let mut read = |rows: Range<usize>| {
            let sequence = BatchSequence { wants_logits: false, ..part(&tokens, &pages, rows.clone()) };
            let reads = vec![Some(Read { rows, what: What::Sum })];
            let batch = Batch { reads, ..Batch::new(vec![sequence]) };
            let logits = harness.backend.forward(&batch, &mut |_| ()).unwrap();
            let Some((0, Reading::Sum(sum))) = logits.read.into_iter().next() else { panic!("not read") };
            sum
        };
        for rows in [0..7, 7..39, 39..40] {
            let found = read(rows.clone());
            assert_eq!(found.len(), config.hidden);
            for (at, found) in found.iter().enumerate() {
                let expected: f64 = expected[rows.clone()].iter().map(|row| f64::from(row[at])).sum();
                assert!((found - expected).abs() < 1e-2, "{kind}: {found} is not {expected}");
            }
        }
    }
}

/// More rows are kept than there are tokens, then, and those of the others stay what they are.
#[test]
fn rows_that_are_read_may_be_drawn_from_too() {
    for ((kind, config), precision) in
        plain::kinds().iter().flat_map(|kind| [(kind, Precision::Fast), (kind, Precision::Reference)])
    {
        let mut harness = Harness::new(&model(config, precision), 2);
        let (one, two, three) = (some_tokens(9, 1), some_tokens(30, 2), some_tokens(6, 3));
        let pages = [pages(0..3), pages(3..11), pages(11..13)];
        let parts = || {
            let [first, second, third] = &pages;
            vec![part(&one, first, 0..9), part(&two, second, 0..30), part(&three, third, 0..6)]
        };
        let drawn = harness.forward(parts()).unwrap();
        let sums = [Some(9), Some(30), None];
        let reads = sums.map(|rows| rows.map(|rows| Read { rows: 0..rows, what: What::Sum })).to_vec();
        let mut silent = parts();
        silent.iter_mut().for_each(|part| part.wants_logits = false);
        let batch = Batch { reads: reads.clone(), ..Batch::new(silent) };
        let read = harness.backend.forward(&batch, &mut |_| ()).unwrap();
        assert_eq!((read.read.len(), &read.values[..]), (2, &[][..]));
        let both = Batch { reads, ..Batch::new(parts()) };
        let both = harness.backend.forward(&both, &mut |_| ()).unwrap();
        assert!(both.values == drawn.values, "{kind}: {precision:?} draws from other rows");
        assert!(both.read == read.read, "{kind}: {precision:?} reads other rows");
    }
}
