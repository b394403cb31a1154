//! Prefill nodes that die, frames that do not arrive, callers that leave.

use std::{sync::Arc, time::Duration};

use baton_engine::backend::mock::MockConfig;
use baton_kv_transfer::{FaultsConfig, HandoffEvent, Landing, Returned};
use baton_protocol::{
    ErrorCode, HandoffId, KvSink,
    wire::{Open, PrefillCandidate},
};

use crate::{
    call::{Call, PATIENCE, answer, open, request},
    sandbox::{Sandbox, Settings, prompt},
};

/// The first prefill node's data path breaks after so many frames; four frames are 64 tokens. What
/// was sent last may never be read.
fn cut_after(frames: u64) -> Settings {
    let faults = FaultsConfig { cut_after_frames: Some(frames), ..FaultsConfig::default() };
    Settings { prefills: 2, faults_of_first: Some(faults), ..Settings::default() }
}

/// The same, with frames so slow that the first token is long there when it breaks.
fn cut_after_first_token(frames: u64) -> Settings {
    let mut settings = cut_after(frames);
    let faults = settings.faults_of_first.as_mut().unwrap();
    (faults.delay_probability, faults.max_delay_ms) = (1.0, 30);
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_the_next_prefill_node_sends_only_the_rest() {
    for settings in [cut_after(10), cut_after_first_token(10)] {
        let cluster = Sandbox::start(settings).await;
        for choices in [1, 3] {
            let request = request(prompt(u64::from(choices), 400), 31, choices, 9);
            let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
            assert_eq!(split.choices, cluster.local(&request).await.choices);
            let bill = split.bill();
            assert_eq!(bill.prefill_node.as_ref(), Some(&cluster.prefills[1].id));
            assert_eq!(split.computing, [Some("prefill-1".to_owned()), Some("prefill-2".to_owned())]);
            // With a window of four frames, six of the ten have landed: 64 whole tokens at least.
            assert!(bill.cached_tokens >= 64, "{bill:?}");
            assert_eq!(bill.transfer_bytes, cluster.token_bytes() * u64::from(400 - bill.cached_tokens));
        }
        // Who was asked first and broke off has handed nothing over.
        let reports = cluster.decode.sessions().reports();
        let by: Vec<_> = reports.iter().filter(|report| report.handoffs > 0).collect();
        assert!(
            matches!(*by, [only] if only.peer == cluster.prefills[1].id && only.handoffs == 2),
            "{reports:?}"
        );
        cluster.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_loss_a_short_rest_is_computed_here() {
    for settings in [cut_after(10), cut_after_first_token(10)] {
        let mut settings = settings;
        settings.decode.local_finish_below_tokens = 350;
        let cluster = Sandbox::start(settings).await;
        for choices in [1, 3] {
            let request = request(prompt(u64::from(choices), 400), 32, choices, 9);
            let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
            assert_eq!(split.choices, cluster.local(&request).await.choices);
            assert_eq!(split.bill().prefill_node, None);
            assert_eq!(split.computing, [Some("prefill-1".to_owned()), None]);
            assert!(split.bill().cached_tokens >= 64);
        }
        cluster.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_two_losses_nobody_else_computes_it() {
    let faults = FaultsConfig { cut_after_frames: Some(10), ..FaultsConfig::default() };
    let mut settings = Settings { prefills: 3, ..Settings::default() };
    settings.transfer.faults = Some(faults);
    // It breaks off long before the first token.
    settings.mock.prefill_us_per_token = 2_000;
    let cluster = Sandbox::start(settings).await;
    let request = request(prompt(1, 700), 31, 2, 9);
    let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    let failure = split.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::PeerLost, "{failure}");
    assert_eq!(split.computing, ["prefill-1", "prefill-2"].map(|node| Some(node.to_owned())));
    assert_eq!(split.broke_off, ["prefill-1", "prefill-2"]);
    cluster.settles().await;
    // After losses before, one is enough.
    let suspect = Open { may_lose: 1, attempt: 1, ..open(&request, cluster.candidates()) };
    let split = answer(&cluster.decode, suspect).await;
    assert_eq!(
        (split.broke_off.as_slice(), split.failure.unwrap().code),
        (&["prefill-1".to_owned()][..], ErrorCode::PeerLost)
    );
    // What came is kept: a later attempt goes on behind it.
    let local = Open { attempt: 2, ..open(&request, Vec::new()) };
    let split = answer(&cluster.decode, local).await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert!(split.cached_tokens.unwrap() >= 64 && split.computing == [None], "{split:?}");
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_node_may_die_at_any_time() {
    let mock = MockConfig { prefill_us_per_token: 100, ..MockConfig::default() };
    for (round, delay_ms) in [0, 3, 8, 15, 25, 40].into_iter().enumerate() {
        let settings = Settings { mock: mock.clone(), ..Settings::default() };
        let mut cluster = Sandbox::start(settings).await;
        let request = request(prompt(round as u64, 300), round as u64, 2, 12);
        let call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
        let (split, ()) = tokio::join!(call.finish(), async {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            cluster.prefills[0].kill().await;
        });
        assert_eq!(split.failure, None);
        assert_eq!(split.choices, cluster.local(&request).await.choices, "killed after {delay_ms} ms");
        cluster.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_out_of_reach_are_passed_over() {
    let cluster = Sandbox::start(Settings::default()).await;
    let alive = cluster.prefills[0].candidate();
    let nobody =
        PrefillCandidate { node: "gone".to_owned(), control_addr: "127.0.0.1:1".to_owned(), incarnation: 1 };
    let outside = PrefillCandidate { control_addr: "192.0.2.1:1".to_owned(), ..nobody.clone() };
    let restarted = PrefillCandidate { node: "before".to_owned(), incarnation: 2, ..alive.clone() };
    let request = request(prompt(33, 60), 33, 2, 6);
    let candidates = vec![nobody.clone(), outside, restarted, alive];
    let split = answer(&cluster.decode, open(&request, candidates)).await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert_eq!(split.bill().prefill_node.as_ref(), Some(&cluster.prefills[0].id));
    // With nobody else, the decode node does it itself.
    let split = answer(&cluster.decode, open(&request, vec![nobody])).await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert_eq!(split.bill().prefill_node, None);
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_lost_or_damaged_are_repaired() {
    let mut settings = Settings::default();
    settings.transfer.max_nacks = 20;
    settings.transfer.faults = Some(FaultsConfig {
        seed: 5,
        drop_probability: 0.1,
        corrupt_probability: 0.1,
        reorder_probability: 0.1,
        delay_probability: 0.1,
        max_delay_ms: 3,
        ..FaultsConfig::default()
    });
    let cluster = Sandbox::start(settings).await;
    let mut repaired = 0;
    for seed in 0..10 {
        let request = request(prompt(seed, 250), seed, 2, 6);
        let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!(split.choices, cluster.local(&request).await.choices, "seed {seed}");
        assert_eq!(split.bill().prefill_node.as_ref(), Some(&cluster.prefills[0].id));
        repaired += split.bill().repaired_frames;
    }
    assert!(repaired > 0);
    cluster.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_leave_at_any_time() {
    let mock = MockConfig { prefill_us_per_token: 50, decode_us_per_sequence: 200, ..MockConfig::default() };
    let cluster = Sandbox::start(Settings { mock, ..Settings::default() }).await;
    for round in 0..40 {
        let request = request(prompt(round, 30 + 10 * round as usize), round, 1 + round as u32 % 3, 30);
        let mut call = Call::open(&cluster.decode, open(&request, cluster.candidates())).await;
        // Some leave before anything, some in the handoff, some while tokens come.
        let leave = tokio::time::sleep(Duration::from_millis(round * 37 % 50));
        tokio::pin!(leave);
        loop {
            tokio::select! {
                () = &mut leave => break,
                event = call.next() => if event.is_none() { break },
            }
        }
    }
    cluster.settles().await;
    // And the cluster is as good as new.
    let request = request(prompt(99, 100), 99, 2, 10);
    let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
    assert_eq!(split.choices, cluster.local(&request).await.choices);
    assert_eq!(cluster.decode.sessions().reports().len(), 1);
}

/// As [`cut_after`], where computing a token takes long and roads are measured.
fn cut_after_slow(frames: u64) -> Settings {
    let mut settings = cut_after(frames);
    settings.mock.prefill_us_per_token = 2_000;
    settings.transfer.probe_bytes = 4096;
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_loss_is_not_computed_twice() {
    for page_tokens in [8, 32] {
        let cluster =
            Sandbox::start(Settings { prefill_page_tokens: page_tokens, ..cut_after_slow(20) }).await;
        let second = &cluster.prefills[1];
        // How long a prompt takes there is known once it has computed some.
        for seed in 50..54 {
            answer(&cluster.decode, open(&request(prompt(seed, 100), seed, 1, 1), vec![second.candidate()]))
                .await;
        }
        let before = second.node.metrics().computed_tokens();
        let request = request(prompt(1, 600), 31, 2, 9);
        let split = answer(&cluster.decode, open(&request, cluster.candidates())).await;
        assert_eq!(split.choices, cluster.local(&request).await.choices);
        assert_eq!(split.bill().prefill_node.as_ref(), Some(&second.id));
        let rescued = second.node.metrics().rescued_tokens();
        assert!(rescued >= 128, "{rescued} of pages of {page_tokens}");
        assert_eq!(second.node.metrics().computed_tokens() - before, 600 - rescued);
        cluster.settles().await;
    }
}

/// Lets nothing in.
struct NoRoom;

impl Landing for NoRoom {
    fn bind(&mut self) -> Option<Arc<dyn KvSink>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decode_node_gives_only_what_it_offered() {
    let cluster = Sandbox::start(Settings::default()).await;
    let first = request(prompt(1, 200), 31, 1, 4);
    answer(&cluster.decode, open(&first, cluster.candidates())).await;
    let prefill = &cluster.prefills[0];
    let id = HandoffId { request: first.id, attempt: 0, leg: 0 };
    let kv = Returned {
        id,
        tenant: first.tenant.clone(),
        tokens: first.tokens,
        holder: cluster.decode.sessions().holder(),
    };
    let landing = Box::new(NoRoom);
    let mut handoff = prefill.sessions.handoff(&kv.holder, kv.ask(0, 192, PATIENCE), landing).await.unwrap();
    let end = loop {
        match handoff.next().await.unwrap() {
            HandoffEvent::Lost { reason, .. } => break reason,
            HandoffEvent::Started { .. } => panic!("given without an offer"),
            _ => {}
        }
    };
    assert!(end.message.contains("no KV is handed back here"), "{end:?}");
    cluster.settles().await;
}
