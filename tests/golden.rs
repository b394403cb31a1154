//! The real model against reference outputs made with Transformers (see
//! tests/golden/README.md): through the engine alone, through one process,
//! and split over processes. What is named `default_precision` runs on a card too, with
//! `BATON_TEST_SET="engine.backend=cuda transfer.transport=cuda_ipc"`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use baton_engine::{
    backend::{
        Backend,
        cpu::{CpuBackend, CpuModel, Loading, Precision, WeightForm},
    },
    batch::{Batch, BatchSequence},
    kv::PageId,
};
use baton_model::Model;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    counts::counts,
    sandbox::{Cluster, Outcome, Plan, complete},
};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_text: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    compare_until_f32: usize,
    compare_until_fast: usize,
    first_step_top5: Top,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Top {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Step {
    top2_ids: [u32; 2],
    top2_logits: [f32; 2],
    gap: f32,
}

const PAGE_TOKENS: u32 = 16;

/// How far arithmetic in less than 32 bits may be from the reference.
const NEAR: f32 = 0.3;

const BF16: Loading<'_> = held_in(WeightForm::Bf16);
const FOUR_BITS: Loading<'_> = held_in(WeightForm::Int4);

const fn held_in(weights: WeightForm) -> Loading<'static> {
    Loading { precision: Precision::Fast, weights, progress: None }
}

fn golden() -> &'static [Case] {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    let text = include_str!("golden/smollm2-135m-q4_1.json");
    &GOLDEN.get_or_init(|| serde_json::from_str(text).unwrap()).cases
}

/// The real model; `baton model pull` makes it available.
pub fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = baton_model::resolve("smollm2-135m", &baton_model::default_cache()).unwrap();
        baton_model::load(&path).unwrap()
    })
}

/// Gemma 3 270M: another family, K-quants, and a window shorter than one of the prompts.
fn gemma() -> (Model, Vec<Case>) {
    let path = baton_model::resolve("gemma3-270m", &baton_model::default_cache()).unwrap();
    let golden: Golden = serde_json::from_str(include_str!("golden/gemma3-270m-q4_k_m.json")).unwrap();
    (baton_model::load(&path).unwrap(), golden.cases)
}

fn backend<'a>(model: &'a Model, how: impl Into<Loading<'a>>) -> CpuBackend {
    on(CpuModel::load(model, how).unwrap())
}

fn on(model: Arc<CpuModel>) -> CpuBackend {
    let pool = model.precision().pool(2).unwrap();
    CpuBackend::new(model, pool, PAGE_TOKENS)
}

/// One sequence on pages of its own.
struct Alone<'a> {
    backend: &'a mut CpuBackend,
    pages: Vec<PageId>,
    tokens: Vec<u32>,
}

impl<'a> Alone<'a> {
    fn new(backend: &'a mut CpuBackend, capacity: usize) -> Self {
        let pages = capacity.div_ceil(PAGE_TOKENS as usize);
        backend.allocate(pages).unwrap();
        Self { backend, pages: (0..pages as u32).map(PageId).collect(), tokens: Vec::new() }
    }

