//! The pair of nodes on which a request is foretold to keep its budgets best.

use std::time::Duration;

use baton_protocol::{Budgets, Request};

use super::{
    Ask, Candidate, Pair, Policy, Work, in_turn,
    predict::{self, Prediction},
};

/// The decode node and the prefill node, or the decode node alone, with the
/// least of what is foretold, measured in budgets.
#[derive(Clone, Copy, Debug)]
pub struct Predicted;

/// So many of each side are looked at in pairs. When a prompt has run depends on
/// the prefill node alone, and how long steps take on the decode node alone:
/// only the road is the pair's. So a pair beyond the best of both sides could
/// win by its road alone.
const BEST: usize = 4;
/// Weight of both measures beside the worse one: where two pairs are as far
/// from their budgets by one measure, the other one decides.
const BOTH: f64 = 0.125;

/// What is foretold of a choice of nodes.
#[derive(Clone, Copy, Debug)]
struct Outlook {
    /// Of the request itself.
    own: Prediction,
    /// Seconds between tokens of the answers beside it while its prompt runs.
    others_itl: f64,
}

impl Policy for Predicted {
    fn name(&self) -> &'static str {
        "predicted"
    }

    fn rank(&self, work: Work, request: &Request, nodes: &[Candidate], turn: u64) -> Vec<usize> {
        by_least(nodes, turn, |node| match work {
            Work::Decode => predict::decode_step(node, request),
            Work::Prefill => {
                let prefill = predict::prefill(node, request);
                prefill.wait + prefill.run
            }
        })
    }

    fn pair(&self, ask: &Ask<'_>) -> Option<Pair> {
        let (request, decode, prefill) = (ask.request, ask.decode, ask.prefill);
        let steady = self.rank(Work::Decode, request, decode, ask.turn);
        let alone = by_least(decode, ask.turn, |node| badness(&local(node, request), ask.budgets));
        let runs = self.rank(Work::Prefill, request, prefill, ask.turn);

        let locals = alone.iter().take(BEST).map(|&at| (at, None, local(&decode[at], request)));
        let pairs = steady.iter().take(BEST).flat_map(|&to| {
            let others = runs.iter().filter(move |&&from| decode[to].takes_from(&prefill[from]));
            others.take(BEST).map(move |&from| (to, Some(from), over(&prefill[from], &decode[to], request)))
        });
        let cached = |to: usize, from: Option<usize>| {
            decode[to].cached_tokens + from.map_or(0, |from| prefill[from].cached_tokens)
        };
        let (to, from, outlook) = locals.chain(pairs).min_by(|one, other| {
            let by_budget = badness(&one.2, ask.budgets).total_cmp(&badness(&other.2, ask.budgets));
            by_budget.then_with(|| cached(other.0, other.1).cmp(&cached(one.0, one.1)))
        })?;
        let prefill = from.map_or_else(Vec::new, |best| {
            let others = runs.iter().filter(|&&node| node != best && decode[to].takes_from(&prefill[node]));
            std::iter::once(best).chain(others.copied()).collect()
        });
        let itl = predict::usual_step(&decode[to], request);
        Some(Pair { decode: to, prefill, prediction: Some(Prediction { itl, ..outlook.own }) })
    }
}

/// How far from the budgets: 1 is on the edge of the tighter one.
fn badness(outlook: &Outlook, budgets: &Budgets) -> f64 {
    let of = |seconds: f64, budget: Duration| seconds / budget.as_secs_f64().max(1e-6);
    let first = of(outlook.own.ttft + outlook.own.exposed, budgets.ttft);
    let next = of(outlook.own.itl.max(outlook.others_itl), budgets.itl);
    first.max(next) + BOTH * (first + next)
}

/// The prompt runs where the answer goes on, between the steps of other answers.
fn local(node: &Candidate, request: &Request) -> Outlook {
    let prefill = predict::prefill(node, request);
    let itl = predict::decode_step(node, request);
    let beside = if node.sequences() > 0 { predict::prompt_in_step(node, request) } else { 0.0 };
    let own = Prediction { ttft: prefill.wait + prefill.run, exposed: 0.0, itl };
    Outlook { own, others_itl: itl + beside }
}

/// The prompt runs on another node, and its KV is handed over.
fn over(from: &Candidate, to: &Candidate, request: &Request) -> Outlook {
    let prefill = predict::prefill(from, request);
    let exposed = predict::exposed(from, to, prefill.run, request);
    let itl = predict::decode_step(to, request);
    Outlook { own: Prediction { ttft: prefill.wait + prefill.run, exposed, itl }, others_itl: itl }
}

/// Indices by a measure, least first; ties in turn.
fn by_least(nodes: &[Candidate], turn: u64, measure: impl Fn(&Candidate) -> f64) -> Vec<usize> {
    let measures: Vec<_> = nodes.iter().map(measure).collect();
    let mut order = in_turn(nodes.len(), turn);
    order.sort_by(|&one, &other| measures[one].total_cmp(&measures[other]));
    order
}

#[cfg(test)]
mod tests;
