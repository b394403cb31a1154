//! What happens, and what may become of the request that it happens to.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    cell::Others,
    members::{Harm, Which, strike_members},
    phases::HANGS_BY,
};
use crate::sandbox::{Cluster, Operator, PATIENCE, Process, eventually};

/// A row of the table.
pub struct Fault {
    pub name: &'static str,
    pub does: Does,
    /// What becomes of the request, by phase in the order of the table; `-`: there is no such case.
    pub then: &'static str,
    /// Pages of the request must be free so long after its end, or after the fault if that was later.
    pub free_within: Duration,
    /// Phases that CI runs, by letter.
    pub in_ci: &'static str,
}

/// What is done.
pub enum Does {
    /// The client closes its connection.
    Leave,
    /// An operator cancels the request.
    Cancel,
    /// Its deadline passes.
    Deadline,
    /// SIGKILL, one after another without a pause.
    Kill(&'static [Who]),
    /// SIGKILL to its decode node, and again to the next one when that is at work.
    KillTwice,
    /// SIGSTOP, and SIGCONT after so many seconds.
    Stop(Who, u64),
    /// SIGTERM.
    Term(Who),
    /// Every worker is ended by SIGTERM and started again, one after another.
    Renew,
    /// etcd is killed, and started again after so many seconds.
    EtcdKilled(u64),
    /// etcd is killed, its decode node too, and etcd is back after so many seconds.
    DecodeKilledWithoutEtcd(u64),
    /// etcd is stopped for so many seconds.
    EtcdStopped(u64),
    /// etcd is killed and starts with nothing.
    EtcdEmptied,
    /// What the first of each pair says to the second vanishes for so many seconds.
    Cut(&'static [(Who, Who)], u64),
    /// The same each other half second.
    Flap(&'static [(Who, Who)], u64),
    /// What it says, and what it is told, vanishes for so many seconds.
    Lone(Who, u64),
    /// What they say loses so many packets of a hundred, and is slow, for so many seconds.
    Rough { who: &'static [Who], lost: u32, kbit: u32, seconds: u64 },
    /// etcd's name has no address for so many seconds, and all connections to it break.
    Nameless(u64),
    /// Its time of day is so many seconds off for 10.
    Clock(Who, i64),
    /// A step of its engine does not end.
    Hang(Who),
    /// It runs 5 ms of each 100, for so many seconds.
    Starve(Who, u64),
    /// It gets no more memory for so many seconds, which it may die of.
    Choke(Who, u64),
    /// Something befalls members of an etcd that has three.
    Members(Which, Harm),
    /// Frames of all nodes are disturbed all the time, in words of section `transfer.faults`.
    Frames(&'static str),
}

/// A process, as the request has it.
#[derive(Clone, Copy)]
pub enum Who {
    /// The prefill node that it was sent to.
    Prefill,
    /// The decode node that it is on.
    Decode,
    Coordinator,
    Etcd,
}

/// Of a process that gets a twentieth of a processor.
const STOPPED: Duration = Duration::from_millis(95);
const RUNS: Duration = Duration::from_millis(5);

impl Fault {
    /// Whether the other requests are let be. Without them it is seen how soon pages of this one are free.
    pub fn others(&self) -> Others {
        match self.does {
            Does::Leave | Does::Cancel | Does::Deadline => Others::Absent,
            // Others would be suspected as well.
            Does::KillTwice => Others::Absent,
            Does::Kill([Who::Coordinator]) => Others::Cut,
            _ => Others::Whole,
        }
    }

    /// Disturbances of frames, if it is that.
    pub fn frames(&self) -> Option<&'static str> {
        if let Does::Frames(frames) = self.does { Some(frames) } else { None }
    }

    /// Does it to a request that stands in its phase. Who is to be started again afterwards.
    pub async fn strike(&self, cluster: &mut Cluster, request: &Value) -> Vec<String> {
        let name = |who: &Who| who.name(request);
        match &self.does {
            Does::Kill(them) => {
                let gone: Vec<_> = them.iter().map(name).collect();
                gone.iter().for_each(|node| cluster.kill(node));
                gone
            }
            Does::KillTwice => kill_twice(cluster, request, name(&Who::Decode)).await,
            Does::Hang(who) => {
                hang(cluster, &name(who));
                vec![name(who)]
            }
            Does::Choke(who, seconds) => {
                let dies = choke(cluster.nodes.get_mut(&name(who)).unwrap(), *seconds).await;
                dies.then(|| name(who)).into_iter().collect()
            }
            Does::Term(who) => {
                cluster.nodes[&name(who)].signal("TERM");
                vec![name(who)]
            }
            Does::DecodeKilledWithoutEtcd(_) => {
                let gone = name(&Who::Decode);
                self.strike_etcd(cluster, Some(&gone)).await;
                vec![gone]
            }
            _ => {
                self.trouble(cluster, request).await;
                Vec::new()
            }
        }
    }

    /// The same, where nobody is gone by it.
    async fn trouble(&self, cluster: &mut Cluster, request: &Value) {
        let name = |who: &Who| who.name(request);
        match &self.does {
            // The client does the first and the third, and the last is always so.
            Does::Leave | Does::Deadline | Does::Frames(_) => {}
            Does::Cancel => {
                let id = request["id"].as_str().unwrap();
                Operator::of(cluster).does(&["cancel", id]).await.unwrap();
            }
            Does::Stop(who, seconds) => {
                cluster.nodes[&name(who)].signal("STOP");
                sleep(*seconds).await;
                cluster.nodes[&name(who)].signal("CONT");
            }
            Does::Cut(..) | Does::Flap(..) | Does::Lone(..) | Does::Rough { .. } => {
                self.cut(cluster.network.as_ref().unwrap(), name).await;
            }
            Does::Clock(who, off) => {
                let network = cluster.network.as_ref().unwrap();
                network.set_clock(&name(who), *off);
                sleep(10).await;
                network.set_clock(&name(who), 0);
            }
            Does::Starve(who, seconds) => {
                starve(&cluster.nodes[&name(who)], Duration::from_secs(*seconds)).await;
            }
            Does::Members(which, harm) => strike_members(cluster, *which, *harm).await,
            Does::Renew => renew(cluster).await,
            _ => self.strike_etcd(cluster, None).await,
        }
    }

    /// Does it to etcd, and kills a node while it is away.
    async fn strike_etcd(&self, cluster: &mut Cluster, dies: Option<&str>) {
        match &self.does {
            Does::EtcdKilled(seconds) | Does::DecodeKilledWithoutEtcd(seconds) => {
                cluster.etcd.as_mut().unwrap().kill();
                dies.into_iter().for_each(|node| cluster.kill(node));
                sleep(*seconds).await;
                cluster.etcd.as_mut().unwrap().resume();
            }
            Does::EtcdStopped(seconds) => {
                cluster.etcd.as_ref().unwrap().signal("STOP");
                sleep(*seconds).await;
                cluster.etcd.as_ref().unwrap().signal("CONT");
            }
            Does::Nameless(seconds) => {
                cluster.network.as_ref().unwrap().set_named(false);
                cluster.etcd.as_mut().unwrap().kill();
                cluster.etcd.as_mut().unwrap().resume();
                sleep(*seconds).await;
                cluster.network.as_ref().unwrap().set_named(true);
            }
            _ => cluster.etcd.as_mut().unwrap().empty(),
        }
    }
}

impl Who {
    /// The process's name. One that a request in line has not got yet may be any.
    pub(super) fn name(&self, request: &Value) -> String {
        let name = match self {
            Self::Prefill => request["prefill"].as_str().unwrap_or("prefill-1"),
            Self::Decode => request["decode"].as_str().unwrap_or("decode-1"),
            Self::Coordinator => "coordinator",
            Self::Etcd => "etcd",
        };
        name.to_owned()
    }
}

/// Its engine hangs, and by that its process ends.
fn hang(cluster: &mut Cluster, node: &str) {
    let process = cluster.nodes.get_mut(node).unwrap();
    let told = Path::new(HANGS_BY).join(process.id().to_string());
    std::fs::create_dir_all(HANGS_BY).unwrap();
    std::fs::write(&told, "").unwrap();
    tokio::task::block_in_place(|| process.wait_for_exit(PATIENCE));
    std::fs::remove_file(told).unwrap();
}

/// It gets no more memory for a while. Whether it dies of that.
async fn choke(process: &mut Process, seconds: u64) -> bool {
    process.may_grow(false);
    sleep(seconds).await;
    let dies = process.has_ended();
    if !dies {
        process.may_grow(true);
    }
    dies
}

/// It runs 5 ms of each 100.
pub async fn starve(process: &Process, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        process.signal("STOP");
        tokio::time::sleep(STOPPED).await;
        process.signal("CONT");
        tokio::time::sleep(RUNS).await;
    }
}

async fn sleep(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// The second one dies as soon as it has the request. One that waits in line has none: any will do.
async fn kill_twice(cluster: &mut Cluster, request: &Value, first: String) -> Vec<String> {
    cluster.kill(&first);
    let operator = Operator::of(cluster);
    let second = if request["decode"].is_null() {
        "decode-2".to_owned()
    } else {
        eventually("the next node", || async {
            let now = operator.request(&cluster.http, &request["id"]).await?;
            let node = now["decode"].as_str().filter(|node| **node != first)?.to_owned();
            let pages = cluster.pages(&node).await?;
            (pages.running + pages.receiving > 0 && now["stage"] != "routed").then_some(node)
        })
        .await
    };
    cluster.kill(&second);
    vec![first, second]
}

async fn renew(cluster: &mut Cluster) {
    let workers: Vec<_> = cluster.nodes.keys().filter(|node| *node != "coordinator").cloned().collect();
    let all = workers.len();
    for node in workers {
        let mut process = cluster.nodes.remove(&node).unwrap();
        process.signal("TERM");
        tokio::task::block_in_place(|| process.wait_for_exit(PATIENCE));
        cluster.start_node(&node);
        cluster.wait_for_members(all).await;
    }
}
