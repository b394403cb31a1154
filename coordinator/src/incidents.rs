//! What has happened of late, in words: the last few hundred things that an
//! operator would ask about.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use baton_protocol::NodeId;
use baton_registry::Registry;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Something that happened, once or several times in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// What kind of thing.
    pub kind: IncidentKind,
    /// To whom; none: not to a node.
    pub node: Option<NodeId>,
    /// For a person, of the last time.
    pub words: String,
    /// The first time.
    pub first: SystemTime,
    /// The last time.
    pub last: SystemTime,
    /// How often.
    pub times: u64,
}

/// Kinds of things that happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentKind {
    /// A node takes work.
    NodeReady,
    /// A node finishes what it has.
    NodeDraining,
    /// A node does not answer.
    NodeLost,
    /// A node is gone.
    NodeLeft,
    /// A node is slow beside the others.
    NodeSlow,
    /// A node has other roles.
    Roles,
    /// A node broke off an answer, which went on elsewhere or failed.
    AttemptLost,
    /// A request was locked out since nodes died of it.
    Quarantined,
    /// An operator changed the limits.
    Limits,
    /// An operator cancelled a request.
    Cancelled,
    /// An operator had prefix caches flushed.
    Flushed,
    /// The registry does not answer.
    RegistryAway,
    /// The registry answers again.
    RegistryBack,
}

/// The last incidents.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    incident: Incident,
    last: Instant,
}

/// So many are kept.
const MOST: usize = 256;
/// The same thing again within this time, and nothing else of the same node between, is no new incident.
const SAME: Duration = Duration::from_secs(30);
/// Between two looks at the registry's health.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

// === impl IncidentKind ===

impl IncidentKind {
    /// Its name in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeReady => "node_ready",
            Self::NodeDraining => "node_draining",
            Self::NodeLost => "node_lost",
            Self::NodeLeft => "node_left",
            Self::NodeSlow => "node_slow",
            Self::Roles => "roles",
            Self::AttemptLost => "attempt_lost",
            Self::Quarantined => "quarantined",
            Self::Limits => "limits",
            Self::Cancelled => "cancelled",
            Self::Flushed => "flushed",
            Self::RegistryAway => "registry_away",
            Self::RegistryBack => "registry_back",
        }
    }
}

// === impl Incidents ===

impl Incidents {
    /// Something happened to a node.
    pub(crate) fn of(&self, node: &NodeId, kind: IncidentKind, words: impl Into<String>) {
        self.note(Some(node.clone()), kind, words.into());
    }

    /// Something happened to the cluster.
    pub(crate) fn all(&self, kind: IncidentKind, words: impl Into<String>) {
        self.note(None, kind, words.into());
    }

    /// The newest first.
    pub(crate) fn latest(&self) -> Vec<Incident> {
        self.kept.lock().iter().rev().map(|kept| kept.incident.clone()).collect()
    }

    fn note(&self, node: Option<NodeId>, kind: IncidentKind, words: String) {
        let (now, at) = (Instant::now(), SystemTime::now());
        let mut kept = self.kept.lock();
        let before = kept.iter().rposition(|kept| kept.incident.node == node);
        let is_same = |before: &Kept| {
            let Incident { kind: known, words: said, .. } = &before.incident;
            *known == kind && (!kind.is_told_by_words() || *said == words) && now - before.last < SAME
        };
        let same = before.filter(|&at| is_same(&kept[at]));
        let (first, times) = match same.and_then(|at| kept.remove(at)) {
            Some(Kept { incident, .. }) => (incident.first, incident.times + 1),
            None => (at, 1),
        };
        if kept.len() == MOST {
            kept.pop_front();
        }
        kept.push_back(Kept { incident: Incident { kind, node, words, first, last: at, times }, last: now });
    }
}

// === impl IncidentKind ===

impl IncidentKind {
    /// Whether other words are another thing: what became of something, and not once more the same.
    const fn is_told_by_words(self) -> bool {
        matches!(self, Self::Roles | Self::Limits)
    }
}

