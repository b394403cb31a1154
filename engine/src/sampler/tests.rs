use baton_protocol::LogitBias;
use proptest::prelude::*;

use super::*;

fn with<'a>(sampling: &'a Sampling, tokens: &'a [u32], prompt_tokens: usize) -> Draw<'a> {
    Draw { sampling, choice: 0, tokens, prompt_tokens, mask: None }
}

/// Tokens drawn over many seeds.
fn drawn(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let one = |seed| draw(logits, &with(&Sampling { seed, ..sampling.clone() }, &[1], 1)).unwrap();
    (0..2000).map(one).collect()
}

fn share(drawn: &[u32], token: u32) -> f64 {
    drawn.iter().filter(|id| **id == token).count() as f64 / drawn.len() as f64
}

#[test]
fn greedy_ties_go_to_the_lowest_id() {
    assert_eq!(draw(&[1.0, 3.0, 3.0], &with(&Sampling::greedy(), &[0], 1)), Some(1));
    let top_one = Sampling { top_k: 1, ..Sampling::default() };
    assert!(drawn(&[1.0, 3.0, 3.0], &top_one).iter().all(|id| *id == 1));
}

#[test]
fn nan_is_never_drawn_and_nothing_usable_is_no_token() {
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    for sampling in [Sampling::greedy(), Sampling { top_p: 0.9, ..Sampling::default() }] {
        assert_eq!(draw(&[nan, 1.0, nan], &with(&sampling, &[0], 1)), Some(1));
        assert_eq!(draw(&[nan, infinity, 5.0], &with(&sampling, &[0], 1)), Some(1));
        assert_eq!(draw(&[nan, -infinity], &with(&sampling, &[0], 1)), None);
        assert_eq!(draw(&[], &with(&sampling, &[0], 1)), None);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0, 2f32.ln(), 5f32.ln()];
    let plain = drawn(&logits, &Sampling::default());
    for (token, expected) in [(0, 0.125), (1, 0.25), (2, 0.625)] {
        assert!((share(&plain, token) - expected).abs() < 0.04, "{token}: {}", share(&plain, token));
    }
    let hot = drawn(&logits, &Sampling { temperature: 1e6, ..Sampling::default() });
    assert!((share(&hot, 0) - 1.0 / 3.0).abs() < 0.04);
    let cold = drawn(&logits, &Sampling { temperature: 0.01, ..Sampling::default() });
    assert_eq!(share(&cold, 2), 1.0);
}

#[test]
fn filters_keep_what_they_say() {
    let logits = [0.0, 2f32.ln(), 5f32.ln()];
    let kept = |sampling: Sampling| -> Vec<u32> {
        let drawn = drawn(&logits, &sampling);
        (0..3).filter(|token| share(&drawn, *token) > 0.0).collect()
    };
    assert_eq!(kept(Sampling { top_k: 2, ..Sampling::default() }), [1, 2]);
    assert_eq!(kept(Sampling { top_p: 0.6, ..Sampling::default() }), [2]);
    assert_eq!(kept(Sampling { top_p: 0.7, ..Sampling::default() }), [1, 2]);
    assert_eq!(kept(Sampling { top_p: 0.0, ..Sampling::default() }), [2]);
    assert_eq!(kept(Sampling { min_p: 0.3, ..Sampling::default() }), [1, 2]);
    assert_eq!(kept(Sampling { min_p: 1.0, ..Sampling::default() }), [2]);
}

#[test]
fn bias_penalties_and_bans_change_the_best() {
    let best = |sampling: &Sampling, tokens: &[u32], prompt| {
        draw(&[1.0, 0.9, 0.5], &with(sampling, tokens, prompt)).unwrap()
    };
    let plain = Sampling::greedy();
    assert_eq!(best(&plain, &[0, 0], 1), 0);
    let bias = Sampling { logit_bias: vec![LogitBias { token: 2, bias: 0.6 }], ..plain.clone() };
    assert_eq!(best(&bias, &[0], 1), 2);
    let presence = Sampling { presence_penalty: 0.2, ..plain.clone() };
    assert_eq!((best(&presence, &[0], 1), best(&presence, &[0, 0], 1)), (0, 1));
    let frequency = Sampling { frequency_penalty: 0.08, ..plain.clone() };
    assert_eq!((best(&frequency, &[9, 0], 1), best(&frequency, &[9, 0, 0], 1)), (0, 1));
    let repetition = Sampling { repetition_penalty: 1.2, ..plain.clone() };
    assert_eq!((best(&repetition, &[9], 1), best(&repetition, &[0], 1)), (0, 1));
    let banned = Draw { mask: Some(&[!0b11]), ..with(&plain, &[9], 1) };
    assert_eq!(draw(&[1.0, 0.9, 0.5], &banned), Some(2));
}

