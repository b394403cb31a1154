//! A tiny checkpoint of every family (tests/golden/families) on a card, beside the CPU's
//! reference precision, which answers as Transformers does.

use std::{fs, path::PathBuf, sync::Arc};

use baton_engine::backend::{
    Backend,
    cpu::{CpuBackend, CpuModel, Precision},
    cuda::{CudaBackend, CudaLimits, CudaModel, WeightForm},
};
use baton_kernels::cuda::{Dtype, Gpu};
use baton_model::{Model, ModelConfig, Weights};
use serde::Deserialize;

use super::{PageId, argmax, logits_of};

/// Largest deviation of a logit, as a part of the largest logit of its step, and its mean over
/// steps. The whole residual stream is bf16; so tiny models answer rounding loudly.
const BOUNDS: [f32; 2] = [0.5, 0.08];

/// In fp16.
const FP16_BOUNDS: [f32; 2] = [0.15, 0.015];

/// With layers in fp8.
const FP8_BOUNDS: [f32; 2] = [1.2, 0.4];

/// The family that answers rounding loudest, four times the others in bf16 too.
pub const LOUDEST: &str = "phi3-longrope";
const FP8_LOUDEST: [f32; 2] = [2.0, 0.7];

/// Heads of a card's kernels.
const HEAD_DIM: usize = 64;

/// How a card answered.
#[derive(Debug)]
struct Answer {
    name: String,
    largest: f32,
    mean: f32,
    /// Likeliest tokens that are the reference's, and all.
    #[expect(dead_code, reason = "is printed")]
    agreed: [usize; 2],
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub prompt_ids: Vec<u32>,
    pub output_ids: Vec<u32>,
}

pub fn families() -> Vec<(String, Model, Vec<Case>)> {
    let folder = PathBuf::from("tests/golden/families");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("golden.json").is_file()).collect();
    folders.sort();
    assert_eq!(folders.len(), 14, "{folders:?}");
    let read = |path: PathBuf| {
        let golden: Golden = serde_json::from_slice(&fs::read(path.join("golden.json")).unwrap()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, baton_model::load(&path).unwrap(), golden.cases)
    };
    folders.into_iter().map(read).collect()
}

/// The same model with heads as wide as a card's kernels have them: more elements, all zero.
pub fn widened(model: &Model) -> Model {
    let ModelConfig { head_dim, rotaries, .. } = &model.config;
    let pairs = rotaries[0].frequencies.len();
    assert!(rotaries.iter().all(|rotary| rotary.frequencies.len() == pairs));
    let wide_pairs = pairs.next_multiple_of(8);
    // An element still turns with the one that stands as many places behind as there are pairs.
    let place = |index: usize| {
        let (head, element) = (index / head_dim, index % head_dim);
        let moved = (element / pairs).min(2) * (wide_pairs - pairs);
        head * HEAD_DIM + element + moved
    };
    let spread = |values: &[f32], row: usize, factor: f32| {
        let mut wide = vec![0.0; values.len() / head_dim * HEAD_DIM];
        for (index, from) in values.chunks(row).enumerate() {
            let to = place(index) * row;
            wide[to..to + row].iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
        }
        wide
    };
    let tensor = |name: &str| {
        let mut shape = model.weights.shape(name).unwrap().to_vec();
        let mut values: Vec<f32> = match shape[..] {
            [_, _] => model.weights.matrix(name).unwrap().values.iter().map(|value| value.to_f32()).collect(),
            _ => model.weights.vector(name).unwrap(),
        };
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&["q_proj", "k_proj", "v_proj"]) {
            values = spread(&values, shape.get(1).copied().unwrap_or(1), 1.0);
            shape[0] = shape[0] / head_dim * HEAD_DIM;
        } else if has(&["q_norm", "k_norm"]) {
            // The mean square is over more elements.
            values = spread(&values, 1, (*head_dim as f32 / HEAD_DIM as f32).sqrt());
            shape[0] = values.len();
        } else if has(&["o_proj"]) {
            values = values.chunks(shape[1]).flat_map(|row| spread(row, 1, 1.0)).collect();
            shape[1] = shape[1] / head_dim * HEAD_DIM;
        }
        (name.to_owned(), shape, values)
    };
    let mut config = ModelConfig { head_dim: HEAD_DIM, ..model.config.clone() };
    config.rotaries.iter_mut().for_each(|rotary| rotary.frequencies.resize(wide_pairs, 0.0));
    Model {
        name: model.name.clone(),
        config,
        weights: Weights::from_tensors(model.weights.names().map(tensor)).unwrap(),
        text: Arc::clone(&model.text),
        fingerprint: model.fingerprint.clone(),
    }
}

