//! Asks the nodes themselves, as a coordinator asks them: what their first
//! tokens take is not what stands in front of them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use baton_protocol::{
    Event, Request, RequestId, Role, Sampling, Stop,
    wire::{self, GenerateUp, decode_client::DecodeClient, generate_up::Message},
};
use baton_trust::Trust;
use futures::{StreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::transport::Channel;

use super::{EVEN, PROMPT};

/// Connections to them.
pub(super) struct Nodes(Vec<DecodeClient<Channel>>);

/// Tokens that every vocabulary of some size has, control tokens left out.
const COMMON: std::ops::Range<u32> = 100..30_000;

// === impl Nodes ===

impl Nodes {
    /// Nodes at these addresses.
    pub(super) async fn connect(addrs: impl Iterator<Item = &str>) -> Result<Self> {
        let (trust, roles, mut nodes) = (Trust::none(), BTreeSet::from([Role::Decode]), Vec::new());
        for addr in addrs {
            nodes.push(DecodeClient::new(trust.callee(addr, &roles)?.connect().await?));
        }
        Ok(Self(nodes))
    }

    /// Seconds to the first token of so many prompts, which come evenly, to one node after the other.
    pub(super) async fn first_tokens(&self, prompts: usize) -> Result<Vec<f64>> {
        let (mut asked, mut seconds, began) = (JoinSet::new(), Vec::with_capacity(prompts), Instant::now());
        for (number, node) in (0..prompts).zip(self.0.iter().cycle()) {
            sleep_until(began + Duration::from_secs_f64(number as f64 / EVEN)).await;
            asked.spawn(first_token(node.clone()));
        }
        while let Some(answered) = asked.join_next().await {
            seconds.push(answered??);
        }
        Ok(seconds)
    }
}

async fn first_token(mut node: DecodeClient<Channel>) -> Result<f64> {
    let open = GenerateUp { message: Some(Message::Open(open())) };
    let sent = Instant::now();
    let mut down = node.generate(stream::iter([open]).chain(stream::pending())).await?.into_inner();
    let mut first = None;
    while let Some(message) = down.message().await? {
        match Event::try_from(message)? {
            Event::Token(_) => first = first.or(Some(sent.elapsed())),
            Event::Failed(failure) => anyhow::bail!("a node failed a prompt: {}", failure.message),
            _ => {}
        }
    }
    Ok(first.context("a node gave no token")?.as_secs_f64())
}

/// An attempt at a prompt that nobody asked before, and one token behind it.
fn open() -> wire::Open {
    let request = Request {
        id: RequestId(fastrand::u128(..)),
        model: String::new(),
        tenant: String::new(),
        tokens: (0..PROMPT).map(|_| fastrand::u32(COMMON)).collect(),
        sampling: Sampling::greedy(),
        stop: Stop { max_tokens: 1, min_tokens: 0, ignore_eos: true, token_ids: Vec::new() },
        choices: 1,
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: Duration::from_secs(60),
    };
    wire::Open { request: Some(wire::Request::from(&request)), ..wire::Open::default() }
}
