//! What the admin API writes and reads, as `proto/admin.proto` has it: messages over gRPC, the
//! same as JSON over HTTP. And how it comes from the coordinator's own types.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use baton_coordinator::{
    self as own, BudgetClass, BudgetConfig, ClusterStatus, Load, NodeStatus, QueueStatus, RequestStatus,
    Stage, Verdict, balancer,
};
use baton_protocol::{NodeId, PageCounts, StepCost, wire};

#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
mod generated {
    tonic::include_proto!("baton.admin.v1");
}
pub use generated::*;

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn name(node: NodeId) -> String {
    node.0
}

impl From<&ClusterStatus> for Cluster {
    fn from(status: &ClusterStatus) -> Self {
        let mut nodes = BTreeMap::new();
        for node in &status.nodes {
            *nodes.entry(node.health.as_str().to_owned()).or_default() += 1;
        }
        let registry = if status.registry.connected { "connected" } else { "away" };
        Self { ready: status.ready, registry: registry.to_owned(), nodes, ..Self::default() }
    }
}

impl From<NodeStatus> for Node {
    fn from(node: NodeStatus) -> Self {
        let Load { running, waiting, waiting_prefill_tokens, running_context_tokens, .. } = node.load;
        let Load { step_prompt_tokens, left_over, steps, pages, .. } = node.load;
        Self {
            id: node.id.0,
            roles: node.roles.iter().map(ToString::to_string).collect(),
            epoch: node.epoch,
            incarnation: node.incarnation.0,
            health: node.health.as_str().to_owned(),
            slow: node.slow,
            announced: node.announced,
            model: node.model,
            control_addr: node.control_addr,
            in_flight: node.in_flight as u64,
            load: Some(NodeLoad {
                running,
                waiting,
                waiting_prefill_tokens,
                running_context_tokens,
                step_prompt_tokens,
                left_over,
            }),
            pages: Some(pages.into()),
            step_model: Some(StepModel {
                prefill: steps.prefill.map(Into::into),
                decode: steps.decode.map(Into::into),
            }),
            links: node.kv_paths.into_iter().map(Into::into).collect(),
            indexed_pages: node.indexed_pages,
        }
    }
}

impl From<PageCounts> for Pages {
    fn from(counts: PageCounts) -> Self {
        let PageCounts { free, cached, running, receiving, sending, quarantined, total, promised } = counts;
        Self { free, cached, running, receiving, sending, quarantined, total, promised }
    }
}

impl From<StepCost> for Cost {
    fn from(StepCost { base, unit, context }: StepCost) -> Self {
        Self { base, unit, context }
    }
}

impl From<wire::KvPath> for Link {
    fn from(path: wire::KvPath) -> Self {
        let wire::KvPath { prefill_node, transport, bytes_per_second, fallback, .. } = path;
        Self {
            from: prefill_node,
            transport,
            bytes_per_second: (bytes_per_second > 0.0).then_some(bytes_per_second),
            fallback: (!fallback.is_empty()).then_some(fallback),
        }
    }
}

impl From<RequestStatus> for Request {
    fn from(request: RequestStatus) -> Self {
        let stage = match request.stage {
            Stage::Queued => "queued",
            Stage::Routed => "routed",
            Stage::Prefill => "prefill",
            Stage::Decode => "decode",
        };
        Self {
            id: request.id.to_string(),
            tenant: request.tenant,
            model: request.model,
            stage: stage.to_owned(),
            priority: request.priority,
            age_ms: ms(request.age),
            left_ms: ms(request.left),
            ttft_ms: ms(request.budgets.ttft),
            itl_ms: ms(request.budgets.itl),
            prompt_tokens: request.prompt_tokens as u64,
            tokens: request.tokens,
            attempts: request.attempts,
            decode: request.decode.map(name),
            prefill: request.prefill.map(name),
        }
    }
}

impl From<(String, balancer::Advice)> for Advice {
    fn from((model, advice): (String, balancer::Advice)) -> Self {
        let balancer::Advice { demand, now, outlook, wanted, gains, by } = advice;
        Self {
            model,
            requests_per_second: demand.requests,
            prompt_tokens: demand.prompt(),
            computed_tokens: demand.computed * demand.prompt(),
            answer_tokens: demand.answers,
            prefill: now.prefill as u64,
            decode: now.decode as u64,
            ttft_attained: outlook.ttft,
            itl_attained: outlook.itl,
            pressure: outlook.pressure,
            wanted_prefill: wanted.prefill as u64,
            wanted_decode: wanted.decode as u64,
            gains: gains.map(|role| role.to_string()),
            by: by as u64,
        }
    }
}

