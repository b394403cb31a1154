//! Spans to a collector, in batches, from a thread of the SDK's.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};

use crate::TracesConfig;

/// How long the last spans may take to their collector when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whether there is a collector: without one a span costs this look.
static COLLECTED: AtomicBool = AtomicBool::new(false);

/// Sends spans while it lives. What is left goes when it is dropped, for at most two seconds.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Neither plain nor an address.
    #[error(
        "traces.otlp is {endpoint}: it takes http://HOST:PORT, a collector's OTLP over gRPC; put one beside the node if the next one wants TLS"
    )]
    Endpoint {
        /// What was set.
        endpoint: String,
    },
    /// Not a share.
    #[error("traces.sampled is {sampled}: it takes a share, 0 to 1")]
    Sampled {
        /// What was set.
        sampled: f64,
    },
    /// The exporter cannot be made.
    #[error("no exporter of traces: {reason}")]
    Exporter {
        /// In OpenTelemetry's words.
        reason: String,
    },
}

/// Begins to send spans of this process, a node of that name, if a collector is configured. A
/// collector that does not answer costs spans and nothing else.
///
/// # Errors
/// When the configuration cannot be meant. To be called within a tokio runtime.
pub fn export(config: &TracesConfig, node: &str) -> Result<Option<Exporter>, TracesError> {
    let Some(endpoint) = config.check()? else { return Ok(None) };
    let failed =
        |error: opentelemetry_otlp::ExporterBuildError| TracesError::Exporter { reason: error.to_string() };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(failed)?;
    let names =
        [KeyValue::new("service.name", "baton"), KeyValue::new("service.instance.id", node.to_owned())];
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_attributes(names).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampled))));
    Ok(Some(Exporter::begin(provider.build())))
}

/// Whether spans are collected in this process.
pub(crate) fn is_collected() -> bool {
    COLLECTED.load(Ordering::Relaxed)
}

// === impl Exporter ===

impl Exporter {
    pub(crate) fn begin(provider: SdkTracerProvider) -> Self {
        global::set_tracer_provider(provider.clone());
        COLLECTED.store(true, Ordering::Relaxed);
        Self(provider)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        COLLECTED.store(false, Ordering::Relaxed);
        // What does not get there is lost, as it is with a collector that does not answer.
        let _ = self.0.shutdown_with_timeout(FAREWELL);
    }
}
