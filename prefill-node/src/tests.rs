use std::collections::BTreeSet;

use baton_engine::{
    Engine, EngineConfig, EngineWorker,
    backend::mock::{EOS_TOKEN, MockBackend, MockConfig, VOCAB_TOKENS, expected},
    kv::KvPool,
};
use baton_kv_transfer::{HandoffAsk, LocalNode, TransferConfig};
use baton_protocol::{ErrorCode, HandoffId, HeadShare, Incarnation, RequestId, Sampling, Stop};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::mpsc::Receiver;

use super::*;

const LAYERS: u32 = 4;
const PAGE_TOKENS: u32 = 4;

fn room(prefill_us_per_token: u64, config: &PrefillConfig) -> (EngineWorker, EngineHandle, Arc<PrefillNode>) {
    let mock = MockConfig { layers: LAYERS, prefill_us_per_token, ..MockConfig::default() };
    let mut engine = EngineConfig::new(64, 1024);
    engine.eos_tokens = vec![EOS_TOKEN];
    engine.scheduler.max_batch_tokens = 8;
    let (worker, handle) =
        EngineWorker::start(Engine::new(Box::new(MockBackend::new(mock, PAGE_TOKENS)), engine).unwrap());
    let local = LocalNode {
        cluster: "test".to_owned(),
        node: "prefill-1".into(),
        incarnation: Incarnation(1),
        control_addr: "127.0.0.1:1".to_owned(),
        model_fingerprint: "mock".to_owned(),
        kv: handle.pool().shape().clone(),
        trust: Default::default(),
        heads: HeadShare::whole(handle.pool().shape().kv_heads),
    };
    let sessions = Arc::new(Sessions::new(local, TransferConfig::default()).unwrap());
    let node = PrefillNode::new(handle.clone(), sessions, config, None);
    (worker, handle, node)
}

fn job(tokens: usize, sample: &[u32]) -> PrefillJob {
    let request = Request {
        id: RequestId(tokens as u128),
        model: "mock".to_owned(),
        tenant: "tenant".to_owned(),
        tokens: (0..tokens as u32).map(|i| 32 + i % 95).collect(),
        sampling: Sampling { seed: 9, ..Sampling::default() },
        stop: Stop { max_tokens: 8, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
        choices: 3,
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: Duration::from_secs(60),
    };
    let id = HandoffId { request: request.id, attempt: 0, leg: 0 };
    let (prompt_tokens, deadline) = (tokens as u32, request.deadline);
    HandoffAsk {
        id,
        request,
        prompt_tokens,
        have: 0,
        sample: sample.to_vec(),
        deadline,
        from_cache: false,
        holder: None,
    }
}

/// Everything up to the end.
async fn all(mut progress: Receiver<Progress>) -> Vec<Progress> {
    let mut all = Vec::new();
    while let Some(one) = progress.recv().await {
        all.push(one);
    }
    all
}

async fn until_idle(pool: &KvPool) {
    let idle = async {
        while !pool.counts().is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), idle).await.is_ok(), "{:?}", pool.counts());
    pool.check_integrity().unwrap();
}

#[tokio::test]
async fn a_prompt_is_reported_whole_and_its_pages_stay_with_the_source() {
    let (_worker, engine, node) = room(0, &PrefillConfig::default());
    let (job, (sender, progress)) = (job(30, &[0, 2]), mpsc::channel(64));
    let prompt = job.request.tokens.clone();
    let _guard = node.start(job, sender).unwrap();
    let mut progress = all(progress).await.into_iter();
    let Some(Progress::Started { cached_tokens: 0, source, .. }) = progress.next() else {
        panic!("not started")
    };
    let mut computed = BTreeSet::new();
    let mut sampled = Vec::new();
    let mut is_done = false;
    for one in progress {
        assert!(!is_done);
        match one {
            Progress::Computed { layers, tokens } => {
                let cells = layers.flat_map(|layer| tokens.clone().map(move |token| (layer, token)));
                cells.for_each(|cell| assert!(computed.insert(cell), "{cell:?} twice"));
            }
            Progress::Sampled { tokens, .. } => sampled.push(tokens),
            Progress::Done => is_done = true,
            Progress::Started { .. } | Progress::Failed(_) => panic!("started twice, or failed"),
        }
    }
    assert!(is_done);
    assert_eq!(computed.len(), 30 * LAYERS as usize);
    let [sampled] = sampled.as_slice() else { panic!("{sampled:?}") };
    let sampling = Sampling { seed: 9, ..Sampling::default() };
    for (token, choice) in sampled.iter().zip([0, 2]) {
        assert_eq!((token.choice, token.position), (choice, 0));
        assert_eq!(vec![token.id], expected(&prompt, &sampling, choice, 1));
    }
    assert_eq!(sampled.len(), 2);
    // The engine is done; the pages are still pinned for whoever sends them.
    assert_eq!(engine.pool().counts().sending, 8);
    drop(source);
    until_idle(engine.pool()).await;
    assert_eq!(engine.pool().counts().cached, 7);
}

