//! What an engine counts. Names keep vLLM's stems, so that dashboards fit.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::kv::KvPool;

/// Counters of one engine. Clones share them.
#[derive(Clone)]
pub struct EngineMetrics {
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) waiting_prefill_tokens: Gauge,
    pub(crate) running_context_tokens: Gauge,
    pub(crate) step_prompt_tokens: Gauge,
    pub(crate) preemptions: Counter,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generation_tokens: Counter,
    pub(crate) prefix_cache_queries: Counter,
    pub(crate) prefix_cache_hits: Counter,
    pub(crate) step: Histogram,
    pages: Pages,
}

/// Pages by state, read when they are scraped: one lock, so that they sum to the pool in every scrape.
#[derive(Clone)]
struct Pages(Arc<KvPool>);

/// Seconds of a step, from 100 microseconds to 10 seconds.
const STEP_SECONDS: [f64; 16] =
    [0.0001, 0.0003, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];

// === impl EngineMetrics ===

impl EngineMetrics {
    pub(crate) fn new(pool: &Arc<KvPool>) -> Self {
        Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            waiting_prefill_tokens: Gauge::default(),
            running_context_tokens: Gauge::default(),
            step_prompt_tokens: Gauge::default(),
            preemptions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            step: Histogram::new(STEP_SECONDS),
            pages: Pages(Arc::clone(pool)),
        }
    }

    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("num_requests_running", "Answers being computed", self.running.clone());
        registry.register(
            "num_requests_waiting",
            "Requests waiting for pages or a place",
            self.waiting.clone(),
        );
        registry.register(
            "waiting_prefill_tokens",
            "Known tokens whose KV is still to be computed",
            self.waiting_prefill_tokens.clone(),
        );
        registry.register(
            "running_context_tokens",
            "Tokens that running answers attend to",
            self.running_context_tokens.clone(),
        );
        registry.register(
            "step_prompt_tokens",
            "Prompt tokens that a step takes beside the answers that go on",
            self.step_prompt_tokens.clone(),
        );
        registry.register(
            "num_preemptions",
            "Sequences whose pages were taken back",
            self.preemptions.clone(),
        );
        registry.register("prompt_tokens", "Known tokens computed", self.prompt_tokens.clone());
        registry.register("generation_tokens", "Tokens drawn", self.generation_tokens.clone());
        registry.register(
            "prefix_cache_queries",
            "Tokens looked for in the prefix cache",
            self.prefix_cache_queries.clone(),
        );
        registry.register(
            "prefix_cache_hits",
            "Tokens found in the prefix cache",
            self.prefix_cache_hits.clone(),
        );
        registry.register_with_unit("step_duration", "Time of a step", Unit::Seconds, self.step.clone());
        registry.register_collector(Box::new(self.pages.clone()));
    }
}

// === impl Pages ===

impl Collector for Pages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.0.counts();
        let mut pages = encoder.encode_descriptor("kv_pages", "Pages by state", None, MetricType::Gauge)?;
        for (state, count) in [
            ("free", counts.free),
            ("cached", counts.cached),
            ("running", counts.running),
            ("receiving", counts.receiving),
            ("sending", counts.sending),
            ("quarantined", counts.quarantined),
        ] {
            let labels = [("state", state)];
            ConstGauge::new(count as i64).encode(pages.encode_family(&labels)?)?;
        }
        for (name, help, count) in [
            ("kv_pool_pages", "Pages of the pool", counts.total),
            ("kv_pages_promised", "Pages promised to handoffs that have not started", counts.promised),
        ] {
            let gauge = ConstGauge::new(count as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        // vLLM's name and unit (0 to 1); cached pages can be had back at once.
        let used = counts.total - counts.free - counts.cached;
        let usage = ConstGauge::new(used as f64 / counts.total.max(1) as f64);
        let help = "Share of the pool in use";
        usage.encode(encoder.encode_descriptor("kv_cache_usage_perc", help, None, usage.metric_type())?)?;
        Ok(())
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({:?})", self.0.counts())
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::{KvDtype, KvShape};

    use super::*;
    use crate::kv::PoolConfig;

    #[test]
    fn page_states_sum_to_the_pool_in_a_scrape() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: 4 };
        let config = PoolConfig { pages: 9, max_promised: 9, max_prefill: 9, max_decode: 9, zeroes: false };
        let pool = KvPool::new(shape, config);
        let _held = pool.allocate(2).unwrap();
        let _promise = pool.promise(3).unwrap();
        let mut registry = Registry::default();
        EngineMetrics::new(&pool).register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let of = |name: &str| {
            text.lines()
                .filter(|line| line.starts_with(name))
                .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
                .sum::<u64>()
        };
        assert_eq!(of("kv_pages{"), of("kv_pool_pages "));
        assert_eq!((of("kv_pages{state=\"running\"}"), of("kv_pages_promised ")), (2, 3));
        for name in ["num_requests_running 0", "num_preemptions_total 0", "step_duration_seconds_count 0"] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
    }
}
