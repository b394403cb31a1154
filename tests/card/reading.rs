//! What is read of the rows of prompts: how likely their tokens are, and sums for embeddings.

use baton_engine::batch::{Read, Reading, What};
use baton_protocol::{Pooling, PromptLogprobs, PromptToken};

use super::{
    families::{LOUDEST, deviation, families, reference, widened},
    *,
};

/// Alternatives of each token.
const TOP: u32 = 3;

/// What a backend reads of the rows `from..to` of a prompt that it computes in chunks.
fn read(
    backend: &mut dyn Backend,
    (tokens, pages): (&[u32], &[PageId]),
    (from, to, chunk): (usize, usize, usize),
    what: What,
) -> Vec<Reading> {
    let mut all = Vec::new();
    for start in (0..tokens.len()).step_by(chunk) {
        let end = tokens.len().min(start + chunk);
        let rows = start.max(from)..end.min(to);
        let part = BatchSequence { tokens, start, end, pages, wants_logits: end == tokens.len() };
        let reads = vec![(!rows.is_empty()).then_some(Read { rows, what })];
        let batch = Batch { reads, ..Batch::new(vec![part]) };
        all.extend(read_of(backend, &batch));
    }
    all
}

fn read_of(backend: &mut dyn Backend, batch: &Batch<'_>) -> Vec<Reading> {
    let read = backend.forward(batch, &mut |_| {}).unwrap().read;
    read.into_iter().map(|(_, reading)| reading).collect()
}

fn told(readings: Vec<Reading>) -> Vec<PromptToken> {
    let tokens = |reading| if let Reading::Tokens(tokens) = reading { tokens } else { panic!("{reading:?}") };
    readings.into_iter().flat_map(tokens).collect()
}

fn summed(readings: Vec<Reading>) -> Vec<f64> {
    let sums = readings
        .into_iter()
        .map(|reading| if let Reading::Sum(sum) = reading { sum } else { panic!("{reading:?}") });
    sums.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap()
}

/// How likely a token is under a row of logits, and its rank, in plain words.
fn likelihood(row: &[f32], token: u32) -> (f64, u32) {
    let own = row[token as usize];
    let sum: f64 = row.iter().map(|logit| f64::from(logit - own).exp()).sum();
    (-sum.ln(), row.iter().filter(|logit| **logit > own).count() as u32 + 1)
}

fn pages_of(row: usize) -> Vec<PageId> {
    (row as u32 * 16..row as u32 * 16 + 16).rev().map(PageId).collect()
}

/// However a prompt is cut, alone or beside a single token of another, its tokens are as likely as
/// by the rows that are drawn from when it is computed token by token.
#[test]
fn tokens_of_a_prompt_are_as_likely_as_if_they_were_drawn() {
    let mut backend = backend_with(&model(), KvForm::Plain, true);
    let cases = golden();
    backend.allocate(cases.len() * 16).unwrap();
    for (row, case) in cases.iter().enumerate() {
        let (tokens, pages) = (&case.prompt_ids[..], pages_of(row));
        let singles: Vec<usize> = (1..tokens.len()).collect();
        let rows = logits_of(&mut backend, tokens, &pages, &singles);
        for (chunk, from) in [(2048, 0), (64, 0), (64, 5), (7, 0), (7, 3), (1, 0)] {
            let from = from.min(tokens.len() - 2);
            let span = (from, tokens.len() - 1, chunk);
            let found = told(read(&mut backend, (tokens, &pages), span, What::Tokens(TOP)));
            assert_told(&found, &rows[from..], &tokens[from + 1..]);
        }
        let (next, its) = (&cases[(row + 1) % cases.len()].prompt_ids, pages_of((row + 1) % cases.len()));
        logits_of(&mut backend, next, &its, &[next.len() - 1, next.len()]);
        for is_first in [true, false] {
            let (from, to) = (2.min(tokens.len() - 2), tokens.len() - 1);
            let mine = BatchSequence { tokens, start: 0, end: to, pages: &pages, wants_logits: is_first };
            let other = BatchSequence {
                tokens: next,
                start: next.len() - 1,
                end: next.len(),
                pages: &its,
                wants_logits: true,
            };
            let (sequences, reads) = if is_first { (vec![mine, other], 0) } else { (vec![other, mine], 1) };
            let asked = Read { rows: from..to, what: What::Tokens(TOP) };
            let reads = (0..2).map(|index| (index == reads).then(|| asked.clone())).collect();
            let batch = Batch { reads, ..Batch::new(sequences) };
            let found = told(read_of(&mut backend, &batch));
            assert_told(&found, &rows[from..], &tokens[from + 1..]);
        }
    }
}

