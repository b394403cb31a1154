//! Penalties, biases, bans and grammars on a card: the tokens are those of the host's
//! sampler, and of a request that was lost half-way.

use std::sync::Arc;

use baton_engine::{
    ChoiceSpec, Engine, EngineConfig, EngineHandle, Goal, SequenceSpec, StartFrom,
    backend::{
        Backend, BackendError,
        cuda::{CudaBackend, CudaLimits, CudaModel},
    },
    batch::{Batch, Draw, Logits, Rows, Shape},
    kv::KvStore,
};
use baton_model::ModelText;
use baton_protocol::{Grammar, GrammarKind, KvShape, LogitBias, RequestId, Sampling};
use regex::Regex;

use super::{answers, golden, model, spec};

/// A card that draws nothing itself.
struct HostDraws(CudaBackend);

impl Backend for HostDraws {
    fn name(&self) -> &'static str {
        "host draws"
    }

    fn kv_shape(&self) -> &KvShape {
        self.0.kv_shape()
    }

    fn vocab_tokens(&self) -> usize {
        self.0.vocab_tokens()
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.0.allocate(pages)
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        self.0.forward(batch, layer_done)
    }

    fn draws(&self, _: &Draw, _: Option<&Shape<'_>>) -> bool {
        false
    }

    fn draw(&mut self, batch: &Batch<'_>, layer_done: &mut dyn FnMut(usize)) -> Result<Rows, BackendError> {
        self.0.draw(batch, layer_done)
    }
}

fn engine(model: &Arc<CudaModel>, draws_on_host: bool) -> (Engine, EngineHandle) {
    engine_of(model, draws_on_host, |_| ())
}

fn engine_of(
    model: &Arc<CudaModel>,
    draws_on_host: bool,
    set: impl FnOnce(&mut EngineConfig),
) -> (Engine, EngineHandle) {
    let mut limits = CudaLimits::new(2048, 64, 4096);
    limits.deterministic = true;
    let card = CudaBackend::new(Arc::clone(model), limits).unwrap();
    let backend: Box<dyn Backend> = if draws_on_host { Box::new(HostDraws(card)) } else { Box::new(card) };
    let mut config = EngineConfig::new(128, 4096);
    (config.scheduler.max_batch_tokens, config.scheduler.max_sequences) = (192, 64);
    set(&mut config);
    let engine = Engine::new(backend, config).unwrap();
    let handle = engine.handle();
    (engine, handle)
}

/// Requests that shape their logits in every way, all of other prompts.
fn specs(temperature: f32) -> Vec<SequenceSpec> {
    let shapes: [fn(&mut SequenceSpec); 6] = [
        |spec| spec.sampling.repetition_penalty = 1.3,
        |spec| (spec.sampling.presence_penalty, spec.sampling.frequency_penalty) = (0.7, 0.4),
        |spec| {
            let bias = |token| LogitBias { token, bias: token as f32 % 7.0 - 3.0 };
            spec.sampling.logit_bias = (100..1100).map(bias).collect();
            spec.sampling.frequency_penalty = -0.3;
        },
        |spec| {
            // All that it would say first are stops.
            spec.stop.token_ids = (0..3000).collect();
            spec.stop.min_tokens = 40;
        },
        |spec| (spec.sampling.repetition_penalty, spec.stop.min_tokens) = (1.1, 5),
        |_| {},
    ];
    let specs =
        golden().into_iter().zip(shapes.into_iter().cycle()).enumerate().map(|(index, (case, shape))| {
            let mut spec = spec(&case, Goal::Generate { choices: vec![choice(Vec::new())] }, StartFrom::Cold);
            spec.request = RequestId(index as u128 + 1);
            spec.sampling =
                Sampling { temperature, top_p: 0.95, seed: index as u64, ..spec.sampling.clone() };
            spec.stop.max_tokens = 60;
            shape(&mut spec);
            spec
        });
    specs.collect()
}

fn choice(generated: Vec<u32>) -> ChoiceSpec {
    ChoiceSpec { choice: 0, generated }
}

#[test]
fn likeliest_tokens_are_those_of_the_hosts_sampler() {
    let model = model();
    let ((mut card, card_handle), (mut host, host_handle)) = (engine(&model, false), engine(&model, true));
    let found = answers(&mut card, &card_handle, specs(0.0));
    let expected = answers(&mut host, &host_handle, specs(0.0));
    let plain = answers(&mut card, &card_handle, {
        let mut specs = specs(0.0);
        specs.iter_mut().for_each(|spec| spec.sampling = Sampling::greedy());
        specs
    });
    assert_eq!(found, expected);
    let changed = found.iter().zip(&plain).filter(|(found, plain)| found != plain).count();
    println!("{changed} of {} answers are others than without shapes", found.len());
    assert!(changed >= 3, "{changed}");
}

#[test]
fn drawn_tokens_are_the_same_alone_beside_others_and_resumed() {
    let model = model();
    let (mut card, handle) = engine(&model, false);
    let together = answers(&mut card, &handle, specs(0.9));
    for (spec, expected) in specs(0.9).into_iter().zip(&together) {
        let alone = answers(&mut card, &handle, vec![spec.clone()]);
        assert_eq!(alone[0], *expected);
        let half = expected.len() / 2;
        let mut resumed = spec;
        resumed.goal = Goal::Generate { choices: vec![choice(expected[..half].to_vec())] };
        assert_eq!(answers(&mut card, &handle, vec![resumed])[0], expected[half..]);
    }
}

/// What answers under a grammar are.
const LISTS: &str = "[a-z]{2,12}=[0-9]{1,4}(;[a-z]{2,12}=[0-9]{1,4}){1,3}";

/// Requests whose answers a grammar rules, some with other shapes besides.
fn ruled(temperature: f32) -> Vec<SequenceSpec> {
    let grammar = Arc::new(Grammar { kind: GrammarKind::Regex, source: LISTS.to_owned() });
    let rule = |mut spec: SequenceSpec| {
        spec.sampling.grammar = Some(Arc::clone(&grammar));
        // Their stops would end answers before their grammar does.
        (spec.stop.ignore_eos, spec.stop.min_tokens, spec.stop.token_ids) = (false, 0, Vec::new());
        spec
    };
    specs(temperature).into_iter().map(rule).collect()
}

#[test]
fn answers_under_a_grammar_fit_it_and_are_those_of_the_hosts_sampler() {
    let path = baton_model::resolve("smollm2-135m", &baton_model::default_cache()).unwrap();
    let text = baton_model::load(&path).unwrap().text;
    let with_text = |config: &mut EngineConfig| {
        config.eos_tokens = text.eos_tokens().to_vec();
        config.text = Some(Arc::<ModelText>::clone(&text));
    };
    let model = model();
    let (mut card, card_handle) = engine_of(&model, false, with_text);
    let (mut host, host_handle) = engine_of(&model, true, with_text);
    let found = answers(&mut card, &card_handle, ruled(0.0));
    assert_eq!(found, answers(&mut host, &host_handle, ruled(0.0)));
    let drawn = answers(&mut card, &card_handle, ruled(0.9));
    assert_ne!(drawn, found);
    let fits = Regex::new(&format!("^{LISTS}$")).unwrap();
    for answer in found.iter().chain(&drawn) {
        let said = text.decode(answer);
        assert!(fits.is_match(&said), "{said}");
    }
}
