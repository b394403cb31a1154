//! Ways between machines that are closed for a while.

use std::time::Duration;

use super::faults::{Does, Fault, Who};
use crate::sandbox::Network;

/// Ways that are closed until dropped.
pub struct Cut<'a> {
    network: &'a Network,
    ways: Vec<(String, String)>,
}

/// Of a way that opens and closes.
const HALF: Duration = Duration::from_millis(500);

impl Fault {
    /// Whether every node must have a machine of its own.
    pub fn is_of_network(&self) -> bool {
        matches!(
            self.does,
            Does::Cut(..)
                | Does::Flap(..)
                | Does::Lone(..)
                | Does::Nameless(_)
                | Does::Clock(..)
                | Does::Rough { .. }
                | Does::Members(..)
        )
    }

    /// Closes ways, and opens them again.
    pub(super) async fn cut(&self, network: &Network, name: impl Fn(&Who) -> String) {
        let named = |ways: &[(Who, Who)]| ways.iter().map(|(from, to)| (name(from), name(to))).collect();
        match &self.does {
            Does::Cut(ways, seconds) => Cut::last(network, named(ways), Duration::from_secs(*seconds)).await,
            Does::Flap(ways, seconds) => {
                for _ in 0..*seconds {
                    Cut::last(network, named(ways), HALF).await;
                    tokio::time::sleep(HALF).await;
                }
            }
            Does::Lone(who, seconds) => {
                let own = name(who);
                let others = network.names().filter(|other| *other != own).map(str::to_owned);
                let both = others.flat_map(|other| [(own.clone(), other.clone()), (other, own.clone())]);
                Cut::last(network, both.collect(), Duration::from_secs(*seconds)).await;
            }
            Does::Rough { who, lost, kbit, seconds } => {
                let names: Vec<_> = who.iter().map(name).collect();
                names.iter().for_each(|name| network.roughen(name, *lost, *kbit));
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                names.iter().for_each(|name| network.smooth(name));
            }
            _ => {}
        }
    }
}

// === impl Cut ===

impl<'a> Cut<'a> {
    /// For some time.
    pub async fn last(network: &'a Network, ways: Vec<(String, String)>, time: Duration) {
        ways.iter().for_each(|(from, to)| network.cut(from, to));
        let _cut = Self { network, ways };
        tokio::time::sleep(time).await;
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.ways.iter().for_each(|(from, to)| self.network.mend(from, to));
    }
}
