//! What happens, and what may become of the request that it happens to.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{cell::Others, phases::HANGS_BY};
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
    /// etcd's name has no address for so many seconds, and all connections to it break.
    Nameless(u64),
    /// Its time of day is so many seconds off for 10.
    Clock(Who, i64),
    /// A step of its engine does not end.
    Hang(Who),
    /// It runs 5 ms of each 100, for so many seconds.
    Starve(Who, u64),
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

const SOON: Duration = Duration::from_secs(2);
const LOSS: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(35);
/// Of a process that gets a twentieth of a processor.
const STOPPED: Duration = Duration::from_millis(95);
const RUNS: Duration = Duration::from_millis(5);

/// `=`: whole and byte-exact. `E`: one clear error. `B`: the connection breaks. `X`: nobody is there to be answered.
pub const FAULTS: &[Fault] = &[
    Fault { name: "client closes", does: Does::Leave, then: "XXXXX", free_within: SOON, in_ci: "QPTDS" },
    Fault { name: "operator cancels", does: Does::Cancel, then: "EEEEE", free_within: SOON, in_ci: "" },
    Fault { name: "deadline passes", does: Does::Deadline, then: "EEEEE", free_within: SOON, in_ci: "" },
    Fault {
        name: "prefill node killed",
        does: Does::Kill(&[Who::Prefill]),
        then: "=====",
        free_within: LOSS,
        in_ci: "PT",
    },
    Fault {
        name: "decode node killed",
        does: Does::Kill(&[Who::Decode]),
        then: "=====",
        free_within: LOSS,
        in_ci: "PTDS",
    },
    Fault {
        name: "both its nodes killed",
        does: Does::Kill(&[Who::Decode, Who::Prefill]),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    // Two nodes that die of a prompt without a token are enough.
    Fault {
        name: "two decode nodes killed in turn",
        does: Does::KillTwice,
        then: "=E=E=",
        free_within: LOSS,
        in_ci: "S",
    },
    Fault {
        name: "prefill node stopped 2 s",
        does: Does::Stop(Who::Prefill, 2),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "prefill node stopped 10 s",
        does: Does::Stop(Who::Prefill, 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "P",
    },
    Fault {
        name: "decode node stopped 2 s",
        does: Does::Stop(Who::Decode, 2),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "decode node stopped 10 s",
        does: Does::Stop(Who::Decode, 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "S",
    },
    Fault {
        name: "prefill node ended (SIGTERM)",
        does: Does::Term(Who::Prefill),
        then: "=====",
        free_within: LOSS,
        in_ci: "P",
    },
    Fault {
        name: "decode node ended (SIGTERM)",
        does: Does::Term(Who::Decode),
        then: "=====",
        free_within: LOSS,
        in_ci: "S",
    },
    Fault {
        name: "coordinator killed",
        does: Does::Kill(&[Who::Coordinator]),
        then: "BBBBB",
        free_within: LOSS,
        in_ci: "S",
    },
    Fault {
        name: "coordinator ended (SIGTERM)",
        does: Does::Term(Who::Coordinator),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "coordinator stopped 5 s",
        does: Does::Stop(Who::Coordinator, 5),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    // Nodes give up a coordinator that does not answer for so long.
    Fault {
        name: "coordinator stopped 40 s",
        does: Does::Stop(Who::Coordinator, 40),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "workers renewed one by one",
        does: Does::Renew,
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "etcd killed for 10 s",
        does: Does::EtcdKilled(10),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "decode node killed while etcd is away",
        does: Does::DecodeKilledWithoutEtcd(5),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "etcd stopped 20 s",
        does: Does::EtcdStopped(20),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault { name: "etcd emptied", does: Does::EtcdEmptied, then: "=====", free_within: LOSS, in_ci: "S" },
    Fault {
        name: "the decode node's engine hangs",
        does: Does::Hang(Who::Decode),
        then: "-====",
        free_within: LOSS,
        in_ci: "D",
    },
    Fault {
        name: "the prefill node's engine hangs",
        does: Does::Hang(Who::Prefill),
        then: "-=---",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "decode node at 5 % of a core, 10 s",
        does: Does::Starve(Who::Decode, 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "prefill node at 5 % of a core, 10 s",
        does: Does::Starve(Who::Prefill, 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "no way between coordinator and decode node, 10 s",
        does: Does::Cut(&[(Who::Coordinator, Who::Decode), (Who::Decode, Who::Coordinator)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "S",
    },
    Fault {
        name: "no way from the decode node to the coordinator, 10 s",
        does: Does::Cut(&[(Who::Decode, Who::Coordinator)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "no way between its nodes, 10 s",
        does: Does::Cut(&[(Who::Prefill, Who::Decode), (Who::Decode, Who::Prefill)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "T",
    },
    Fault {
        name: "no way from the prefill to the decode node, 10 s",
        does: Does::Cut(&[(Who::Prefill, Who::Decode)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "no way from the decode to the prefill node, 10 s",
        does: Does::Cut(&[(Who::Decode, Who::Prefill)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "the way between its nodes opens and closes, 1 Hz, 10 s",
        does: Does::Flap(&[(Who::Prefill, Who::Decode), (Who::Decode, Who::Prefill)], 10),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "decode node out of reach for all, 20 s",
        does: Does::Lone(Who::Decode, 20),
        then: "=====",
        free_within: SILENCE,
        in_ci: "",
    },
    Fault {
        name: "no way between decode node and etcd, 20 s",
        does: Does::Cut(&[(Who::Etcd, Who::Decode), (Who::Decode, Who::Etcd)], 20),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "no way between coordinator and etcd, 20 s",
        does: Does::Cut(&[(Who::Etcd, Who::Coordinator), (Who::Coordinator, Who::Etcd)], 20),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "etcd's name has no address, 20 s",
        does: Does::Nameless(20),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "decode node's clock an hour ahead, 10 s",
        does: Does::Clock(Who::Decode, 3600),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "decode node's clock an hour behind, 10 s",
        does: Does::Clock(Who::Decode, -3600),
        then: "=====",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "bits of frames flipped",
        does: Does::Frames("corrupt_probability = 0.2\ndelay_probability = 1.0\nmax_delay_ms = 150\n"),
        then: "--=--",
        free_within: LOSS,
        in_ci: "",
    },
    Fault {
        name: "frames lost and reordered",
        does: Does::Frames(
            "drop_probability = 0.1\nreorder_probability = 0.2\ndelay_probability = 1.0\nmax_delay_ms = 150\n",
        ),
        then: "--=--",
        free_within: LOSS,
        in_ci: "",
    },
];

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
            // The client does the first and the third, and the last is always so.
            Does::Leave | Does::Deadline | Does::Frames(_) => Vec::new(),
            Does::Cancel => {
                let id = request["id"].as_str().unwrap();
                Operator::of(cluster).does(&["cancel", id]).await.unwrap();
                Vec::new()
            }
            Does::Kill(them) => {
                let gone: Vec<_> = them.iter().map(name).collect();
                gone.iter().for_each(|node| cluster.kill(node));
                gone
            }
            Does::KillTwice => kill_twice(cluster, request, name(&Who::Decode)).await,
            Does::Stop(who, seconds) => {
                cluster.nodes[&name(who)].signal("STOP");
                sleep(*seconds).await;
                cluster.nodes[&name(who)].signal("CONT");
                Vec::new()
            }
            Does::Cut(..) | Does::Flap(..) | Does::Lone(..) => {
                self.cut(cluster.network.as_ref().unwrap(), name).await;
                Vec::new()
            }
            Does::Clock(who, off) => {
                let network = cluster.network.as_ref().unwrap();
                network.set_clock(&name(who), *off);
                sleep(10).await;
                network.set_clock(&name(who), 0);
                Vec::new()
            }
            Does::Hang(who) => {
                hang(cluster, &name(who));
                vec![name(who)]
            }
            Does::Starve(who, seconds) => {
                starve(&cluster.nodes[&name(who)], Duration::from_secs(*seconds)).await;
                Vec::new()
            }
            Does::Term(who) => {
                cluster.nodes[&name(who)].signal("TERM");
                vec![name(who)]
            }
            Does::Renew => {
                renew(cluster).await;
                Vec::new()
            }
            Does::EtcdKilled(_)
            | Does::DecodeKilledWithoutEtcd(_)
            | Does::EtcdStopped(_)
            | Does::Nameless(_)
            | Does::EtcdEmptied => {
                let gone = matches!(self.does, Does::DecodeKilledWithoutEtcd(_)).then(|| name(&Who::Decode));
                self.strike_etcd(cluster, gone.as_deref()).await;
                gone.into_iter().collect()
            }
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
    fn name(&self, request: &Value) -> String {
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

/// It runs 5 ms of each 100.
async fn starve(process: &Process, time: Duration) {
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
