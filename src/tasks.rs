//! How many tasks this process runs, for `/metrics`: what is not joined shows there.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use tokio::runtime::{Handle, RuntimeMetrics};

/// Tasks of one runtime.
#[derive(Debug)]
pub struct Tasks(RuntimeMetrics);

// === impl Tasks ===

impl Tasks {
    /// Of the runtime that this runs on.
    pub fn here() -> Self {
        Self(Handle::current().metrics())
    }
}

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(self.0.num_alive_tasks() as i64);
        let help = "Tasks that have not ended";
        gauge.encode(encoder.encode_descriptor("runtime_tasks", help, None, gauge.metric_type())?)
    }
}