pub fn reference(model: &Model) -> CpuBackend {
    let pool = Precision::Reference.pool(2).unwrap();
    CpuBackend::new(CpuModel::load(model, Precision::Reference).unwrap(), pool, 16)
}

/// Logits after the prompt in chunks, and after each token of the answer but the last.
fn steps(backend: &mut dyn Backend, case: &Case, chunk: usize) -> Vec<Vec<f32>> {
    let tokens = [&case.prompt_ids[..], &case.output_ids[..]].concat();
    let prompt = case.prompt_ids.len();
    let pages: Vec<PageId> =
        (0..backend.kv_shape().pages_for(tokens.len()) as u32).rev().map(PageId).collect();
    backend.allocate(pages.len()).unwrap();
    let cuts: Vec<usize> = (chunk..prompt).step_by(chunk).chain(prompt..tokens.len()).collect();
    let all = logits_of(backend, &tokens, &pages, &cuts);
    all[all.len() - case.output_ids.len()..].to_vec()
}

pub fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    let greatest = expected.iter().fold(0.0_f32, |greatest, logit| greatest.max(logit.abs()));
    let pairs = found.iter().zip(expected);
    pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max) / greatest
}

#[test]
fn wide_heads_are_the_same_model() {
    for (name, model, cases) in families() {
        let (mut narrow, mut wide) = (reference(&model), reference(&widened(&model)));
        for case in &cases {
            for (narrow, wide) in steps(&mut narrow, case, 1000).iter().zip(steps(&mut wide, case, 1000)) {
                assert!(deviation(&wide, narrow) < 0.01, "{name}: {}", deviation(&wide, narrow));
            }
        }
    }
}

#[test]
fn every_family_is_answered() {
    for answer in answers(Dtype::Bf16, WeightForm::Plain) {
        println!("{answer:?}");
        assert!(answer.largest <= BOUNDS[0] && answer.mean <= BOUNDS[1], "{answer:?}");
    }
}

#[test]
fn every_family_is_answered_in_fp16() {
    for answer in answers(Dtype::F16, WeightForm::Plain) {
        println!("{answer:?}");
        assert!(answer.largest <= FP16_BOUNDS[0] && answer.mean <= FP16_BOUNDS[1], "{answer:?}");
    }
}

#[test]
fn every_family_is_answered_in_fp8() {
    for answer in Dtype::ALL.into_iter().flat_map(|dtype| answers(dtype, WeightForm::Fp8)) {
        println!("{answer:?}");
        let [largest, mean] = if answer.name == LOUDEST { FP8_LOUDEST } else { FP8_BOUNDS };
        assert!(answer.largest <= largest && answer.mean <= mean, "{answer:?}");
    }
}

fn answers(dtype: Dtype, form: WeightForm) -> impl Iterator<Item = Answer> {
    let gpu = Gpu::open(0, dtype).unwrap();
    families().into_iter().flat_map(move |(name, model, cases)| {
        let mut exact = reference(&model);
        let model = CudaModel::load(&widened(&model), &gpu, form).unwrap();
        [false, true].map(|deterministic| {
            let mut limits = CudaLimits::new(256, 8, 1024);
            limits.deterministic = deterministic;
            let mut card = CudaBackend::new(Arc::clone(&model), limits).unwrap();
            Answer::of(&name, &mut card, &mut exact, &cases)
        })
    })
}

impl Answer {
    fn of(name: &str, card: &mut CudaBackend, exact: &mut CpuBackend, cases: &[Case]) -> Self {
        let (mut deviations, mut agreed) = (Vec::new(), 0);
        for (case, chunk) in cases.iter().zip([1000, 5].into_iter().cycle()) {
            for (exact, card) in steps(exact, case, 1000).into_iter().zip(steps(card, case, chunk)) {
                deviations.push(deviation(&card, &exact));
                agreed += usize::from(argmax(&card) == argmax(&exact));
            }
        }
        let largest = deviations.iter().copied().fold(0.0, f32::max);
        let mean = deviations.iter().sum::<f32>() / deviations.len() as f32;
        Self { name: name.to_owned(), largest, mean, agreed: [agreed, deviations.len()] }
    }
}
