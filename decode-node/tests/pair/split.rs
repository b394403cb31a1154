//! An answer is the same wherever its prompt was computed.

use baton_engine::backend::mock::{MockConfig, expected, expected_embedding, expected_prompt};
use baton_protocol::{
    FinishReason::{Length, Stop},
    Pooling, PromptLogprobs,
};

use crate::{
    call::{Call, answer, open, request},
    sandbox::{Sandbox, Settings, prompt},
};

#[tokio::test(flavor = "multi_thread")]
async fn split_equals_local_for_any_prompt_seed_and_number_of_choices() {
    // Pages differ in size between the two sides, both ways.
    for (prefill_pages, decode_pages) in [(16, 16), (8, 16), (16, 4)] {
        let settings = Settings {
            prefill_page_tokens: prefill_pages,
            decode_page_tokens: decode_pages,
            ..Settings::default()
        };
        let cluster = Sandbox::start(settings).await;
        for seed in 0..24 {
            let length = [1, 2, 15, 16, 17, 33, 64, 150][seed as usize % 8];
            let request = request(prompt(seed, length), seed, 1 + seed as u32 % 3, 12);
            let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
            let local = cluster.local(&request).await;
            assert_eq!(split.failure, None);
            assert_eq!(split.choices, local.choices, "seed {seed}");
            let bill = split.bill();
            assert_eq!(bill.prefill_node.as_ref(), Some(&cluster.prefills[0].id));
            assert_eq!(u64::from(bill.transfer_pages), (length as u64).div_ceil(u64::from(decode_pages)));
            assert_eq!(bill.transfer_bytes, cluster.token_bytes() * length as u64);
        }
        cluster.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_candidates_the_decode_node_prefills() {
    let cluster = Sandbox::start(Settings::default()).await;
    let request = request(prompt(1, 100), 1, 2, 10);
    let local = answer(&cluster.decode, open(&request, Vec::new())).await;
    assert_eq!(local.choices, cluster.local(&request).await.choices);
    assert_eq!((local.bill().prefill_node.as_ref(), local.bill().transfer_bytes), (None, 0));
    assert_eq!((local.cached_tokens, local.bill().cached_tokens), (Some(0), 0));
    // Once more: 96 tokens are six full pages.
    let again = answer(&cluster.decode, open(&request, Vec::new())).await;
    assert_eq!(again.choices, local.choices);
    assert_eq!((again.cached_tokens, again.bill().cached_tokens), (Some(96), 96));
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_decode_node_has_cached_is_not_sent() {
    let cluster = Sandbox::start(Settings::default()).await;
    let first = request(prompt(7, 80), 7, 1, 4);
    answer(&cluster.decode, open(&first, cluster.candidates())).await;
    // The next turn of a conversation: everything before, and more.
    let mut longer = first.tokens.clone();
    longer.extend(prompt(8, 60));
    let second = request(longer, 9, 1, 4);
    let split = answer(&cluster.decode, open(&second, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&second).await.choices);
    assert_eq!(split.cached_tokens, Some(80));
    assert_eq!(split.bill().transfer_pages, 4);
    assert_eq!(split.bill().transfer_bytes, cluster.token_bytes() * 60);
    // A prompt that is cached to its last token is still prefilled: its last page comes again.
    let whole = request(first.tokens, 11, 1, 4);
    let split = answer(&cluster.decode, open(&whole, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&whole).await.choices);
    assert_eq!((split.cached_tokens, split.bill().transfer_pages), (Some(64), 1));
    // Another tenant finds nothing.
    let other = baton_protocol::Request { tenant: "other".to_owned(), ..whole };
    let split = answer(&cluster.decode, open(&other, cluster.candidates())).await;
    assert_eq!((split.cached_tokens, split.bill().transfer_pages), (Some(0), 5));
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_that_end_with_their_first_token_need_no_kv() {
    let cluster = Sandbox::start(Settings::default()).await;
    let one_token = request(prompt(3, 200), 3, 3, 1);
    let split = answer(&cluster.decode, open(&one_token, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&one_token).await.choices);
    assert_eq!(split.ends(), [Some(Length); 3]);
    assert_eq!(split.bill().prefill_node.as_ref(), Some(&cluster.prefills[0].id));
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_ends_a_choice_at_any_place_also_the_first() {
    let cluster = Sandbox::start(Settings::default()).await;
    let plain = request(prompt(5, 70), 5, 3, 8);
    let tokens: Vec<Vec<u32>> =
        cluster.local(&plain).await.choices.into_iter().map(|choice| choice.tokens).collect();
    for place in 0..4 {
        for choice in &tokens {
            let mut request = plain.clone();
            request.stop.token_ids = vec![choice[place]];
            let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
            let local = cluster.local(&request).await;
            assert_eq!(split.choices, local.choices);
            assert!(split.ends().contains(&Some(Stop)));
        }
    }
    // All three at once, before any token.
    let mut request = plain;
    request.stop.token_ids = tokens.iter().map(|choice| choice[0]).collect();
    let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!((split.tokens(), split.ends()), (vec![[].as_slice(); 3], vec![Some(Stop); 3]));
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_where_the_context_does() {
    let settings = Settings { context_tokens: 100, ..Settings::default() };
    let cluster = Sandbox::start(settings).await;
    for length in 96..=99 {
        let request = request(prompt(length as u64, length), 1, 2, 50);
        let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!(split.choices, cluster.local(&request).await.choices, "{length} tokens of prompt");
        assert_eq!(split.ends(), [Some(Length); 2]);
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_that_the_reader_stops_ends_and_the_others_go_on() {
    // Slow and long: no choice ends by itself.
    let mock = MockConfig { decode_us_per_sequence: 1_000, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    for is_early in [true, false] {
        let request = request(prompt(6, 90), 6, 3, 4000);
        let mut call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
        // Early: while the handoff may still be running.
        call.until(|answer| is_early || answer.choices[1].tokens.len() >= 2).await;
        call.stop(1).await;
        call.until(|answer| answer.choices[1].end.is_some()).await;
        let before = call.answer.choices[0].tokens.len();
        call.until(|answer| answer.choices[0].tokens.len() >= before + 3).await;
        call.stop(0).await;
        call.stop(2).await;
        let split = call.finish().await;
        assert_eq!(split.ends(), [Some(Stop); 3]);
        for (index, choice) in (0..).zip(&split.choices) {
            let expected = expected(&request.tokens, &request.sampling, index, choice.tokens.len());
            assert_eq!(choice.tokens, expected);
        }
        cluster.settles().await;
    }
}

/// Also of a prompt whose pages are here already, and of one that fills many messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_decode_node_computes_what_it_is_to_tell_of() {
    let cluster = Sandbox::start(Settings::default()).await;
    for (seed, length, from) in [(1, 100, 1), (1, 100, 1), (1, 100, 50), (2, 1300, 1)] {
        let mut request = request(prompt(seed, length), seed, 2, 8);
        answer(&cluster.decode, open(&request, cluster.candidates())).await;
        request.prompt_logprobs = Some(PromptLogprobs { from, top: 3 });
        let told = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!(told.failure, None);
        assert_eq!(told.prompt, expected_prompt(&request.tokens, from as usize, 3));
        assert_eq!(told.choices, cluster.local(&request).await.choices);
        let cached = (from - 1) / 16 * 16;
        assert_eq!((told.cached_tokens, told.bill().cached_tokens), (Some(cached), cached));
        assert_eq!(told.bill().prefill_node, None);
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_has_no_tokens_and_an_end() {
    let cluster = Sandbox::start(Settings::default()).await;
    for pooling in [Pooling::Mean, Pooling::Last, Pooling::Mean] {
        let mut request = request(prompt(5, 90), 5, 1, 1);
        request.embedding = Some(pooling);
        let made = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!((made.failure.as_ref(), made.ends()), (None, vec![Some(Stop)]));
        assert_eq!(made.tokens(), [[0; 0]]);
        let expected = expected_embedding(&request.tokens, pooling);
        let found = made.embedding.as_ref().unwrap();
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
        assert_eq!(made.bill().prefill_node, None);
    }
    cluster.settles().await;
}