impl From<(String, QueueStatus)> for Queue {
    fn from((model, queue): (String, QueueStatus)) -> Self {
        let QueueStatus { running, waiting, by_tenant, interval } = queue;
        Self {
            model,
            running: running as u64,
            waiting: waiting as u64,
            waiting_by_tenant: by_tenant
                .into_iter()
                .map(|(tenant, waiting)| (tenant, waiting as u64))
                .collect(),
            interval_ms: interval.map(ms),
        }
    }
}

impl From<own::Limits> for Limits {
    fn from(limits: own::Limits) -> Self {
        let own::Limits { revision, max_running, max_waiting, max_wait_ms, budgets } = limits;
        let BudgetConfig { ttft_ms, itl_ms, kept_by_nodes, classes } = budgets;
        Self {
            revision,
            max_running: max_running as u64,
            max_waiting: max_waiting as u64,
            max_wait_ms,
            ttft_ms,
            itl_ms,
            kept_by_nodes,
            classes: classes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Limits> for own::Limits {
    fn from(view: Limits) -> Self {
        // What no machine can count is out of range in any case.
        let count = |wanted: u64| usize::try_from(wanted).unwrap_or(usize::MAX);
        let Limits { revision, max_wait_ms, ttft_ms, itl_ms, kept_by_nodes, .. } = view;
        let classes = view.classes.into_iter().map(Into::into).collect();
        Self {
            revision,
            max_running: count(view.max_running),
            max_waiting: count(view.max_waiting),
            max_wait_ms,
            budgets: BudgetConfig { ttft_ms, itl_ms, kept_by_nodes, classes },
        }
    }
}

impl From<BudgetClass> for Class {
    fn from(class: BudgetClass) -> Self {
        let BudgetClass { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes } = class;
        Self { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes }
    }
}

impl From<Class> for BudgetClass {
    fn from(class: Class) -> Self {
        let Class { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes } = class;
        Self { model, min_priority, max_priority, ttft_ms, itl_ms, kept_by_nodes }
    }
}

impl From<own::Road> for Road {
    fn from(road: own::Road) -> Self {
        Self {
            advice: advice(&road),
            model: road.model,
            prefill: road.prefill.0,
            decode: road.decode.0,
            transport: road.transport,
            bytes_per_second: road.bytes_per_second,
            made_per_second: road.made_per_second,
            verdict: road.verdict.as_str().to_owned(),
            fallback: road.fallback,
            handoffs: road.handoffs,
        }
    }
}

impl From<own::HandoffStatus> for Handoff {
    fn from(handoff: own::HandoffStatus) -> Self {
        let own::HandoffStatus { prefill, decode, handoff: id, state, age, tokens, bytes } = handoff;
        Self {
            request: id.request.to_string(),
            attempt: id.attempt,
            leg: id.leg,
            prefill: name(prefill),
            decode: name(decode),
            state,
            age_ms: ms(age),
            have: tokens.start,
            tokens: tokens.end,
            bytes,
        }
    }
}

/// What to do about a road.
fn advice(road: &own::Road) -> Option<String> {
    let (carried, made) = (road.bytes_per_second?, road.made_per_second?);
    let share = 1e2 * (1.0 - carried / made);
    (road.verdict == Verdict::Exposed).then(|| {
        let transport = road.transport.as_deref().unwrap_or("the transport in use");
        let why = road.fallback.as_ref().map_or(String::new(), |why| format!(" (not {why})"));
        format!(
            "prompts make {:.0} MB/s of KV and {transport}{why} carries {:.0}: up to {share:.0} % of a long prompt's \
             transfer shows in its first token; give the pair a faster transport, or let the decode node run prompts \
             (coordinator.policy=predicted)",
            made / 1e6,
            carried / 1e6
        )
    })
}

impl From<own::Incident> for Incident {
    fn from(incident: own::Incident) -> Self {
        let own::Incident { kind, node, words, first, last, times } = incident;
        Self {
            kind: kind.as_str().to_owned(),
            node: node.map(name),
            words,
            first_ms: since_1970_ms(first),
            last_ms: since_1970_ms(last),
            times,
        }
    }
}

impl From<&own::Pace> for Pace {
    fn from(own::Pace { ttft, itl }: &own::Pace) -> Self {
        Self { ttft: Some(ttft.into()), itl: Some(itl.into()) }
    }
}

impl From<&own::Times> for Times {
    fn from(times: &own::Times) -> Self {
        Self { first_ms: ms(own::Times::FIRST), ratio: own::Times::RATIO, counts: times.counts() }
    }
}

pub(crate) fn since_1970_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
