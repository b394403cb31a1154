//! A step that never ends: nothing in the process can end it, so the process ends.

use std::time::Duration;

use baton_engine::EngineHandle;
use baton_protocol::NodeId;
use tokio::time::{MissedTickBehavior, interval};

use crate::terminal::note;

/// So often the same step is seen before it counts as one that never ends. A process that was
/// stopped, or had no processor, sees it once for all that time.
const LOOKS: u32 = 10;

/// Ends the process when a step takes `limit`; zero: never.
pub(super) async fn watch(node: NodeId, engine: EngineHandle, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    hang(|| engine.step_under_way(), limit).await;
    note(format_args!("node {node}: a step of the engine has not ended in {limit:?}, so this process does"));
    // Whatever waits for the engine's thread would wait for ever.
    std::process::abort();
}

/// Ready when the same step is under way at each of several looks within `limit`.
async fn hang(under_way: impl Fn() -> Option<u64>, limit: Duration) {
    let mut looks = interval(limit / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut known, mut seen) = (None, 0);
    while seen < LOOKS {
        looks.tick().await;
        let now = under_way();
        seen = if now.is_some() && now == known { seen + 1 } else { 0 };
        known = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::poll;
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn only_one_step_that_goes_on_is_a_hang() {
        let step = Cell::new(None);
        let mut hanging = Box::pin(hang(|| step.get(), LIMIT));
        // Idle, then one step after the other.
        for now in (0..100).map(|number| Some(number).filter(|number| number % 3 > 0)) {
            step.set(now);
            assert!(poll!(&mut hanging).is_pending());
            advance(LIMIT / LOOKS).await;
        }
        // A process that was stopped for an hour looks once.
        step.set(Some(1000));
        assert!(poll!(&mut hanging).is_pending());
        advance(Duration::from_secs(3600)).await;
        assert!(poll!(&mut hanging).is_pending());
        tokio::time::timeout(2 * LIMIT, hanging).await.unwrap();
    }
}
