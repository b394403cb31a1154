//! An etcd of three members, some of which are ended, cut off, slow, or have an old disk.

use std::{collections::BTreeSet, time::Duration};

use super::{
    cuts::Cut,
    faults::{Does, Fault, starve},
};
use crate::sandbox::{Cluster, Etcd};

/// Of which members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Leader,
    Follower,
    /// The leader and a follower: what is left is no majority.
    Majority,
    All,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL, and there again after so many seconds.
    Killed(u64),
    /// No way between them and the other members for so many seconds; everybody else reaches them.
    Split(u64),
    /// No way between them and anybody.
    Alone(u64),
    /// They run 5 ms of each 100, for so many seconds, as with a disk that is too slow.
    Starved(u64),
    /// They are ended and have the disk of before any node was announced, for so many seconds: forever, where
    /// all have it.
    OldDisk(u64),
}

/// Their names.
pub const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];

impl Fault {
    /// The members of the etcd that it needs.
    pub fn members(&self) -> &'static [&'static str] {
        if matches!(self.does, Does::Members(..)) { &MEMBERS } else { &["etcd"] }
    }
}

/// Does it to an etcd of several members, for as long as it lasts.
pub async fn strike_members(cluster: &mut Cluster, which: Which, harm: Harm) {
    let etcd = cluster.etcd.as_mut().unwrap();
    let (leader, follower) = etcd.leader().await;
    let names: Vec<String> = etcd.names().map(str::to_owned).collect();
    let them = match which {
        Which::Leader => vec![leader],
        Which::Follower => vec![follower],
        Which::Majority => vec![leader, follower],
        Which::All => names.clone(),
    };
    let (Harm::Killed(seconds)
    | Harm::Split(seconds)
    | Harm::Alone(seconds)
    | Harm::Starved(seconds)
    | Harm::OldDisk(seconds)) = harm;
    let time = Duration::from_secs(seconds);
    match harm {
        Harm::Killed(_) => {
            them.iter().for_each(|name| etcd.kill_member(name));
            tokio::time::sleep(time).await;
            etcd.resume();
        }
        Harm::OldDisk(_) => old_disk(etcd, &them, time).await,
        Harm::Starved(_) => {
            let starving = them.iter().map(|name| starve(etcd.process(name), time));
            futures::future::join_all(starving).await;
        }
        Harm::Split(_) | Harm::Alone(_) => {
            let network = cluster.network.as_ref().unwrap();
            let is_there = |name: &String| harm == Harm::Alone(seconds) || names.contains(name);
            let others = network.names().map(str::to_owned).filter(is_there);
            // Of all members, each is cut off from each.
            let others: Vec<_> =
                others.filter(|other| which == Which::All || !them.contains(other)).collect();
            let pairs =
                them.iter().flat_map(|own| others.iter().map(move |other| (own.clone(), other.clone())));
            let pairs = pairs.filter(|(own, other)| own != other);
            // Each way once, though two may be cut off from each other.
            let ways: BTreeSet<_> =
                pairs.flat_map(|(own, other)| [(own.clone(), other.clone()), (other, own)]).collect();
            Cut::last(network, ways.into_iter().collect(), time).await;
        }
    }
}

async fn old_disk(etcd: &mut Etcd, them: &[String], time: Duration) {
    them.iter().for_each(|name| etcd.kill_member(name));
    let is_all = them.len() == etcd.names().count();
    etcd.give_old_disks();
    // A member that has forgotten what it once acknowledged is ended by etcd itself.
    etcd.try_to_resume();
    tokio::time::sleep(time).await;
    if !is_all {
        them.iter().for_each(|name| etcd.kill_member(name));
        etcd.give_own_disks();
        etcd.resume();
    }
}
