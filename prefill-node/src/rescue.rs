//! What a prefill node had sent before it broke off: the decode node offers it
//! to the next one, which takes it into its prefix cache and computes the rest,
//! where that is cheaper than to compute all of it again.

use std::{sync::Arc, time::Duration};

use baton_engine::EngineHandle;
use baton_kv_transfer::{PrefillJob, Returned, Sessions};
use baton_protocol::chain;
use tokio::time::timeout;

use crate::returns::Fetch;

/// The road carries other things, too: it is taken for this part of what was measured.
const SHARE: f64 = 0.5;

/// What is computed faster than this is not worth a session's messages.
const WORTHWHILE: Duration = Duration::from_millis(5);

/// The first tokens of a prompt, which somebody else has KV of.
pub(crate) struct Rescue {
    engine: EngineHandle,
    sessions: Arc<Sessions>,
    kv: Returned,
}

// === impl Rescue ===

impl Rescue {
    /// None when nothing is offered.
    pub(crate) fn of(job: &PrefillJob, engine: &EngineHandle, sessions: &Arc<Sessions>) -> Option<Self> {
        let holder = job.holder.clone()?;
        let request = &job.request;
        let tokens = request.tokens.get(..job.have as usize)?.to_vec();
        let kv = Returned { id: job.id, tenant: request.tenant.clone(), tokens, holder };
        Some(Self { engine: engine.clone(), sessions: Arc::clone(sessions), kv })
    }

    /// How it ended, and how many tokens came. It takes no longer than to compute them.
    pub(crate) async fn run(self) -> (&'static str, u64) {
        let (bytes, computing) = self.missing();
        if computing < WORTHWHILE {
            return ("dearer", 0);
        }
        timeout(computing, self.take(bytes, computing)).await.unwrap_or(("late", 0))
    }

    async fn take(self, bytes: f64, computing: Duration) -> (&'static str, u64) {
        match self.sessions.bandwidth(&self.kv.holder).await {
            Ok(Some(rate)) if bytes < rate * SHARE * computing.as_secs_f64() => {
                let Self { engine, sessions, kv } = self;
                Fetch { engine, sessions, kv, is_favour: false }.run().await
            }
            Ok(_) => ("dearer", 0),
            Err(error) => {
                tracing::debug!(node = %self.kv.holder.node, %error, "no session for offered KV");
                ("no_session", 0)
            }
        }
    }

    /// Bytes of the KV that is not here, and the time to compute it: nothing while that is not known.
    fn missing(&self) -> (f64, Duration) {
        let pool = self.engine.pool();
        let page_tokens = pool.shape().page_tokens as usize;
        let held =
            pool.match_prefix(&chain(&self.kv.tenant, page_tokens, &self.kv.tokens)).len() * page_tokens;
        let [from, to] = [held, self.kv.tokens.len()].map(|tokens| tokens as f64);
        let bytes = (to - from) * pool.shape().token_bytes() as f64;
        let cost = self.engine.step_model().prefill;
        let seconds = cost.map_or(0.0, |cost| cost.seconds(0.0, to - from, (to * to - from * from) / 2.0));
        (bytes, Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}
