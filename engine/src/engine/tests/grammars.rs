//! Answers that a grammar rules: the mock's characters are random, what they spell is not.

use std::sync::Arc;

use baton_model::ModelText;
use baton_protocol::{ErrorCode, FinishReason, Grammar, GrammarKind};

use super::fixture::*;
use crate::{
    EngineConfig, Goal, SequenceSpec, SubmitError,
    backend::mock::{EOS_TOKEN, MockConfig},
};

const SCHEMA: &str = r#"{"type":"object","additionalProperties":false,"required":["a","b"],"properties":{
    "a":{"type":"string","maxLength":12},"b":{"type":"array","maxItems":4,"items":{"enum":["x","yy",null]}}}}"#;

fn with_text(config: &mut EngineConfig) {
    config.eos_tokens = vec![EOS_TOKEN];
    config.text = Some(Arc::new(ModelText::mock()));
}

fn fixture() -> Fixture {
    Fixture::with(64, with_text)
}

fn guided(seed: u64, max_tokens: u32, kind: GrammarKind, source: &str) -> SequenceSpec {
    let mut spec = generate(&prompt(seed, 6), seed, max_tokens);
    spec.stop.ignore_eos = false;
    spec.sampling.temperature = if seed.is_multiple_of(2) { 1.0 } else { 0.0 };
    spec.sampling.grammar = Some(Arc::new(Grammar { kind, source: source.to_owned() }));
    spec
}

fn spelled(tokens: &[u32]) -> String {
    String::from_utf8(tokens.iter().map(|token| *token as u8).collect()).unwrap()
}

/// Whether it is what `SCHEMA` says.
fn assert_fits(text: &str) {
    let value: serde_json::Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(value["a"].as_str().unwrap().chars().count() <= 12, "{text}");
    let items = value["b"].as_array().unwrap();
    assert!(
        items.len() <= 4 && items.iter().all(|item| item == "x" || item == "yy" || item.is_null()),
        "{text}"
    );
}

#[test]
fn answers_are_what_their_grammars_say_and_end_there() {
    let specs = (0..12).map(|seed| guided(seed, 400, GrammarKind::Json, SCHEMA)).collect();
    for answer in fixture().answers(specs) {
        assert_eq!(answer.finished[&0], FinishReason::Stop, "{answer:?}");
        assert_fits(&spelled(&answer.tokens[&0]));
    }
    let specs = (0..6).map(|seed| guided(seed, 40, GrammarKind::Regex, "[0-9]{4}-(ja|nein)")).collect();
    for answer in fixture().answers(specs) {
        let text = spelled(&answer.tokens[&0]);
        assert!(text.len() <= 9 && (text.ends_with("-ja") || text.ends_with("-nein")), "{text}");
    }
}

#[test]
fn a_step_of_two_kinds_changes_neither() {
    for runs_ahead in [false, true] {
        let backend = || mock(MockConfig { runs_ahead, ..MockConfig::default() });
        let specs = || -> Vec<_> {
            let free = (20..24).map(|seed| generate(&prompt(seed, 9), seed, 60));
            free.chain((0..4).map(|seed| guided(seed, 300, GrammarKind::Json, SCHEMA))).collect()
        };
        let together = Fixture::over(backend(), 256, with_text).answers(specs());
        for (spec, together) in specs().into_iter().zip(together) {
            let alone = Fixture::over(backend(), 256, with_text).answer(spec);
            assert_eq!((alone.tokens, alone.finished), (together.tokens, together.finished));
        }
    }
}

#[test]
fn choices_part_and_answers_go_on_from_what_is_known() {
    let mut spec = guided(4, 300, GrammarKind::Json, SCHEMA);
    spec.goal = Goal::Generate { choices: choices(&[&[], &[], &[]]) };
    let whole = fixture().answer(spec.clone());
    for tokens in whole.tokens.values() {
        assert_fits(&spelled(tokens));
    }
    assert_ne!(whole.tokens[&0], whole.tokens[&1]);
    // As after the loss of a node: each choice knows some of its tokens.
    let known: Vec<&[u32]> = whole.tokens.values().zip([0, 5, 9]).map(|(all, known)| &all[..known]).collect();
    spec.goal = Goal::Generate { choices: choices(&known) };
    let resumed = fixture().answer(spec);
    for (choice, all) in &whole.tokens {
        let known = known[*choice as usize];
        assert_eq!([known, &resumed.tokens[choice]].concat(), *all);
    }
}

#[test]
fn the_first_token_of_another_node_fits_too() {
    let spec = guided(3, 300, GrammarKind::Regex, "(true|false)!");
    let whole = fixture().answer(spec.clone());
    let first = fixture().answer(SequenceSpec { goal: Goal::Prefill { sample: vec![0] }, ..spec.clone() });
    assert_eq!(first.tokens[&0], whole.tokens[&0][..1]);
    let goal = Goal::Generate { choices: choices(&[&first.tokens[&0]]) };
    let rest = fixture().answer(SequenceSpec { goal, ..spec });
    assert_eq!(rest.tokens[&0], whole.tokens[&0][1..]);
    assert_eq!(rest.finished[&0], FinishReason::Stop);
}

#[test]
fn a_preempted_answer_keeps_to_its_grammar() {
    let specs = || (0..6).map(|seed| guided(seed, 200, GrammarKind::Json, SCHEMA)).collect::<Vec<_>>();
    let roomy = Fixture::with(512, with_text).answers(specs());
    let tight = Fixture::with(64, with_text).answers(specs());
    for (roomy, tight) in roomy.into_iter().zip(tight) {
        assert_eq!(roomy.tokens, tight.tokens);
        assert_fits(&spelled(&tight.tokens[&0]));
    }
}

#[test]
fn limits_on_tokens_hold_as_far_as_the_grammar_leaves_a_choice() {
    let cut = fixture().answer(guided(1, 5, GrammarKind::Json, SCHEMA));
    assert_eq!((cut.tokens[&0].len(), cut.finished[&0]), (5, FinishReason::Length));
    let mut spec = guided(1, 50, GrammarKind::Regex, "[a-z]{3,30}");
    spec.stop.min_tokens = 20;
    let long = fixture().answer(spec.clone());
    assert!((20..=30).contains(&long.tokens[&0].len()), "{long:?}");
    spec.sampling.grammar = guided(1, 1, GrammarKind::Regex, "[a-z]{3}").sampling.grammar;
    let short = fixture().answer(spec);
    assert_eq!((short.tokens[&0].len(), short.finished[&0]), (3, FinishReason::Stop));
}

#[test]
fn what_cannot_be_followed_fails_by_itself() {
    let mut fixture = fixture();
    let beside = generate(&prompt(7, 5), 7, 10);
    let expected = text(&beside, 0, 10);
    let answers = fixture.answers(vec![guided(2, 10, GrammarKind::Regex, "("), beside]);
    assert_eq!(answers[0].failed.as_ref().unwrap().code, ErrorCode::InvalidRequest);
    assert_eq!(answers[1].tokens[&0], expected);
    fixture.assert_idle();
    let without = Fixture::new(8);
    let refused = without.handle.submit(guided(2, 10, GrammarKind::Regex, "a")).unwrap_err();
    assert!(matches!(refused, SubmitError::Invalid(_)));
}