    /// Logits after `more` tokens.
    fn feed(&mut self, more: &[u32]) -> Vec<f32> {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(more);
        let sequence = BatchSequence {
            tokens: &self.tokens,
            start,
            end: self.tokens.len(),
            pages: &self.pages,
            wants_logits: true,
        };
        let batch = Batch::new(vec![sequence]);
        self.backend.forward(&batch, &mut |_| {}).unwrap().values
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}

#[test]
fn reference_precision_is_token_exact() {
    check_reference(model(), golden());
}

#[test]
fn gemma_is_token_exact_in_reference_precision() {
    let (model, cases) = gemma();
    check_reference(&model, &cases);
}

fn check_reference(model: &Model, cases: &[Case]) {
    let mut backend = backend(model, Precision::Reference);
    let mut largest = 0.0_f32;
    for case in cases {
        let mut alone = Alone::new(&mut backend, case.prompt_ids.len() + case.output_ids.len());
        let mut logits = alone.feed(&case.prompt_ids);
        for (id, expected) in case.first_step_top5.ids.iter().zip(&case.first_step_top5.logits) {
            let found = logits[*id as usize];
            largest = largest.max((found - expected).abs());
            assert!(
                (found - expected).abs() <= 1e-3,
                "{}: logit of {id} is {found}, not {expected}",
                case.name
            );
        }
        for (step, &expected) in case.output_ids[..case.compare_until_f32].iter().enumerate() {
            let found = argmax(&logits);
            assert_eq!(found, expected, "{} step {step}", case.name);
            logits = alone.feed(&[found]);
        }
    }
    println!("largest deviation of a logit: {largest:.1e}");
}

/// The file's matrices are Q4_1 and Q8_0, which the smaller form holds as they are.
#[test]
fn four_bit_weights_of_a_four_bit_file_give_the_same_bits_in_reference_precision() {
    let models = [BF16, FOUR_BITS].map(|how| Loading { precision: Precision::Reference, ..how });
    let models = models.map(|how| CpuModel::load(model(), how).unwrap());
    let [plain, four] = models.each_ref().map(|model| model.bytes());
    assert!(2 * four < plain, "{four} bytes are not half of {plain}");
    let mut backends = models.map(on);
    for case in &golden()[..2] {
        let all = backends.each_mut().map(|backend| {
            let mut alone = Alone::new(backend, case.prompt_ids.len() + 8);
            let mut logits = alone.feed(&case.prompt_ids);
            for id in &case.output_ids[..8] {
                logits.extend(alone.feed(&[*id]));
            }
            logits
        });
        assert!(all[0] == all[1], "{}", case.name);
    }
}

#[test]
fn four_bit_weights_as_in_the_file_stay_near_at_every_step() {
    check_close(model(), golden(), Loading::default(), 0.5);
}

#[test]
fn bf16_weights_stay_close_at_every_step() {
    check_close(model(), golden(), BF16, NEAR);
}

#[test]
fn gemma_stays_close_in_default_precision() {
    let (model, cases) = gemma();
    check_close(&model, &cases, Loading::default(), NEAR);
}

/// K-quants are rounded once more on the way into four and eight bits.
#[test]
fn four_bit_weights_of_gemma_stay_near() {
    let (model, cases) = gemma();
    check_close(&model, &cases, FOUR_BITS, 0.5);
}

/// Follows the reference: every logit that it names is within `bound`, those of the first step are
/// [`NEAR`], and its choice is ours wherever the second best is further away than that.
fn check_close<'a>(model: &'a Model, cases: &[Case], how: Loading<'a>, bound: f32) {
    let mut backend = backend(model, how);
    let mut largest = 0.0_f32;
    for case in cases {
        let mut alone = Alone::new(&mut backend, case.prompt_ids.len() + case.output_ids.len());
        let mut logits = alone.feed(&case.prompt_ids);
        for (index, (step, &forced)) in case.steps.iter().zip(&case.output_ids).enumerate() {
            for (id, expected) in step.top2_ids.iter().zip(step.top2_logits) {
                let found = logits[*id as usize];
                let deviation = (found - expected).abs();
                largest = largest.max(deviation);
                let bound = if index == 0 { NEAR } else { bound };
                assert!(deviation <= bound, "{} step {index}: {found}, not {expected}", case.name);
            }
            if step.gap >= NEAR {
                assert_eq!(argmax(&logits), forced, "{} step {index}", case.name);
            }
            logits = alone.feed(&[forced]);
        }
    }
    println!("largest deviation of a logit: {largest:.3}");
}

#[test]
fn prompts_tokenize_exactly() {
    for case in golden() {
        assert_eq!(model().text.encode(&case.prompt_text, true).unwrap(), case.prompt_ids, "{}", case.name);
    }
}