/// Notes when the registry goes away and comes back, until `stop`.
pub(crate) async fn watch(registry: Arc<dyn Registry>, incidents: Arc<Incidents>, stop: CancellationToken) {
    // It is not reached at once.
    let mut looks = interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = true;
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let before = std::mem::replace(&mut connected, registry.health().connected);
        if before && !connected {
            incidents
                .all(IncidentKind::RegistryAway, "the registry does not answer: known nodes stay in use");
        } else if connected && !before {
            incidents.all(IncidentKind::RegistryBack, "the registry answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use baton_protocol::NodeInfo;
    use baton_registry::{Members, MemoryRegistry, Registration, RegistryHealth};
    use tokio::time::{advance, sleep};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId(name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_again_soon_is_counted_and_later_is_another() {
        let incidents = Incidents::default();
        for code in ["a", "b"] {
            incidents.of(&node("d1"), IncidentKind::AttemptLost, code);
            incidents.of(&node("d2"), IncidentKind::AttemptLost, code);
        }
        // Something else of the same node lies between.
        incidents.of(&node("d2"), IncidentKind::NodeReady, "back");
        incidents.of(&node("d2"), IncidentKind::AttemptLost, "c");
        advance(SAME).await;
        incidents.of(&node("d1"), IncidentKind::AttemptLost, "c");
        let told: Vec<_> = incidents
            .latest()
            .into_iter()
            .map(|incident| (incident.node.unwrap().0, incident.times, incident.words))
            .collect();
        let of = |node: &str, times, words: &str| (node.to_owned(), times, words.to_owned());
        let before = [of("d2", 1, "c"), of("d2", 1, "back"), of("d2", 2, "b"), of("d1", 2, "b")];
        assert_eq!((&told[0], &told[1..]), (&of("d1", 1, "c"), &before[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_of_something_is_told_each_time() {
        let incidents = Incidents::default();
        for roles in ["prefill", "prefill", "decode"] {
            incidents.of(&node("d1"), IncidentKind::Roles, roles);
        }
        let told: Vec<_> =
            incidents.latest().into_iter().map(|incident| (incident.words, incident.times)).collect();
        assert_eq!(told, [("decode".to_owned(), 1), ("prefill".to_owned(), 2)]);
    }

    #[test]
    fn the_oldest_make_room() {
        let incidents = Incidents::default();
        for number in 0..2 * MOST {
            incidents.of(&node(&number.to_string()), IncidentKind::NodeLost, "");
        }
        let latest = incidents.latest();
        assert_eq!(latest.len(), MOST);
        assert_eq!(latest[0].node, Some(node(&(2 * MOST - 1).to_string())));
    }

    /// Is away when told to be.
    #[derive(Default)]
    struct Fickle {
        inner: MemoryRegistry,
        away: AtomicBool,
    }

    impl Registry for Fickle {
        fn register(&self, info: NodeInfo) -> Registration {
            self.inner.register(info)
        }

        fn watch(&self) -> tokio::sync::watch::Receiver<Members> {
            self.inner.watch()
        }

        fn stand(&self) -> tokio::sync::watch::Receiver<bool> {
            self.inner.stand()
        }

        fn health(&self) -> RegistryHealth {
            let connected = !self.away.load(Ordering::Relaxed);
            RegistryHealth { connected, ..self.inner.health() }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_goes_away_and_comes_back_once() {
        let registry = Arc::new(Fickle::default());
        let (incidents, stop) = (Arc::<Incidents>::default(), CancellationToken::new());
        let going = async {
            for away in [false, true, false] {
                registry.away.store(away, Ordering::Relaxed);
                sleep(LOOK_INTERVAL * 3).await;
            }
            stop.cancel();
        };
        tokio::join!(watch(registry.clone(), Arc::clone(&incidents), stop.clone()), going);
        let kinds: Vec<_> =
            incidents.latest().iter().map(|incident| (incident.kind, incident.times)).collect();
        assert_eq!(kinds, [(IncidentKind::RegistryBack, 1), (IncidentKind::RegistryAway, 1)]);
    }
}
