//! An attempt that begins with a journal gives the answer that one without would have given.

use baton_protocol::{Request, wire::Open};

use crate::{
    call::{Answer, answer, open, request},
    sandbox::{Sandbox, Settings, prompt},
};

/// A second attempt, of which the client has the first `known[i]` tokens of
/// choice `i`; one more than there are is its end too.
fn resumed(cluster: &Sandbox, request: &Request, whole: &Answer, known: &[usize]) -> Open {
    Open { attempt: 1, journal: whole.journal(known), ..open(request, cluster.candidates()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_choice_can_be_resumed_at_every_token() {
    let cluster = Sandbox::start(Settings::default()).await;
    let mut request = request(prompt(21, 45), 21, 1, 20);
    request.sampling.presence_penalty = 0.7;
    request.sampling.repetition_penalty = 1.3;
    let whole = cluster.local(&request).await;
    for known in 0..=whole.choices[0].tokens.len() {
        let again = answer(&cluster.decode, resumed(&cluster, &request, &whole, &[known])).await;
        assert_eq!(again.tokens(), whole.tokens(), "resumed after {known} tokens");
        assert_eq!(again.ends(), whole.ends());
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_can_be_resumed_at_different_places_and_some_have_ended() {
    let cluster = Sandbox::start(Settings::default()).await;
    let request = request(prompt(22, 50), 22, 3, 10);
    let whole = cluster.local(&request).await;
    // 11 is the end of a choice, which the client has too.
    let places = [[0, 0, 0], [0, 3, 9], [11, 4, 4], [11, 11, 1], [10, 10, 2], [5, 11, 0], [10, 10, 10]];
    for known in places {
        let again = answer(&cluster.decode, resumed(&cluster, &request, &whole, &known)).await;
        assert_eq!(again.failure, None);
        assert_eq!(again.tokens(), whole.tokens(), "resumed after {known:?}");
        assert!(again.ends().iter().all(Option::is_some));
    }
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_that_agree_so_far_are_prefilled_together() {
    let cluster = Sandbox::start(Settings::default()).await;
    // Greedy: all choices are equal, so their journals have everything in common.
    let mut request = request(prompt(23, 30), 23, 3, 40);
    request.sampling.temperature = 0.0;
    let whole = cluster.local(&request).await;
    let again = answer(&cluster.decode, resumed(&cluster, &request, &whole, &[35, 34, 35])).await;
    assert_eq!(again.tokens(), whole.tokens());
    // 30 of the prompt and 34 in common are four pages.
    assert_eq!(again.bill().transfer_pages, 4);
    cluster.settles().await;
}
