//! Clusters of separate processes over a real etcd, mock backend: whatever
//! happens, in whatever phase of a request, every stream is byte-exact or ends
//! in one clear error, and every page comes back.
//!
//! - `faults`: what happens; `rows`: the rows of the table; `cuts`: of these, ways between machines that are closed;
//!   `members`: what befalls an etcd of three
//! - `phases`: where the request stands then, its columns
//! - `case`: a request whose answer is known
//! - `cell`: one of each, and what came of it
//! - `table`: all of it for people
//! - `storm`: faults one after another, by a seed, on one cluster that `callers` keep at work
//! - `soak`: the same callers for a long time, and nothing may grow
//!
//! CI runs some cells. `BATON_CHAOS=whole` runs all of them and writes CHAOS.md (`scripts/chaos`).

mod callers;
mod case;
mod cell;
mod cuts;
mod faults;
mod members;
mod phases;
mod rows;
mod soak;
mod storm;
mod table;

use std::{
    fs,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures::FutureExt;

use self::{
    cell::Cell,
    faults::Fault,
    phases::{CLUSTER, PHASES, Phase},
    rows::FAULTS,
    table::Table,
};

pub use self::case::Case;
pub use self::members::{Harm, MEMBERS, Which, strike_members};
use crate::{
    counts::counts,
    sandbox::{Cluster, Network, Plan, Within, complete, complete_until, enter},
};

/// Bound of design section 3 for pages of a lost node's requests.
const AFTER_LOSS: Duration = Duration::from_secs(30);

/// Slow enough that faults land in the middle: 200 prompt tokens take about
/// 0.2 s to prefill, 40 tokens about 0.4 s to decode.
const SETTINGS: &str = r#"
cluster = "chaos-test"
model = "mock"

[engine]
backend = "mock"
pages = 512

[engine.mock]
prefill_us_per_token = 1000
decode_us_per_sequence = 1000
step_us_base = 8000

[frontend]
listen = "127.0.0.1:0"

[transfer]
frame_bytes = 4096
"#;

fn plan() -> Plan {
    Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_serves_on_while_etcd_is_away() {
    let mut cluster = Cluster::start(&plan()).await;
    cluster.etcd.as_mut().unwrap().kill();
    let away = tokio::time::sleep(Duration::from_secs(counts().etcd_away_seconds));
    for i in 0..counts().requests_without_etcd as u64 {
        let case = Case::new(i, 40, 10, 1);
        case.assert_whole(&complete(&cluster.http, &cluster.url, &case.body).await);
    }
    away.await;
    cluster.etcd.as_mut().unwrap().resume();
    let last = Case::new(999, 40, 10, 2);
    last.assert_whole(&complete(&cluster.http, &cluster.url, &last.body).await);
    cluster.wait_for_members(4).await;
    cluster.wait_until_idle(AFTER_LOSS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_leave_nothing_behind() {
    let cluster = Cluster::start(&plan()).await;
    let cases: Vec<_> = (0..counts().disconnects as u64)
        .map(|i| Case::new(i, 30 + (i as usize * 37) % 200, 60, 1 + (i % 3) as u32))
        .collect();
    for wave in cases.chunks(8) {
        let (http, url) = (&cluster.http, &cluster.url);
        let streams = wave.iter().enumerate().map(|(i, case)| async move {
            let leave_after = (i * 13) % 50;
            let answer =
                complete_until(http, url, &case.body, |answer| answer.texts[0].len() > leave_after).await;
            case.assert_prefix(&answer);
        });
        futures::future::join_all(streams).await;
    }
    cluster.wait_until_idle(Duration::from_secs(counts().clean_cancel_seconds)).await;
}

/// Each phase has a cluster, a thread and a runtime of its own: most of the time is waiting.
#[test]
fn every_fault_in_every_phase() {
    let within = enter("chaos::every_fault_in_every_phase");
    if within == Within::Done {
        return;
    }
    let has_network = within == Within::Own;
    assert!(
        has_network || !is_whole(),
        "cutting nodes off needs namespaces (unshare, ip), which this system does not give"
    );
    if !has_network {
        println!("this system gives no network of its own: nobody is cut off");
    }
    assert!(Network::has_clocks() || !is_whole(), "setting clocks needs libfaketime");
    let run = |column| tokio::runtime::Runtime::new().unwrap().block_on(run_column(column, has_network));
    let table = std::thread::scope(|scope| {
        let columns: Vec<_> = (0..PHASES.len()).map(|column| scope.spawn(move || run(column))).collect();
        Table(columns.into_iter().flat_map(|column| column.join().unwrap()).collect())
    });
    if is_whole() {
        fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/CHAOS.md"), table.to_string()).unwrap();
    }
    let wrong: Vec<_> = table.wrong().collect();
    assert!(wrong.is_empty(), "{} cells are wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// Every fault in one phase; cells by row and column.
async fn run_column(column: usize, has_network: bool) -> Vec<((usize, usize), Result<Cell, String>)> {
    let (phase, mut cluster, mut cells) = (&PHASES[column], None, Vec::new());
    for (row, fault) in FAULTS.iter().enumerate() {
        let then = fault.then.chars().nth(column).unwrap();
        let is_wanted = is_whole() || fault.in_ci.contains(phase.letter);
        let is_possible = !fault.is_of_network() || has_network;
        if then == '-' || !is_wanted || !is_possible {
            continue;
        }
        let begun = Instant::now();
        let number = (row * PHASES.len() + column) as u64;
        let cell = run_cell(&mut cluster, (phase, fault), (number, then)).await;
        let what = cell.as_ref().map_or_else(Clone::clone, |cell| cell.outcome.clone());
        println!("{} × {}: {what}, took {:.1?}", fault.name, phase.name, begun.elapsed());
        cells.push(((row, column), cell));
    }
    cells
}

/// Runs a cell on the phase's cluster, which is there from the cell before unless something went wrong with it.
async fn run_cell(
    cluster: &mut Option<Cluster>,
    (phase, fault): (&Phase, &Fault),
    (number, then): (u64, char),
) -> Result<Cell, String> {
    let apart = fault.is_of_network();
    let mut own = match (cluster.take(), fault.frames()) {
        (Some(cluster), None)
            if cluster.network.is_some() == apart && cluster.etcd.as_ref().unwrap().has(fault.members()) =>
        {
            cluster
        }
        (before, frames) => {
            drop(before);
            let plan = Plan { settings: phase.settings(frames), prefill: 2, decode: 3 };
            if apart {
                Cluster::start_apart(&plan, (CLUSTER, phase.letter as u8), fault.members()).await
            } else {
                Cluster::start(&plan).await
            }
        }
    };
    let ran = AssertUnwindSafe(cell::run(&mut own, phase, fault, (number, then))).catch_unwind().await;
    match ran {
        Ok(cell) => {
            *cluster = Some(own).filter(|_| fault.frames().is_none());
            Ok(cell)
        }
        Err(panic) => {
            for (name, process) in &own.nodes {
                println!("--- {name} ---\n{}", process.output());
            }
            let words = panic.downcast_ref::<String>().cloned();
            Err(words
                .or_else(|| panic.downcast_ref().map(|words: &&str| (*words).to_owned()))
                .unwrap_or_default())
        }
    }
}

/// Whether all of the table is run.
pub fn is_whole() -> bool {
    std::env::var("BATON_CHAOS").is_ok_and(|value| value == "whole")
}
