//! Section `[traces]`.

use serde::{Deserialize, Serialize};

use crate::TracesError;

/// What OpenTelemetry's own programs are told it by; used where the configuration is silent.
const ENDPOINT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Where spans go, and of how many requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// A collector's address for OTLP over gRPC, for example `http://127.0.0.1:4317`. Absent: as
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` says, and without that nothing is traced.
    pub otlp: Option<String>,
    /// Of requests whose caller does not say whether they are traced, the share that is, 0 to 1.
    pub sampled: f64,
}

// === impl TracesConfig ===

impl Default for TracesConfig {
    fn default() -> Self {
        Self { otlp: None, sampled: 1.0 }
    }
}

impl TracesConfig {
    /// The collector, if there is one.
    ///
    /// # Errors
    /// When the settings cannot be meant.
    pub fn check(&self) -> Result<Option<String>, TracesError> {
        if !(0.0..=1.0).contains(&self.sampled) {
            return Err(TracesError::Sampled { sampled: self.sampled });
        }
        match self.endpoint() {
            Some(endpoint) if !endpoint.starts_with("http://") => Err(TracesError::Endpoint { endpoint }),
            endpoint => Ok(endpoint),
        }
    }

    fn endpoint(&self) -> Option<String> {
        let told = || ENDPOINT.iter().find_map(|name| std::env::var(name).ok()).filter(|url| !url.is_empty());
        self.otlp.clone().or_else(told)
    }
}
