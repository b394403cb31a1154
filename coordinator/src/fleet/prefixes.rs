//! What one node's prefix cache holds, kept in the index by its numbered changes.

use std::convert::Infallible;

use baton_protocol::{PrefixChanges, wire};
use tokio::time::sleep;

use super::{Fleet, Node};

/// Why changes cannot be applied.
#[derive(Debug, thiserror::Error)]
enum GapError {
    #[error("changes after number {known} are missing up to {after}")]
    Missed { known: u64, after: u64 },
    #[error("changes cannot be read")]
    Malformed(#[from] wire::Malformed),
}

/// Follows the node's changes, if the policy wants to know them. A stream that
/// breaks goes on at its number; after a gap, everything is asked for.
pub(super) async fn follow(fleet: &Fleet, node: &Node) -> Infallible {
    if !fleet.config.policy.knows_prefixes() {
        return std::future::pending().await;
    }
    let mut known = 0;
    loop {
        let ask = wire::PrefixesRequest {
            incarnation: node.info().incarnation.0,
            after: known,
            interval_ms: fleet.config.prefix_interval_ms,
        };
        let mut missed = None;
        if let Ok(mut changes) = node.client().prefixes(ask).await {
            while let Ok(Some(part)) = changes.message().await {
                node.hear();
                if let Err(error) = take(fleet, node, &mut known, &part) {
                    missed = Some(error);
                    break;
                }
            }
        }
        let pause = if let Some(error) = missed {
            tracing::info!(node = %node.id(), %error, "prefix cache asked for anew");
            fleet.metrics.prefix_gap();
            known = 0;
            fleet.config.load_interval()
        } else {
            fleet.config.health_interval()
        };
        sleep(pause).await;
    }
}

/// Applies a part that follows the known number.
fn take(fleet: &Fleet, node: &Node, known: &mut u64, part: &wire::PrefixChanges) -> Result<(), GapError> {
    let changes = PrefixChanges::try_from(part)?;
    if part.whole {
        node.prefixes().clear();
        *known = 0;
    }
    if changes.after != *known {
        return Err(GapError::Missed { known: *known, after: changes.after });
    }
    let kept_out = node.prefixes().apply(&changes);
    fleet.metrics.indexed(fleet.prefixes.stats(), kept_out);
    *known = changes.number;
    Ok(())
}
