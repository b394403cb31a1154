//! How full KV pools are while a run lasts, as the server's metrics tell it.

use std::{convert::Infallible, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::Endpoint;

/// By the names of Baton and vLLM, of SGLang, and of TGI's likes.
const NAMES: [&str; 3] = ["kv_cache_usage_perc", "token_usage", "gpu_cache_usage_perc"];
/// Between two looks.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// Notes the mean of all pools, from 0 to 1, twice a second, for as long as it is polled.
pub(super) async fn watch(endpoint: &Endpoint, usage: &mut Vec<f64>) -> Infallible {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pages = endpoint.metrics().await;
        if pages.is_empty() {
            // It has no metrics.
            std::future::pending::<()>().await;
        }
        usage.extend(mean_of(&pages.concat()));
    }
}

/// The mean over all pools of a page in Prometheus's form.
pub(super) fn mean_of(page: &str) -> Option<f64> {
    let values: Vec<f64> = page.lines().filter_map(value_of).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn value_of(line: &str) -> Option<f64> {
    let name = line.split(['{', ' ']).next()?;
    let is_usage = !line.starts_with('#') && NAMES.iter().any(|known| name.ends_with(known));
    is_usage.then(|| line.rsplit(' ').next()?.parse().ok()).flatten()
}