#[tokio::test]
async fn a_choice_that_draws_a_stop_token_is_absent() {
    let (_worker, _engine, node) = room(0, &PrefillConfig::default());
    let mut job = job(10, &[0, 1, 2]);
    let sampling = job.request.sampling.clone();
    let stop = expected(&job.request.tokens, &sampling, 1, 1);
    let left = (0..3).filter(|choice| expected(&job.request.tokens, &sampling, *choice, 1) != stop);
    let left: Vec<u32> = left.collect();
    job.request.stop.token_ids = stop;
    let (sender, progress) = mpsc::channel(64);
    let _guard = node.start(job, sender).unwrap();
    let choices = |progress: &Progress| match progress {
        Progress::Sampled { tokens, .. } => Some(tokens.iter().map(|token| token.choice).collect::<Vec<_>>()),
        _ => None,
    };
    assert_eq!(all(progress).await.iter().find_map(choices), Some(left));
}

#[tokio::test]
async fn dropping_the_guard_cancels_and_drain_waits_for_that() {
    let (_worker, engine, node) = room(5_000, &PrefillConfig { max_handoffs: 1 });
    let (sender, mut progress) = mpsc::channel(64);
    let guard = node.start(job(200, &[0]), sender).unwrap();
    let Some(Progress::Started { source, .. }) = progress.recv().await else { panic!("not started") };
    // One at a time is all this node takes.
    let refused = node.start(job(5, &[0]), mpsc::channel(64).0).err().unwrap();
    assert_eq!(refused.reason, "too many prompts");
    {
        let drain = node.drain();
        tokio::pin!(drain);
        tokio::select! {
            biased;
            () = &mut drain => panic!("drained while a prompt runs"),
            () = std::future::ready(()) => {}
        }
        let refused = node.start(job(5, &[0]), mpsc::channel(64).0).err().unwrap();
        assert_eq!(refused.reason, "the node is draining");
        drop((guard, source));
        drain.await;
    }
    until_idle(engine.pool()).await;
    assert!(all(progress).await.iter().all(|progress| !matches!(progress, Progress::Done)));
    node.set_intake(Intake::Open);
    let (sender, progress) = mpsc::channel(64);
    let _guard = node.start(job(5, &[0]), sender).unwrap();
    assert!(matches!(all(progress).await.last(), Some(Progress::Done)));
}

#[tokio::test]
async fn what_can_never_run_fails_and_everything_is_counted() {
    let (_worker, engine, node) = room(0, &PrefillConfig::default());
    let mut wrong = job(10, &[0]);
    wrong.request.tokens[4] = VOCAB_TOKENS as u32;
    let (sender, progress) = mpsc::channel(64);
    let _guard = node.start(wrong, sender).unwrap();
    let failed = all(progress).await;
    let [Progress::Failed(failure)] = failed.as_slice() else { panic!("{} reports", failed.len()) };
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
    let (sender, progress) = mpsc::channel(64);
    let _guard = node.start(job(10, &[]), sender).unwrap();
    all(progress).await;
    node.drain().await;
    assert!(node.start(job(5, &[0]), mpsc::channel(64).0).is_err());
    let (mut registry, mut text) = (Registry::default(), String::new());
    node.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    for line in [
        "prefill_handoffs_refused_total{reason=\"draining\"} 1",
        "prefill_handoffs_ended_total{outcome=\"done\"} 1",
        "prefill_computed_tokens_total 10",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    until_idle(engine.pool()).await;
}

#[tokio::test]
async fn a_prompt_of_before_goes_on_when_the_role_is_gone() {
    let (_worker, engine, node) = room(5_000, &PrefillConfig::default());
    let (sender, mut progress) = mpsc::channel(64);
    let guard = node.start(job(40, &[0]), sender).unwrap();
    let Some(Progress::Started { source, .. }) = progress.recv().await else { panic!("not started") };
    node.set_intake(Intake::Moved);
    let refused = node.start(job(5, &[0]), mpsc::channel(64).0).err().unwrap();
    assert_eq!((refused.reason.as_str(), node.prompts()), ("the node has another role", 1));
    assert!(matches!(all(progress).await.last(), Some(Progress::Done)));
    drop((guard, source));
    until_idle(engine.pool()).await;
    // What it computed stays in the cache for its next role.
    assert!(engine.pool().counts().cached > 0);
}
