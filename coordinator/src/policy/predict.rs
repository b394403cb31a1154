//! What a request would see on given nodes: arithmetic over what they report.

use baton_protocol::{Request, StepCost};

use super::Candidate;

/// What is foretold of a request on a decode node and a prefill node, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// From opening the attempt to the first token.
    pub ttft: f64,
    /// What of the transfer of KV is left after that: it comes before the second token.
    pub exposed: f64,
    /// Between tokens.
    pub itl: f64,
}

/// A node's part in running a prompt, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prefill {
    /// Until the prompt begins.
    pub wait: f64,
    /// From there to its first token.
    pub run: f64,
}

/// Of a node that has said nothing yet: a small model on one card. It ranks
/// nodes by their work as long as none has said anything.
const UNKNOWN_PREFILL: StepCost = StepCost { base: 0.01, unit: 1e-4, context: 0.0 };
const UNKNOWN_DECODE: StepCost = StepCost { base: 0.01, unit: 1e-4, context: 0.0 };

/// Bytes a second of roads to a node that has measured none, as sockets of a host
/// have it; each is measured when its first handoff begins.
const UNKNOWN_ROAD: f64 = 1e9;

/// When `node` has run the prompt: what waits there and has not been computed
/// since it was its turn, then what it lacks of this one. Answers that go on
/// there slow every step.
pub(super) fn prefill(node: &Candidate, request: &Request) -> Prefill {
    let cost = node.load.steps.prefill.unwrap_or(UNKNOWN_PREFILL);
    let prompt = request.tokens.len() as f64;
    // At least the last token is computed, since the first one drawn follows from it.
    let lacking = (prompt - node.cached_tokens as f64).max(1.0);
    let a_step = (node.load.step_prompt_tokens as f64).max(1.0);
    let beside = beside(node);
    let run = |tokens: f64, context: f64| {
        let steps = if node.load.step_prompt_tokens == 0 { 1.0 } else { (tokens / a_step).ceil() };
        cost.seconds(steps, tokens, tokens * context) + beside * steps
    };
    let waiting = node.prefill_tokens() as f64;
    // Prompts of others are taken to be as long as this one.
    let wait = if waiting > 0.0 { run(waiting, prompt / 2.0) } else { 0.0 };
    let first = run(node.sent.first_prompt_tokens as f64, prompt / 2.0);
    let computed = node.sent.first_prompt_for.as_secs_f64().min(first);
    Prefill { wait: (wait - computed).max(0.0), run: run(lacking, prompt - lacking / 2.0) }
}

/// Between tokens on `node` when this request goes on there beside all that was
/// ever sent to it, also what has no token yet.
pub(super) fn decode_step(node: &Candidate, request: &Request) -> f64 {
    step_beside(node, node.sequences(), request)
}

/// The same beside as many as generate there now: while the answer goes on, some
/// end and others begin.
pub(super) fn usual_step(node: &Candidate, request: &Request) -> f64 {
    step_beside(node, node.generating(), request)
}

fn step_beside(node: &Candidate, answers: u64, request: &Request) -> f64 {
    let cost = node.load.steps.decode.unwrap_or(UNKNOWN_DECODE);
    let (answers, reported) = (answers as f64, f64::from(node.load.running));
    let (choices, prompt) = (f64::from(request.choices), request.tokens.len() as f64);
    // Answers that the report does not know yet are taken to be as long as this one.
    let context = node.load.running_context_tokens as f64 + (answers - reported).max(0.0) * prompt;
    cost.seconds(1.0, answers + choices, context + choices * prompt)
}

/// What prompts that run on a decode node add to a step of its answers.
pub(super) fn prompt_in_step(node: &Candidate, request: &Request) -> f64 {
    let cost = node.load.steps.prefill.unwrap_or(UNKNOWN_PREFILL);
    let lacking = request.tokens.len().saturating_sub(node.cached_tokens).max(1) as f64;
    let tokens = match node.load.step_prompt_tokens {
        0 => lacking,
        tokens => lacking.min(tokens as f64),
    };
    cost.seconds(0.0, tokens, tokens * request.tokens.len() as f64)
}

/// What is left of a transfer when the prompt has run: pages travel while later
/// ones are computed, so that only what the road is slower by shows, and the
/// last group of layers.
pub(super) fn exposed(from: &Candidate, to: &Candidate, run: f64, request: &Request) -> f64 {
    let rate = to.bytes_per_second_from(from).unwrap_or(UNKNOWN_ROAD);
    let lacking = request.tokens.len().saturating_sub(to.cached_tokens);
    let seconds = (lacking * to.info.kv.token_bytes()) as f64 / rate;
    let last_group = seconds / LAYER_GROUPS;
    (seconds - run).max(last_group)
}

/// Groups of layers in which a prompt is sent, by default.
const LAYER_GROUPS: f64 = 4.0;

/// What answers that go on add to each step of a prompt.
fn beside(node: &Candidate) -> f64 {
    let cost = node.load.steps.decode.unwrap_or(UNKNOWN_DECODE);
    cost.seconds(0.0, node.generating() as f64, node.load.running_context_tokens as f64)
}