fn assert_told(found: &[PromptToken], rows: &[Vec<f32>], tokens: &[u32]) {
    assert_eq!((found.len(), rows.len()), (tokens.len(), tokens.len()));
    for ((found, row), token) in found.iter().zip(rows).zip(tokens) {
        let (logprob, rank) = likelihood(row, *token);
        assert!((f64::from(found.logprob) - logprob).abs() < 1e-3, "{found:?} is not {logprob}");
        assert_eq!(found.rank, rank);
        assert_eq!(found.top.len(), TOP as usize);
        assert!(found.top.iter().zip(1..).all(|(top, rank)| likelihood(row, top.id).1 <= rank));
    }
}

/// An engine tells chunk by chunk what a backend reads, and answers as it does without; an embedding
/// is the direction of the rows' sum.
#[test]
fn an_engine_tells_of_prompts_and_makes_embeddings() {
    let model = model();
    let mut exact = backend_with(&model, KvForm::Plain, true);
    exact.allocate(16).unwrap();
    let (mut engine, handle) = engine(backend_with(&model, KvForm::Plain, true));
    let generate = || Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] };
    for case in golden() {
        let (tokens, pages) = (&case.prompt_ids[..], pages_of(0));
        let (answer, ..) = answer(&mut engine, &handle, spec(&case, generate(), StartFrom::Cold));
        let mut asked = spec(&case, generate(), StartFrom::Cold);
        asked.prompt_logprobs = Some(PromptLogprobs { from: 1, top: TOP });
        let (found, drawn, _) = heard(&mut engine, &handle, asked);
        let span = (0, tokens.len() - 1, 2048);
        assert_eq!(found, told(read(&mut exact, (tokens, &pages), span, What::Tokens(TOP))));
        assert_eq!(drawn, answer, "{}", case.name);
        for (pooling, from) in [(Pooling::Mean, 0), (Pooling::Last, tokens.len() - 1)] {
            let goal = Goal::Embed { pooling };
            let (.., vector) = heard(&mut engine, &handle, spec(&case, goal, StartFrom::Cold));
            let expected = summed(read(&mut exact, (tokens, &pages), (from, tokens.len(), 2048), What::Sum));
            let vector: Vec<f64> = vector.unwrap().into_iter().map(f64::from).collect();
            assert!((likeness(&vector, &expected) - 1.0).abs() < 1e-6, "{}", case.name);
            assert!((length(&vector) - 1.0).abs() < 1e-5);
        }
    }
}

/// What an engine says of a prompt, draws, and makes of it.
fn heard(
    engine: &mut Engine,
    handle: &EngineHandle,
    spec: SequenceSpec,
) -> (Vec<PromptToken>, Vec<u32>, Option<Vec<f32>>) {
    let mut events = handle.submit(spec).unwrap();
    let (mut told, mut drawn, mut vector) = (Vec::new(), Vec::new(), None);
    while engine.step().unwrap() != StepOutcome::Idle {}
    while let Ok(event) = events.try_recv() {
        match event {
            SequenceEvent::Prompt(part) => told.extend(part.tokens),
            SequenceEvent::Token(token) => drawn.push(token.id),
            SequenceEvent::Embedding(made) => vector = Some(made),
            SequenceEvent::Failed(failure) => panic!("{failure}"),
            _ => {}
        }
    }
    (told, drawn, vector)
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Cosine of the angle between two vectors.
fn likeness(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / (length(a) * length(b))
}

/// In fp16, of every family, with caps of logits and norms of its own.
#[test]
fn every_family_is_read_as_on_the_cpu() {
    let gpu = Gpu::open(0, Dtype::F16).unwrap();
    for (name, model, cases) in families() {
        let mut exact = reference(&model);
        let model = CudaModel::load(&widened(&model), &gpu, WeightForm::Plain).unwrap();
        for deterministic in [false, true] {
            let limits = CudaLimits { deterministic, ..CudaLimits::new(256, 8, 1024) };
            let mut card = CudaBackend::new(Arc::clone(&model), limits).unwrap();
            for (case, chunk) in cases.iter().zip([1000, 5].into_iter().cycle()) {
                let tokens = [&case.prompt_ids[..], &case.output_ids[..]].concat();
                let pages: Vec<_> = (0..tokens.len().div_ceil(16) as u32).rev().map(PageId).collect();
                exact.allocate(pages.len()).unwrap();
                card.allocate(pages.len()).unwrap();
                let mut both = |to, what| {
                    let exact = read(&mut exact, (&tokens, &pages), (0, to, 1000), what);
                    (exact, read(&mut card, (&tokens, &pages), (0, to, chunk), what))
                };
                let (exact, found) = both(tokens.len() - 1, What::Tokens(TOP));
                let values = |readings| told(readings).iter().map(|token| token.logprob).collect::<Vec<_>>();
                let deviates = deviation(&values(found), &values(exact));
                let (exact, found) = both(tokens.len(), What::Sum);
                let alike = likeness(&summed(found), &summed(exact));
                println!("{name}: log-probabilities deviate by {deviates:.4}, sums agree by {alike:.6}");
                let (most, least) = if name == LOUDEST { (0.3, 0.99) } else { (0.1, 0.999) };
                assert!(deviates <= most && alike >= least, "{name}: {deviates}, {alike}");
            }
        }
    }
}
