//! What the coordinator counts. Stems are those that dashboards for vLLM know.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{Bill, ErrorCode};
use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{Health, Pace, balancer::BalancerMetrics, policy::Prediction, prefix::PrefixStats};

/// Handles to the coordinator's metrics; clones count into the same ones.
#[derive(Clone, Debug)]
pub struct CoordinatorMetrics {
    requests: Family<Label, Counter>,
    nodes: Family<Label, Gauge>,
    attempts: Counter,
    resumed: Counter,
    quarantined: Counter,
    ejections: Counter,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    handoff_exposed: Histogram,
    prefix_pages: Gauge,
    prefix_kept_out: Counter,
    prefix_gaps: Counter,
    ttft_ratio: Histogram,
    itl_ratio: Histogram,
    balancer: BalancerMetrics,
    pace: Arc<Pace>,
}

/// Measured over predicted: dense around 1, since 0.8 to 1.2 is what is hoped for.
const RATIOS: [f64; 18] =
    [0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.33, 1.5, 2.0, 5.0];

/// One label from a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Label(&'static str, &'static str);

/// Times of one request. A request that ends without a word was cancelled.
#[derive(Debug)]
pub(crate) struct Meter {
    metrics: CoordinatorMetrics,
    start: Instant,
    waited: Duration,
    first_token: bool,
    /// What came of each choice.
    told: Vec<Option<Told>>,
    foretold: Option<Foretold>,
    ended: bool,
}

/// Tokens of a choice.
#[derive(Clone, Copy, Debug)]
struct Told {
    first: Instant,
    last: Instant,
    tokens: u32,
}

/// What was foretold of a request's first attempt, and what came of it.
#[derive(Debug)]
struct Foretold {
    prediction: Prediction,
    /// When the attempt began.
    began: Instant,
    /// Tokens of the first choice, and when its second came: KV of a handoff
    /// may come between the first and the second.
    tokens: u32,
    second: Option<Instant>,
}

/// Gaps between tokens from which a mean is compared.
const GAPS: u32 = 4;

// === impl CoordinatorMetrics ===

impl Default for CoordinatorMetrics {
    fn default() -> Self {
        // 1 ms to about 2 minutes, 0.1 ms to about 3 s.
        let slow = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let fast = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        Self {
            requests: Family::default(),
            nodes: Family::default(),
            attempts: Counter::default(),
            resumed: Counter::default(),
            quarantined: Counter::default(),
            ejections: Counter::default(),
            time_to_first_token: slow(),
            inter_token_latency: fast(),
            time_per_output_token: fast(),
            e2e_latency: slow(),
            queue_time: slow(),
            handoff_exposed: fast(),
            prefix_pages: Gauge::default(),
            prefix_kept_out: Counter::default(),
            prefix_gaps: Counter::default(),
            ttft_ratio: Histogram::new(RATIOS),
            itl_ratio: Histogram::new(RATIOS),
            balancer: BalancerMetrics::default(),
            pace: Arc::default(),
        }
    }
}

impl CoordinatorMetrics {
    /// Makes them visible in `registry`, whose prefix they get.
    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("requests", "Requests by outcome", m.requests);
        registry.register("nodes", "Nodes by health", m.nodes);
        registry.register("attempts", "Streams opened to decode nodes", m.attempts);
        registry.register("resumed_requests", "Attempts that went on where a lost one ended", m.resumed);
        registry.register("node_ejections", "Times that a slow node was left out for a while", m.ejections);
        registry.register("quarantined_requests", "Requests that two nodes died of", m.quarantined);
        registry.register(
            "time_to_first_token_seconds",
            "From receiving a request to its first token",
            m.time_to_first_token,
        );
        registry.register(
            "inter_token_latency_seconds",
            "Between consecutive tokens of a choice",
            m.inter_token_latency,
        );
        registry.register(
            "request_time_per_output_token_seconds",
            "Mean time between the tokens of a choice, once it has ended",
            m.time_per_output_token,
        );
        registry.register(
            "e2e_request_latency_seconds",
            "From receiving a request to its end",
            m.e2e_latency,
        );
        registry.register(
            "request_queue_time_seconds",
            "Waiting for a place and for the first prefill step",
            m.queue_time,
        );
        registry.register(
            "handoff_exposed_seconds",
            "From the first token sampled to KV complete, of requests that were handed off",
            m.handoff_exposed,
        );
        registry.register("prefix_index_pages", "Cached pages known, each on each node", m.prefix_pages);
        registry.register(
            "prefix_index_kept_out",
            "Cached pages that the limits kept out of the index",
            m.prefix_kept_out,
        );
        registry.register(
            "prefix_index_gaps",
            "Times that changes of a node's cache were missed and all of it was asked for",
            m.prefix_gaps,
        );
        registry.register(
            "prediction_ttft_ratio",
            "Measured time to first token of an attempt over the predicted one",
            m.ttft_ratio,
        );
        registry.register(
            "prediction_itl_ratio",
            "Measured mean time between an answer's tokens over the predicted one",
            m.itl_ratio,
        );
        m.balancer.register(registry);
    }

    pub(crate) fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    pub(crate) fn balancer(&self) -> &BalancerMetrics {
        &self.balancer
    }

    pub(crate) fn set_nodes(&self, healths: impl Iterator<Item = Health>) {
        let mut counts = Health::ALL.map(|health| (health, 0));
        for health in healths {
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == health) {
                *count += 1;
            }
        }
        for (health, count) in counts {
            self.nodes.get_or_create(&Label("health", health.as_str())).set(count);
        }
    }

    /// A node's cached pages were told; some may not have had room.
    pub(crate) fn indexed(&self, stats: PrefixStats, kept_out: u64) {
        self.prefix_pages.set(i64::try_from(stats.pages).unwrap_or(i64::MAX));
        self.prefix_kept_out.inc_by(kept_out);
    }

    /// Some changes were missed.
    pub(crate) fn prefix_gap(&self) {
        self.prefix_gaps.inc();
    }

    /// A slow node is left out for a while.
    pub(crate) fn ejected(&self) {
        self.ejections.inc();
    }

    /// Nodes died of a request.
    pub(crate) fn quarantined(&self) {
        self.quarantined.inc();
    }

    pub(crate) fn attempt(&self, resumed: bool) {
        self.attempts.inc();
        if resumed {
            self.resumed.inc();
        }
    }
}

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        (self.0, self.1).encode(encoder.encode_label())
    }
}

