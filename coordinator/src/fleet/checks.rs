//! The direct health check and the load stream of one node.

use std::{convert::Infallible, error::Error, sync::Arc};

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Fleet, Health, Node, prefixes};
use crate::IncidentKind;

/// Asks the node until it has left or was replaced, and returns it.
pub(super) async fn run(fleet: Arc<Fleet>, node: Arc<Node>) -> Arc<Node> {
    tokio::select! {
        () = node.replaced() => {}
        () = check(&fleet, &node) => {}
        never = follow_load(&fleet, &node) => match never {},
        never = prefixes::follow(&fleet, &node) => match never {},
    }
    // Requests that still hold the node do not keep its pages in the index.
    node.prefixes().clear();
    node
}

/// Ends when the node neither answers nor is announced any more.
async fn check(fleet: &Fleet, node: &Node) {
    let interval = fleet.config.health_interval();
    let mut missed = 0;
    loop {
        let next = Instant::now() + interval;
        let heard = node.heard();
        match timeout(interval, node.client().describe()).await {
            Ok(Ok(info)) if info.incarnation == node.info().incarnation => {
                missed = 0;
                fleet.heard(node, info);
            }
            // Slow to answer, as on a machine with too much to do, but not silent.
            Err(_) if node.heard() != heard => missed = 0,
            answer => {
                if let Ok(Err(error)) = &answer
                    && missed == 0
                {
                    tracing::warn!(node = %node.id(), error = error as &dyn Error, "health check failed");
                }
                // Another process at the same address is certain; silence is not.
                let certain = matches!(answer, Ok(Ok(_)));
                missed += 1;
                // The registry's word that it left is worth the other checks.
                let patience =
                    if node.is_announced() && !certain { fleet.config.max_missed_checks } else { 1 };
                if missed >= patience && set(fleet, node, Health::Lost) {
                    fleet.tell();
                }
                if node.health() == Health::Lost && !node.is_announced() {
                    return;
                }
            }
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = node.asked() => {}
        }
    }
}

/// Whether that was a change, which is logged.
pub(super) fn set(fleet: &Fleet, node: &Node, health: Health) -> bool {
    let before = node.set_health(health);
    if before != health {
        tracing::info!(node = %node.id(), before = before.as_str(), now = health.as_str(), "node health");
        let (kind, words) = match health {
            Health::Joining => return true,
            Health::Ready => (IncidentKind::NodeReady, "takes work"),
            Health::Draining => (IncidentKind::NodeDraining, "takes no new work and finishes what it has"),
            Health::Lost => (IncidentKind::NodeLost, "does not answer, or another process is in its place"),
        };
        fleet.incidents.of(node.id(), kind, words);
    }
    before != health
}

/// Keeps the last load report; a broken stream is opened again.
async fn follow_load(fleet: &Fleet, node: &Node) -> Infallible {
    loop {
        if let Ok(mut reports) = node.client().load(fleet.config.load_interval_ms).await {
            while let Ok(Some(report)) = reports.message().await {
                node.set_load(report);
            }
        }
        sleep(fleet.config.health_interval()).await;
    }
}
