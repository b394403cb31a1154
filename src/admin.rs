//! `baton admin`: the admin API for people.
//!
//! - `audit`: whether files of acts are whole
//! - `events`: roads and incidents as lines
//! - `top`: all of it live in a terminal

mod audit;
mod events;
mod top;

use std::io::{IsTerminal, stdout};

use anyhow::{Context, Result, bail, ensure};
use baton_admin::views::{
    Act, Advice, Class, Cluster, Flushed, Handoff, Incident, Limits, Node, PrefixIndex, Queue, Request, Road,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    args::{Admin, AdminKind},
    client,
    terminal::say,
};

/// Has an operator's key, where one is needed: others on this machine see arguments.
const KEY: &str = "BATON_ADMIN_KEY";

/// Whoever calls the admin API of a coordinator.
struct Operator {
    http: reqwest::Client,
    base: String,
}

/// Does what was asked and shows what came of it.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub async fn run(args: &Admin) -> Result<()> {
    if matches!(args.what, AdminKind::Top) && !args.json && stdout().is_terminal() {
        return top::run(args).await;
    }
    if let AdminKind::Audit { files, last } = &args.what
        && !files.is_empty()
    {
        return audit::run(files, last.as_deref(), args.json);
    }
    let answer = ask(&Operator::new(args)?, &args.what).await?;
    if args.json {
        say(serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    for line in lines(&args.what, answer)? {
        say(line);
    }
    Ok(())
}

async fn ask(operator: &Operator, what: &AdminKind) -> Result<Value> {
    let get = |path: &str| operator.get(path.to_owned());
    let call = |method, path, body| operator.call(method, path, body);
    match what {
        AdminKind::Top => get("cluster").await,
        AdminKind::Nodes => get("nodes").await,
        AdminKind::Node { id } => get(&format!("nodes/{id}")).await,
        AdminKind::Requests => get("requests").await,
        AdminKind::Queue => get("queue").await,
        AdminKind::PrefixIndex => get("prefix-index").await,
        AdminKind::Advice => get("advice").await,
        AdminKind::Topology => get("topology").await,
        AdminKind::Handoffs => get("handoffs").await,
        AdminKind::Incidents => get("incidents").await,
        AdminKind::Audit { .. } => get("audit").await,
        AdminKind::Flush => call(Method::POST, "flush".to_owned(), Value::Null).await,
        AdminKind::Drain { id, force } => {
            call(Method::POST, format!("nodes/{id}/drain"), json!({ "force": force })).await
        }
        AdminKind::Role { id, roles, force } => {
            call(Method::PUT, format!("nodes/{id}/roles"), json!({ "roles": roles, "force": force })).await
        }
        AdminKind::Undrain { id } => call(Method::POST, format!("nodes/{id}/undrain"), Value::Null).await,
        AdminKind::Cancel { id } => call(Method::DELETE, format!("requests/{id}"), Value::Null).await,
        AdminKind::Limits { set } => {
            let mut limits = get("limits").await?;
            if set.is_empty() {
                return Ok(limits);
            }
            change(&mut limits, set)?;
            call(Method::PUT, "limits".to_owned(), limits).await
        }
    }
}

/// Sets NAME=VALUE among limits that are there. The revision is the one that was read.
fn change(limits: &mut Value, set: &[String]) -> Result<()> {
    for assignment in set {
        let (name, value) =
            assignment.split_once('=').with_context(|| format!("{assignment:?} is not NAME=VALUE"))?;
        let is_one = name != "revision" && limits.get(name).is_some();
        ensure!(is_one, "there is no limit {name:?}");
        limits[name] = serde_json::from_str(value).with_context(|| format!("{assignment:?} has no value"))?;
    }
    Ok(())
}

// === impl Operator ===

impl Operator {
    fn new(args: &Admin) -> Result<Self> {
        let http = client::http(args.authority.file())?;
        Ok(Self { http, base: args.url.trim_end_matches('/').to_owned() })
    }

    async fn get(&self, path: String) -> Result<Value> {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn call(&self, method: Method, path: String, body: Value) -> Result<Value> {
        let url = format!("{}/admin/v1/{path}", self.base);
        let mut request = self.http.request(method, &url);
        if let Ok(key) = std::env::var(KEY) {
            request = request.bearer_auth(key);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| client::unheard(&url, error))?;
        let status = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("{url} is no admin API"))?;
        if !status.is_success() {
            bail!("{}", body["error"].as_str().unwrap_or("refused"));
        }
        Ok(body)
    }
}

/// The answer as lines of text.
fn lines(what: &AdminKind, answer: Value) -> Result<Vec<String>> {
    Ok(match what {
        AdminKind::Top => cluster(&serde_json::from_value(answer)?),
        AdminKind::Nodes => nodes(&serde_json::from_value::<Vec<Node>>(answer)?),
        AdminKind::Drain { .. } | AdminKind::Undrain { .. } | AdminKind::Role { .. } => {
            nodes(&[serde_json::from_value::<Node>(answer)?])
        }
        AdminKind::Requests | AdminKind::Cancel { .. } => {
            requests(&serde_json::from_value::<Vec<Request>>(answer)?)
        }
        AdminKind::Node { .. } => node(&serde_json::from_value(answer)?),
        AdminKind::Queue => queues(&serde_json::from_value::<Vec<Queue>>(answer)?),
        AdminKind::Limits { .. } => limits(&serde_json::from_value(answer)?),
        AdminKind::PrefixIndex => prefix_index(&serde_json::from_value(answer)?),
        AdminKind::Flush => flushed(serde_json::from_value(answer)?),
        AdminKind::Advice => advice(&serde_json::from_value::<Vec<Advice>>(answer)?),
        AdminKind::Handoffs => events::handoffs(&serde_json::from_value::<Vec<Handoff>>(answer)?),
        AdminKind::Topology => events::roads(&serde_json::from_value::<Vec<Road>>(answer)?),
        AdminKind::Audit { .. } => events::acts(&serde_json::from_value::<Vec<Act>>(answer)?),
        AdminKind::Incidents => events::incidents(&serde_json::from_value::<Vec<Incident>>(answer)?),
    })
}

fn cluster(cluster: &Cluster) -> Vec<String> {
    let nodes: Vec<_> = cluster.nodes.iter().map(|(health, count)| format!("{count} {health}")).collect();
    let words = if cluster.ready { "ready" } else { "not ready" };
    vec![format!("cluster {words}, registry {}, nodes: {}", cluster.registry, nodes.join(", "))]
}

fn nodes(nodes: &[Node]) -> Vec<String> {
    let head = format!(
        "{:<16} {:<16} {:<9} {:>5} {:>8} {:>8} {:>8} {:>13} {:>13}",
        "node", "roles", "health", "epoch", "running", "waiting", "prompts", "pages in use", "decode step"
    );
    let row = |node: &Node| {
        let (pages, load) = (node.pages.unwrap_or_default(), node.load.unwrap_or_default());
        let used = pages.total - pages.free - pages.cached;
        let step = node.step_model.and_then(|steps| steps.decode).map(|cost| {
            let (answers, context) = (f64::from(load.running.max(1)), load.running_context_tokens as f64);
            format!("{:.1} ms", 1e3 * (cost.base + cost.unit * answers + cost.context * context))
        });
        format!(
            "{:<16} {:<16} {:<9} {:>5} {:>8} {:>8} {:>8} {:>13} {:>13}",
            node.id,
            node.roles.join("+"),
            if node.slow { "slow" } else { &node.health },
            node.epoch,
            load.running,
            load.waiting,
            load.waiting_prefill_tokens,
            format!("{used}/{}", pages.total),
            step.unwrap_or_else(|| "not known".to_owned()),
        )
    };
    std::iter::once(head).chain(nodes.iter().map(row)).collect()
}

fn node(node: &Node) -> Vec<String> {
    let mut lines = nodes(std::slice::from_ref(node));
    let load = node.load.unwrap_or_default();
    if load.left_over > 0 {
        lines.push(format!("{} still run of a role that it no longer has", load.left_over));
    }
    lines.push(format!("model {} at {}, incarnation {:x}", node.model, node.control_addr, node.incarnation));
    let (pages, steps) = (node.pages.unwrap_or_default(), node.step_model.unwrap_or_default());
    lines.push(format!(
        "pages: {} free, {} cached ({} indexed), {} running, {} receiving, {} sending, {} quarantined; {} promised",
        pages.free,
        pages.cached,
        node.indexed_pages,
        pages.running,
        pages.receiving,
        pages.sending,
        pages.quarantined,
        pages.promised
    ));
    for (name, cost) in [("prefill", steps.prefill), ("decode", steps.decode)] {
        lines.extend(cost.map(|cost| {
            let us = |seconds: f64| seconds * 1e6;
            format!(
                "{name} step: {:.0} µs + {:.3} µs a unit + {:.6} µs a token of context",
                us(cost.base),
                us(cost.unit),
                us(cost.context)
            )
        }));
    }
    for link in &node.links {
        let rate =
            link.bytes_per_second.map_or("not measured".to_owned(), |rate| format!("{:.0} MB/s", rate / 1e6));
        let fallback = link.fallback.as_ref().map_or(String::new(), |why| format!(" (not {why})"));
        lines.push(format!("from {} by {} at {rate}{fallback}", link.from, link.transport));
    }
    lines
}

fn requests(requests: &[Request]) -> Vec<String> {
    let head = format!(
        "{:<32} {:<10} {:<8} {:>9} {:>7} {:>7} {:>8} {:<12} {:<12}",
        "request", "tenant", "stage", "age", "prompt", "tokens", "attempts", "prefill", "decode"
    );
    let row = |request: &Request| {
        let node = |node: &Option<String>| node.clone().unwrap_or_else(|| "-".to_owned());
        format!(
            "{:<32} {:<10} {:<8} {:>7.1} s {:>7} {:>7} {:>8} {:<12} {:<12}",
            request.id,
            request.tenant,
            request.stage,
            request.age_ms / 1e3,
            request.prompt_tokens,
            request.tokens,
            request.attempts,
            node(&request.prefill),
            node(&request.decode)
        )
    };
    std::iter::once(head).chain(requests.iter().map(row)).collect()
}

fn queues(queues: &[Queue]) -> Vec<String> {
    let of = |queue: &Queue| {
        let pace =
            queue.interval_ms.map_or(String::new(), |ms| format!("; a place comes free each {ms:.1} ms"));
        let head = format!("{}: {} running, {} waiting{pace}", queue.model, queue.running, queue.waiting);
        let tenants = queue.waiting_by_tenant.iter();
        let tenants = tenants.map(|(tenant, waiting)| format!("  {tenant}: {waiting}"));
        std::iter::once(head).chain(tenants).collect::<Vec<_>>()
    };
    queues.iter().flat_map(of).collect()
}

fn limits(limits: &Limits) -> Vec<String> {
    let head = [
        format!("revision {}", limits.revision),
        format!(
            "max_running={} max_waiting={} max_wait_ms={}",
            limits.max_running, limits.max_waiting, limits.max_wait_ms
        ),
        format!("ttft_ms={} itl_ms={} kept_by_nodes={}", limits.ttft_ms, limits.itl_ms, limits.kept_by_nodes),
    ];
    head.into_iter().chain(limits.classes.iter().map(class)).collect()
}

/// What a class of requests is, and what holds for it.
fn class(class: &Class) -> String {
    let word = |name: &str, value: Option<String>| value.map(|value| format!(" {name}={value}"));
    let words = [
        word("model", class.model.clone()),
        word("min_priority", class.min_priority.map(|least| least.to_string())),
        word("max_priority", class.max_priority.map(|most| most.to_string())),
        Some(" has".to_owned()),
        word("ttft_ms", class.ttft_ms.map(|ms| ms.to_string())),
        word("itl_ms", class.itl_ms.map(|ms| ms.to_string())),
        word("kept_by_nodes", class.kept_by_nodes.map(|kept| kept.to_string())),
    ];
    format!("class{}", words.into_iter().flatten().collect::<String>())
}

fn prefix_index(index: &PrefixIndex) -> Vec<String> {
    let head = format!("{} pages, {} sets of nodes", index.pages, index.sets);
    let nodes = index.by_node.iter().map(|(node, pages)| format!("  {node}: {pages}"));
    std::iter::once(head).chain(nodes).collect()
}

fn flushed(Flushed { nodes }: Flushed) -> Vec<String> {
    let nodes = nodes.into_iter().map(|node| format!("{node} forgot what its prefix cache held"));
    nodes.collect()
}

fn advice(advice: &[Advice]) -> Vec<String> {
    if advice.is_empty() {
        return vec!["none: the balancer is off, or too few requests were answered yet".to_owned()];
    }
    let of = |advice: &Advice| {
        let gains = advice
            .gains
            .as_ref()
            .map_or(String::new(), |role| format!("; {role} should gain nodes ({})", advice.by));
        [
            format!(
                "{}: {:.1} requests/s of {:.0} prompt tokens ({:.0} computed) and {:.0} answer tokens",
                advice.model,
                advice.requests_per_second,
                advice.prompt_tokens,
                advice.computed_tokens,
                advice.answer_tokens
            ),
            format!(
                "  {} prefill + {} decode nodes: {:.0} % of first tokens and {:.0} % of next ones in time, {:.0} % busy{gains}",
                advice.prefill,
                advice.decode,
                1e2 * advice.ttft_attained,
                1e2 * advice.itl_attained,
                1e2 * advice.pressure
            ),
            format!("  wanted: {} prefill, {} decode", advice.wanted_prefill, advice.wanted_decode),
        ]
    };
    advice.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_changed_by_their_names_alone() {
        let mut limits = json!({ "revision": 3, "max_running": 9, "kept_by_nodes": false });
        change(&mut limits, &["max_running=5".to_owned(), "kept_by_nodes=true".to_owned()]).unwrap();
        assert_eq!(limits, json!({ "revision": 3, "max_running": 5, "kept_by_nodes": true }));
        for wrong in ["max_runing=5", "revision=9", "max_running", "max_running=many"] {
            assert!(change(&mut limits, &[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
