//! The table for people.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{cell::Cell, phases::PHASES, rows::FAULTS};

/// What came of each cell, by row and column.
pub struct Table(pub BTreeMap<(usize, usize), Result<Cell, String>>);

const HEAD: &str = "# Faults by phase

`scripts/chaos` writes this file: clusters of processes over a real etcd, two prefill nodes, three decode nodes, one coordinator, mock backend. A streamed request of two drawn answers is brought into a phase, then something happens to the process that it is on. Every token is compared with what it must be; so are those of other requests beside it, which must be whole in every cell but where their coordinator dies, and, where a client or an operator ends the request, are absent. Afterwards every page of every node must be free within the bound, and every node must be ready and announced.

A prompt is one step of the mock, up to 1.6 s long: a step that has begun ends before its pages are free. Requests beside one whose decode node is killed twice would be suspected like it, so there are none.

Where a way is cut, each worker and etcd are machines of their own (namespaces, with an address and certificates each), and what one says to another vanishes, as in a network that has lost it; etcd is called by name there; the coordinator and the callers are on one machine. A node whose engine hangs ends its own process after `engine.step_limit_ms`, 5 s here.

Rows of an etcd of three have its members on machines of their own. A member at 5 % of a core is what one with a slow disk is to the others; one with an old disk has forgotten what it acknowledged, and is ended by etcd itself. Packets are lost by a filter of the kernel (`tc`, a classic BPF program that draws a random number), and slow ways have a token bucket with a queue of 0.3 s; a fixed delay needs `netem`, which not every kernel has, and is in the simulation instead.

A cell says what became of the request (`whole`: to the last token, as if nothing had happened; `attempt 2`: it went on on another decode node), then the longest time without a token, if that was 0.2 s or more. The last columns are the longest time until every page was free, counted from the end of the answers, and its bound.

Other faults have tests of their own: slow readers and bodies that break off (`frontend/`), pools that are full (`decode-node/tests/pair/pressure.rs`), prompts that nodes die of (`tests/poison.rs`), watches that are cut and leases that expire (`registry/`), bad peers (`kv-transfer/`), certificates (`tests/certs.rs`), roles that change (`tests/roles.rs`), one of several coordinators (`tests/coordinators.rs`), one of several models (`tests/models.rs`), too many calls (`tests/overload.rs`), disks that are full (`tests/disks.rs`), which coordinator balances while etcd is split (`tests/coordinators.rs`), one build after another (`tests/upgrade.rs`), and every feature of the API while nodes are lost (`tests/matrix.rs`).

";

impl Table {
    /// Cells in which something was wrong.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|((row, column), cell)| {
            let why = cell.as_ref().err()?;
            Some(format!("{} × {}: {why}", FAULTS[*row].name, PHASES[*column].name))
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = PHASES.iter().map(|phase| phase.name).collect();
        writeln!(f, "{HEAD}| | {} | pages free | bound |", names.join(" | "))?;
        writeln!(f, "|---|{}---|---|", "---|".repeat(names.len()))?;
        for (row, fault) in FAULTS.iter().enumerate() {
            let cells: Vec<_> = (0..PHASES.len()).map(|column| self.0.get(&(row, column))).collect();
            let free =
                cells.iter().flatten().filter_map(|cell| cell.as_ref().ok()).map(|cell| cell.free).max();
            let free = free.map_or_else(|| "-".to_owned(), |free| format!("{:.1} s", free.as_secs_f64()));
            let cells: Vec<_> = cells.into_iter().map(words).collect();
            let bound = fault.free_within.as_secs();
            writeln!(f, "| {} | {} | {free} | {bound} s |", fault.name, cells.join(" | "))?;
        }
        Ok(())
    }
}

fn words(cell: Option<&Result<Cell, String>>) -> String {
    match cell {
        None => "-".to_owned(),
        Some(Err(_)) => "**wrong**".to_owned(),
        Some(Ok(cell)) if cell.pause >= Duration::from_millis(200) => {
            format!("{}, {:.1} s", cell.outcome, cell.pause.as_secs_f64())
        }
        Some(Ok(cell)) => cell.outcome.clone(),
    }
}