#[test]
fn draws_differ_by_choice_and_position_and_not_by_history() {
    let logits = [0.0; 64];
    let sampling = Sampling { seed: 3, ..Sampling::default() };
    let one =
        |choice, tokens: &[u32], prompt| draw(&logits, &Draw { choice, ..with(&sampling, tokens, prompt) });
    let row = |choice| (1..30).map(|len| one(choice, &vec![0; len], 1)).collect::<Vec<_>>();
    assert_ne!(row(0), row(1));
    let mut distinct = row(0);
    distinct.sort();
    distinct.dedup();
    assert!(distinct.len() > 15, "{distinct:?}");
    assert_eq!(one(0, &[1, 2, 3], 2), one(0, &[9, 8, 7, 6], 3));
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let (logprob, top) = logprobs(&[0.0, 2f32.ln(), 5f32.ln(), f32::NAN], 1, 2);
    assert!((logprob - 0.25f32.ln()).abs() < 1e-6);
    assert_eq!(top.iter().map(|entry| entry.id).collect::<Vec<_>>(), [2, 1]);
    assert!((top[0].logprob - 0.625f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs(&[1.0, 1.0], 0, 20).1.len(), 2);
}

#[test]
fn exp_is_close_and_exact_where_it_matters() {
    assert_eq!((exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY), exp(f32::MIN)), (1.0, 1.0, 0.0, 0.0));
    for x in (0..87_000).map(|i| i as f32 / -1000.0) {
        let expected = f64::from(x).exp();
        assert!((f64::from(exp(x)) - expected).abs() <= 1e-5 * expected, "{x}: {}", exp(x));
    }
}

/// The nucleus by its definition: a full sort, then the shortest prefix that reaches `top_p`.
fn nucleus(weights: &[f32], top_p: f32) -> Vec<u32> {
    let mut sorted: Vec<(u32, f64)> = (0..).zip(weights.iter().map(|weight| f64::from(*weight))).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let enough = f64::from(top_p) * sorted.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut reached = 0.0;
    let needed = sorted.into_iter().take_while(|(_, weight)| {
        let is_needed = reached < enough;
        reached += weight;
        is_needed
    });
    let mut ids: Vec<u32> = needed.map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids
}