// === impl Meter ===

impl Meter {
    pub(crate) fn start(metrics: CoordinatorMetrics, choices: u32) -> Self {
        Self {
            metrics,
            start: Instant::now(),
            waited: Duration::ZERO,
            first_token: false,
            told: vec![None; choices as usize],
            foretold: None,
            ended: false,
        }
    }

    /// The request has a place.
    pub(crate) fn admitted(&mut self) {
        self.waited = self.start.elapsed();
    }

    /// An attempt begins, of which this is foretold. Only the first one is
    /// compared: a later one starts with tokens that are known already.
    pub(crate) fn foretold(&mut self, prediction: Option<Prediction>) {
        let is_first = self.foretold.is_none() && !self.first_token;
        let began = Instant::now();
        self.foretold = prediction.filter(|_| is_first).map(|prediction| Foretold {
            prediction,
            began,
            tokens: 0,
            second: None,
        });
    }

    /// A new token was received.
    pub(crate) fn token(&mut self, choice: u32) {
        let now = Instant::now();
        if !std::mem::replace(&mut self.first_token, true) {
            self.metrics.time_to_first_token.observe((now - self.start).as_secs_f64());
            self.metrics.pace.ttft.observe(now - self.start);
            if let Some(foretold) = &self.foretold {
                compare(&self.metrics.ttft_ratio, now - foretold.began, foretold.prediction.ttft);
            }
        }
        if let Some(foretold) = self.foretold.as_mut().filter(|_| choice == 0) {
            foretold.tokens += 1;
            if foretold.tokens == 2 {
                foretold.second = Some(now);
            }
        }
        let Some(told) = self.told.get_mut(choice as usize) else { return };
        let Some(told) = told else {
            *told = Some(Told { first: now, last: now, tokens: 1 });
            return;
        };
        let gap = now - std::mem::replace(&mut told.last, now);
        told.tokens += 1;
        self.metrics.inter_token_latency.observe(gap.as_secs_f64());
        self.metrics.pace.itl.observe(gap);
    }

    /// How long the request waited for a place.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Every choice has ended; the bill knows how long the request waited for a place.
    pub(crate) fn finished(&mut self, bill: Option<&Bill>) {
        let queue = bill.map_or(self.waited, |bill| bill.queue);
        self.metrics.queue_time.observe(queue.as_secs_f64());
        if let Some(bill) = bill.filter(|bill| bill.prefill_node.is_some()) {
            self.metrics.handoff_exposed.observe(bill.exposed.as_secs_f64());
        }
        if let Some(Foretold { prediction, tokens, second: Some(second), .. }) = &self.foretold
            && let Some(Some(told)) = self.told.first()
            && *tokens >= 2 + GAPS
        {
            compare(&self.metrics.itl_ratio, (told.last - *second) / (tokens - 2), prediction.itl);
        }
        for told in self.told.iter().flatten().filter(|told| told.tokens > 1) {
            let mean = (told.last - told.first) / (told.tokens - 1);
            self.metrics.time_per_output_token.observe(mean.as_secs_f64());
        }
        self.end("ok");
    }

    /// The request failed.
    pub(crate) fn failed(&mut self, code: ErrorCode) {
        self.end(code.as_str());
    }

    fn end(&mut self, outcome: &'static str) {
        if !std::mem::replace(&mut self.ended, true) {
            self.metrics.requests.get_or_create(&Label("outcome", outcome)).inc();
            self.metrics.e2e_latency.observe(self.start.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end(ErrorCode::Cancelled.as_str());
    }
}

fn compare(ratios: &Histogram, measured: Duration, foretold: f64) {
    if foretold > 0.0 {
        ratios.observe(measured.as_secs_f64() / foretold);
    }
}
