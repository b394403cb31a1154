//! Requests that end nodes. A request whose prompt two nodes were computing when
//! they died is not tried a third time, and neither is one like it for a while:
//! the same prompt from a client that tries again.
//!
//! A request that had tokens was not what its node died of: it ran there before.

use std::{collections::HashMap, time::Duration};

use baton_protocol::{ErrorCode, Failure, Request};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a prompt is refused.
const FOR: Duration = Duration::from_secs(600);
/// Prompts that are remembered; beyond that the one that would be forgotten next goes.
const MOST: usize = 1024;
/// Nodes that a request may end.
pub(crate) const NODES: usize = 2;

/// What a prompt is known by.
type Digest = [u8; 32];

/// Prompts that have ended nodes, and until when they are refused.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(Mutex<HashMap<Digest, Instant>>);

// === impl Quarantine ===

impl Quarantine {
    /// Keeps prompts like this one out.
    pub(crate) fn put(&self, request: &Request, now: Instant) -> Failure {
        let mut prompts = self.0.lock();
        prompts.retain(|_, until| *until > now);
        if prompts.len() >= MOST
            && let Some(next) = prompts.iter().min_by_key(|(_, until)| **until).map(|(digest, _)| *digest)
        {
            prompts.remove(&next);
        }
        prompts.insert(digest(request), now + FOR);
        refusal()
    }

    /// Whether a request may be tried.
    ///
    /// # Errors
    /// When one like it has ended nodes lately.
    pub(crate) fn check(&self, request: &Request, now: Instant) -> Result<(), Failure> {
        let prompts = self.0.lock();
        // Nearly always there is none, and nothing is hashed.
        if prompts.is_empty() || prompts.get(&digest(request)).is_none_or(|until| *until <= now) {
            return Ok(());
        }
        Err(refusal())
    }
}

fn refusal() -> Failure {
    Failure::new(
        ErrorCode::Internal,
        "nodes failed on this prompt, so that it is not tried again for a while",
    )
}

/// Of tenant, model and prompt.
fn digest(request: &Request) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for word in [&request.tenant, &request.model] {
        hasher.update(&(word.len() as u64).to_le_bytes());
        hasher.update(word.as_bytes());
    }
    for token in &request.tokens {
        hasher.update(&token.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::request;

    #[test]
    fn a_prompt_is_refused_for_a_while_and_others_are_not() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let bad = request(1);
        assert_eq!(quarantine.check(&bad, now), Ok(()));
        quarantine.put(&bad, now);
        assert!(quarantine.check(&bad, now).is_err());
        assert!(quarantine.check(&Request { choices: 3, ..bad.clone() }, now).is_err());
        let others =
            [Request { tokens: vec![1, 2], ..bad.clone() }, Request { tenant: "b".into(), ..bad.clone() }];
        for other in others {
            assert_eq!(quarantine.check(&other, now), Ok(()));
        }
        assert_eq!(quarantine.check(&bad, now + FOR), Ok(()));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        for number in 0..MOST as u32 + 10 {
            let one = Request { tokens: vec![number], ..request(1) };
            quarantine.put(&one, now + Duration::from_millis(u64::from(number)));
        }
        assert_eq!(quarantine.0.lock().len(), MOST);
        assert_eq!(quarantine.check(&Request { tokens: vec![0], ..request(1) }, now), Ok(()));
    }
}
