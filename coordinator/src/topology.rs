//! How KV comes from each prefill node to each decode node, and whether fast
//! enough: a road that carries KV as fast as prompts make it shows only the
//! last group of layers of a transfer.

use std::{cmp::Reverse, ops::Range, sync::Arc, time::Duration};

use baton_protocol::{
    HandoffId, NodeId, NodeInfo, Role, StepCost,
    wire::{HandoffUnderWay, KvPath},
};

use crate::fleet::{Health, Node};

/// From one prefill node to one decode node.
#[derive(Clone, Debug, PartialEq)]
pub struct Road {
    /// Model of both.
    pub model: String,
    /// Whose KV it is.
    pub prefill: NodeId,
    /// Where it goes.
    pub decode: NodeId,
    /// Handoffs that came whole since the session was opened, of all coordinators.
    pub handoffs: u64,
    /// Transport in use; none: nothing has come this way yet.
    pub transport: Option<String>,
    /// Which transport was wanted, and why it is not in use.
    pub fallback: Option<String>,
    /// As measured.
    pub bytes_per_second: Option<f64>,
    /// KV that prompts make there when nothing else runs beside them.
    pub made_per_second: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// What a road does to time to first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is known: no handoff came this way, or the node has run no prompt.
    Unknown,
    /// Transfers are hidden behind prompts.
    Hidden,
    /// Prompts wait for the road.
    Exposed,
}

/// What a node says of itself.
struct End {
    info: Arc<NodeInfo>,
    prefill: Option<StepCost>,
    step_tokens: u64,
    paths: Arc<[KvPath]>,
}

/// A handoff on its way, as its decode node last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoffStatus {
    /// Whose KV it is.
    pub prefill: NodeId,
    /// Where it goes.
    pub decode: NodeId,
    /// Which, how far, and since when.
    pub handoff: HandoffId,
    /// `waiting`, `receiving` or `closing`.
    pub state: String,
    /// Since it was asked for.
    pub age: Duration,
    /// Tokens of which KV comes.
    pub tokens: Range<u32>,
    /// Bytes that have come.
    pub bytes: u64,
}

/// All handoffs on their way between nodes that are not lost, the oldest first.
pub(crate) fn handoffs(nodes: &[Arc<Node>]) -> Vec<HandoffStatus> {
    let mut all = Vec::new();
    for node in nodes.iter().filter(|node| node.health() != Health::Lost) {
        for path in node.kv_paths().iter() {
            let one = |under_way: &HandoffUnderWay| {
                Some(HandoffStatus {
                    prefill: NodeId(path.prefill_node.clone()),
                    decode: node.id().clone(),
                    handoff: under_way.id.clone()?.try_into().ok()?,
                    state: under_way.state.clone(),
                    age: Duration::from_millis(under_way.age_ms),
                    tokens: under_way.have..under_way.tokens,
                    bytes: under_way.bytes,
                })
            };
            all.extend(path.under_way.iter().filter_map(one));
        }
    }
    all.sort_by_key(|handoff| Reverse(handoff.age));
    all
}

/// All roads between nodes that are not lost, by name.
pub(crate) fn roads(nodes: &[Arc<Node>]) -> Vec<Road> {
    let end = |node: &Arc<Node>| {
        let load = node.load();
        End {
            info: node.info(),
            prefill: load.steps.prefill,
            step_tokens: load.step_prompt_tokens,
            paths: node.kv_paths(),
        }
    };
    let ends: Vec<_> = nodes.iter().filter(|node| node.health() != Health::Lost).map(end).collect();
    let of = |role| ends.iter().filter(move |end| end.info.roles.contains(&role));
    of(Role::Prefill).flat_map(|from| of(Role::Decode).filter_map(move |to| road(from, to))).collect()
}

/// None between nodes that hand nothing to each other.
fn road(from: &End, to: &End) -> Option<Road> {
    if from.info.id == to.info.id || !from.info.can_hand_off_to(&to.info) {
        return None;
    }
    let path = to.paths.iter().find(|path| path.prefill_node == from.info.id.0);
    let bytes_per_second = path.map(|path| path.bytes_per_second).filter(|rate| *rate > 0.0);
    let made_per_second = from.made_per_second();
    let verdict = match (bytes_per_second, made_per_second) {
        (Some(carried), Some(made)) if carried >= made => Verdict::Hidden,
        (Some(_), Some(_)) => Verdict::Exposed,
        _ => Verdict::Unknown,
    };
    Some(Road {
        model: from.info.model.clone(),
        prefill: from.info.id.clone(),
        decode: to.info.id.clone(),
        handoffs: path.map_or(0, |path| path.handoffs),
        transport: path.map(|path| path.transport.clone()),
        fallback: path.map(|path| path.fallback.clone()).filter(|why| !why.is_empty()),
        bytes_per_second,
        made_per_second,
        verdict,
    })
}

// === impl End ===

impl End {
    /// Bytes of KV a second while its steps are full of prompts, by their shortest contexts.
    fn made_per_second(&self) -> Option<f64> {
        let tokens = self.step_tokens as f64;
        let seconds = self.prefill?.seconds(1.0, tokens, 0.0);
        (tokens > 0.0 && seconds > 0.0).then(|| tokens / seconds * self.info.kv.token_bytes() as f64)
    }
}

// === impl Verdict ===

impl Verdict {
    /// Its name in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Hidden => "hidden",
            Self::Exposed => "exposed",
        }
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::{KvDtype, KvShape};

    use super::*;
    use crate::tests::node_info;

    /// 512 bytes of KV a token.
    fn end(name: &str, role: Role) -> End {
        let kv = KvShape { layers: 2, kv_heads: 1, head_dim: 32, dtype: KvDtype::F32, page_tokens: 16 };
        End {
            info: Arc::new(NodeInfo { kv, ..node_info(name, &[role]) }),
            prefill: Some(StepCost { base: 0.01, unit: 1e-4, context: 1.0 }),
            step_tokens: 100,
            paths: [].into(),
        }
    }

    fn path(rate: f64) -> KvPath {
        KvPath {
            prefill_node: "p".to_owned(),
            transport: "tcp".to_owned(),
            bytes_per_second: rate,
            fallback: "shm: other host".to_owned(),
            handoffs: 7,
            under_way: Vec::new(),
        }
    }

    #[test]
    fn a_road_is_exposed_when_prompts_make_more_than_it_carries() {
        let (from, mut to) = (end("p", Role::Prefill), end("d", Role::Decode));
        let unknown = road(&from, &to).unwrap();
        assert_eq!((unknown.verdict, unknown.transport, unknown.handoffs), (Verdict::Unknown, None, 0));
        // 100 tokens in 20 ms.
        let made = 5000.0 * 512.0;
        for (rate, verdict) in
            [(0.0, Verdict::Unknown), (made * 0.99, Verdict::Exposed), (made * 1.01, Verdict::Hidden)]
        {
            to.paths = [path(rate)].into();
            let road = road(&from, &to).unwrap();
            assert_eq!((road.verdict, road.handoffs), (verdict, 7), "{road:?}");
            assert!((road.made_per_second.unwrap() - made).abs() < 1.0);
            assert_eq!(road.fallback.as_deref(), Some("shm: other host"));
        }
    }

    #[test]
    fn nodes_that_hand_nothing_to_each_other_have_no_road() {
        let from = end("p", Role::Prefill);
        assert_eq!(road(&from, &from), None);
        let mut to = end("d", Role::Decode);
        to.info = Arc::new(NodeInfo { model_fingerprint: "other".to_owned(), ..(*to.info).clone() });
        assert_eq!(road(&from, &to), None);
    }
}
