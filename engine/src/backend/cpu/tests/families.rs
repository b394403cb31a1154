//! A tiny checkpoint of every family against what Transformers says of it
//! (tests/golden/families).

use std::{fs, path::PathBuf};

use baton_model::Model;
use serde::Deserialize;

use super::*;

/// Largest deviation of a logit from Transformers' in reference precision.
const REFERENCE_BOUND: f32 = 1e-3;

/// Largest deviation of a logit in fast precision, as a part of the largest logit of its step, and its
/// mean over steps. So tiny models answer rounding loudly, those with sharp attention (LongRoPE) most.
const FAST_BOUNDS: [f32; 2] = [0.25, 0.05];

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    first_step_logits: Vec<f32>,
}

struct Family {
    name: String,
    model: Model,
    cases: Vec<Case>,
}

fn families() -> impl Iterator<Item = Family> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/families");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("golden.json").is_file()).collect();
    folders.sort();
    assert_eq!(folders.len(), 14, "{folders:?}");
    folders.into_iter().map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let golden: Golden = serde_json::from_slice(&fs::read(path.join("golden.json")).unwrap()).unwrap();
        let model = baton_model::load(&path).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        Family { name, model, cases: golden.cases }
    })
}

impl Family {
    fn harness(&self, precision: Precision) -> Harness {
        Harness::new(&CpuModel::load(&self.model, precision).unwrap(), 2)
    }

    fn check_bits(&self, precision: Precision) {
        let mut harness = self.harness(precision);
        let tokens: Vec<Vec<u32>> = self.cases.iter().map(Case::tokens).collect();
        let own_pages = [pages(0..30), pages(30..60)];
        let each = || tokens.iter().zip(&own_pages);
        let alone: Vec<_> = each().map(|(tokens, pages)| harness.chunked(tokens, pages, 1000)).collect();
        for chunk in [1, 5, 16] {
            let found = harness.chunked(&tokens[1], &own_pages[0], chunk);
            assert!(found == alone[1], "{}: {precision:?} in chunks of {chunk}", self.name);
        }
        let batch = each().map(|(tokens, pages)| part(tokens, pages, 0..tokens.len())).collect();
        let together = harness.forward(batch).unwrap();
        assert!(together.rows().eq(alone.iter().map(Vec::as_slice)), "{}: {precision:?}", self.name);
    }
}

impl Case {
    /// The prompt with its answer.
    fn tokens(&self) -> Vec<u32> {
        [&self.prompt_ids[..], &self.output_ids].concat()
    }

    /// Logits after the prompt, and after each token of the answer but the last.
    fn steps(&self, harness: &mut Harness) -> Vec<Vec<f32>> {
        let (tokens, pages) = (self.tokens(), pages(0..64));
        let ends = self.prompt_ids.len()..tokens.len();
        let starts = [0].into_iter().chain(ends.clone());
        let step = |(start, end)| harness.forward(vec![part(&tokens, &pages, start..end)]).unwrap().values;
        starts.zip(ends).map(step).collect()
    }
}

fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0 as u32
}

#[test]
fn reference_precision_is_token_exact() {
    for family in families() {
        let mut harness = family.harness(Precision::Reference);
        let mut largest = 0.0_f32;
        for case in &family.cases {
            let steps = case.steps(&mut harness);
            largest = largest.max(deviation(&steps[0], &case.first_step_logits));
            let found: Vec<u32> = steps.iter().map(|logits| likeliest(logits)).collect();
            assert_eq!(found, case.output_ids, "{}: {}", family.name, case.name);
        }
        println!("{}: largest deviation of a logit: {largest:.1e}", family.name);
        assert!(largest <= REFERENCE_BOUND, "{}: {largest}", family.name);
    }
}

#[test]
fn fast_precision_stays_close_at_every_step() {
    for family in families() {
        let [mut exact, mut fast] = [Precision::Reference, Precision::Fast].map(|how| family.harness(how));
        let mut deviations = Vec::new();
        for case in &family.cases {
            for (exact, fast) in case.steps(&mut exact).iter().zip(case.steps(&mut fast)) {
                let greatest = exact.iter().fold(0.0_f32, |greatest, logit| greatest.max(logit.abs()));
                deviations.push(deviation(&fast, exact) / greatest);
            }
        }
        let largest = deviations.iter().copied().fold(0.0, f32::max);
        let mean = deviations.iter().sum::<f32>() / deviations.len() as f32;
        println!(
            "{}: largest deviation of a logit: {largest:.4} of the largest, mean {mean:.4}",
            family.name
        );
        assert!(largest <= FAST_BOUNDS[0] && mean <= FAST_BOUNDS[1], "{}: {largest}, {mean}", family.name);
    }
}

#[test]
fn chunks_and_neighbours_do_not_change_a_bit() {
    for family in families() {
        family.check_bits(Precision::Fast);
        family.check_bits(Precision::Reference);
    }
}