fn settings(precision: &str) -> String {
    format!(
        "cluster = \"golden\"\nmodel = \"smollm2-135m\"\n[engine]\nprecision = \"{precision}\"\n\
         [frontend]\nlisten = \"127.0.0.1:0\"\n[transfer]\ntransport = \"tcp\"\n"
    )
}

/// Greedy through the API; text must agree up to `until(case)` tokens.
async fn check_through(cluster: &Cluster, until: impl Fn(&Case) -> usize, split: bool) {
    for case in golden().iter().take(counts().golden_split_cases) {
        let body = json!({
            "model": "smollm2-135m", "prompt": case.prompt_ids, "max_tokens": 48, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
        });
        let answer = complete(&cluster.http, &cluster.url, &body).await;
        assert_eq!(answer.outcome, Outcome::Done, "{}: {answer:?}", case.name);
        let mut text = model().text.detokenizer();
        let expected: String = case.output_ids[..until(case)].iter().map(|&token| text.push(token)).collect();
        assert!(
            answer.texts[0].starts_with(&expected),
            "{}: {:?} is not {expected:?}",
            case.name,
            answer.texts[0]
        );
        let prefilled_by = answer.usage["baton_bill"]["prefill_node"].as_str().unwrap_or("");
        assert_eq!(!prefilled_by.is_empty(), split, "{}: {}", case.name, answer.usage);
    }
}

/// The default precision through the API, made to follow the reference: the
/// gap of the likeliest two tokens stays near, and the likeliest is the
/// reference's wherever it is clear.
async fn check_forced(cluster: &Cluster) {
    for case in golden() {
        let steps =
            case.steps.iter().zip(&case.output_ids).enumerate().step_by(counts().golden_forced_stride);
        for (index, (step, &token)) in steps {
            let prompt = [&case.prompt_ids[..], &case.output_ids[..index]].concat();
            let body = json!({
                "model": "smollm2-135m", "prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": true,
                "logprobs": 5,
            });
            let url = format!("{}/v1/completions", cluster.url);
            let answer = cluster.http.post(url).json(&body).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{} step {index}", case.name);
            let answer: Value = answer.json().await.unwrap();
            let found = &answer["choices"][0]["logprobs"];
            let mut top: Vec<f64> =
                found["top_logprobs"][0].as_object().unwrap().values().filter_map(Value::as_f64).collect();
            top.sort_by(|a, b| b.total_cmp(a));
            let gap = top[0] - top[1];
            assert!(
                (gap - f64::from(step.gap)).abs() <= near_gap(),
                "{} step {index}: gap {gap}, not {}",
                case.name,
                step.gap
            );
            if f64::from(step.gap) >= near_gap() {
                let bytes = model().text.token_bytes(token);
                assert_eq!(
                    found["tokens"][0],
                    *String::from_utf8_lossy(&bytes),
                    "{} step {index}",
                    case.name
                );
            }
        }
    }
}

/// How far gaps may be in default precision: in bf16 on a card each logit is up to 0.6 away.
fn near_gap() -> f64 {
    let set = std::env::var("BATON_TEST_SET").unwrap_or_default();
    if set.contains("engine.backend=cuda") { 1.0 } else { 0.6 }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_agrees() {
    let cluster = Cluster::start_embedded(&settings("reference")).await;
    check_through(&cluster, |case| case.compare_until_f32, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_agrees_in_default_precision() {
    let cluster = Cluster::start_embedded(&settings("fast")).await;
    check_through(&cluster, |case| case.compare_until_fast, false).await;
    check_forced(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_over_processes_agrees() {
    let cluster = Cluster::start(&Plan { settings: settings("reference"), prefill: 1, decode: 1 }).await;
    check_through(&cluster, |case| case.compare_until_f32, true).await;
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_over_processes_agrees_in_default_precision() {
    let cluster = Cluster::start(&Plan { settings: settings("fast"), prefill: 1, decode: 1 }).await;
    check_through(&cluster, |case| case.compare_until_fast, true).await;
    check_forced(&cluster).await;
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}