proptest! {
    #[test]
    fn top_p_keeps_the_nucleus(weights in prop::collection::vec(1e-6..1.0f32, 1..200), top_p in 0.05..0.999f32) {
        let sampling = Sampling { top_p, ..Sampling::default() };
        let kept: Vec<u32> = candidates(&weights, &sampling).into_iter().map(|(id, _)| id).collect();
        prop_assert_eq!(kept, nucleus(&weights, top_p));
    }

    #[test]
    fn the_greatest_is_found_wherever_it_is(
        mut logits in prop::collection::vec(prop_oneof![-1.0..1.0f32, Just(f32::NAN), Just(f32::NEG_INFINITY)], 1..3000),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..3), huge: bool,
    ) {
        for place in places {
            *place.get_mut(&mut logits) = if huge { f32::INFINITY } else { 2.0 };
        }
        let mut expected: Option<usize> = None;
        for (id, &logit) in logits.iter().enumerate() {
            if usable(logit) > expected.map_or(f32::NEG_INFINITY, |best| usable(logits[best])) {
                expected = Some(id);
            }
        }
        prop_assert_eq!(greatest(&logits), expected.map(|id| id as u32));
    }

    /// Blocks are only a faster way to the same token, rounding of sums apart.
    #[test]
    fn a_draw_by_blocks_is_a_draw(
        weights in prop::collection::vec(prop_oneof![Just(0.0f32), 1e-6..1.0f32], 1..5000), uniform in 0.0..1.0f64,
    ) {
        let kept = at_least(&weights, 0.0);
        let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let picked = pick_any(&weights, uniform);
        prop_assert_eq!(picked.is_some(), !kept.is_empty());
        if let Some(id) = picked {
            let before: f64 = kept.iter().take_while(|(other, _)| *other < id).map(|(_, weight)| weight).sum();
            let after = before + f64::from(weights[id as usize]);
            prop_assert!(weights[id as usize] > 0.0);
            prop_assert!((before - 1e-9 * sum..=after + 1e-9 * sum).contains(&(uniform * sum)));
        }
    }

    /// The host shapes logits as the reference of the kernel does.
    #[test]
    fn logits_are_shaped_as_by_a_kernel(
        logits in prop::collection::vec(-9.0..9.0f32, 1..70), tokens in prop::collection::vec(0..70u32, 1..90),
        prompt_tokens in 0..90usize, biases in prop::collection::btree_map(0..70u32, -5.0..5.0f32, 0..9),
        (repetition_penalty, presence_penalty, frequency_penalty) in (0.5..2.0f32, -1.0..1.0f32, -1.0..1.0f32),
        mask in prop::option::of(prop::array::uniform3(any::<u32>())),
    ) {
        let in_row = |token: &u32| (*token as usize) < logits.len();
        let tokens: Vec<u32> = tokens.into_iter().filter(in_row).collect();
        let prompt_tokens = prompt_tokens.min(tokens.len());
        let biases = biases.into_iter().filter(|(token, _)| in_row(token));
        let logit_bias = biases.map(|(token, bias)| LogitBias { token, bias }).collect();
        let penalties = Sampling { repetition_penalty, presence_penalty, frequency_penalty, ..Sampling::default() };
        let sampling = Sampling { logit_bias, ..penalties };
        let mask = mask.as_ref().map(|mask| &mask[..]);
        let shaped = shaped(&logits, &Draw { mask, ..with(&sampling, &tokens, prompt_tokens) }).unwrap();
        let history = History::of(&sampling, &tokens, prompt_tokens);
        let shape = baton_kernels::Shape {
            repetition: repetition_penalty, presence: presence_penalty, frequency: frequency_penalty,
            ..baton_kernels::Shape::NONE
        };
        let mut expected = logits.clone();
        baton_kernels::reference::shape(&mut expected, &shape, history.list(), mask);
        prop_assert_eq!(shaped, expected);
    }

    /// Without copying the row, the likeliest that is allowed is the likeliest of the row with the others taken out.
    #[test]
    fn the_likeliest_of_a_mask_is_found_where_it_lies(
        logits in prop::collection::vec(prop_oneof![-2.0..2.0f32, prop::num::f32::ANY], 1..200),
        mask in prop::collection::vec(prop_oneof![Just(0), Just(!0), any::<u32>()], 7),
    ) {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let draw = Draw { mask: Some(&mask), ..with(&greedy, &[0], 1) };
        prop_assert_eq!(super::draw(&logits, &draw), greatest(&shaped(&logits, &draw).unwrap()));
    }

    #[test]
    fn any_logits_give_a_token_that_may_be_drawn(
        logits in prop::collection::vec(prop::num::f32::ANY, 1..50),
        temperature in 0.0..2.0f32, top_k in 0..10u32, top_p in 0.0..1.0f32, min_p in 0.0..1.0f32, seed: u64,
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
        let token = draw(&logits, &with(&sampling, &[0], 1));
        let is_usable = |logit: &f32| !logit.is_nan() && *logit != f32::NEG_INFINITY;
        prop_assert_eq!(token.is_some(), logits.iter().any(is_usable));
        prop_assert!(token.is_none_or(|token| is_usable(&logits[token as usize])));
    }
}

#[test]
fn tokens_of_a_prompt_are_told_of_as_drawn_ones_are() {
    let rows = [0.5, 2.0, f32::NAN, 2.0, -1.0, 3.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY];
    let told = prompt_tokens(&rows, 5, &[3, 4], 2);
    for (token, (row, id)) in told.iter().zip([(&rows[..5], 3), (&rows[5..], 4)]) {
        let (logprob, top) = logprobs(row, id, 2);
        assert_eq!((token.logprob, &token.top), (logprob, &top));
    }
    assert_eq!([told[0].rank, told[1].rank], [1, 5], "equal ones share a rank");
}
