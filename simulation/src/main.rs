//! Runs seeds of the simulation: `baton-simulation seed N` one, in this
//! process; `baton-simulation seeds FROM TO` many, each in a process of its own.

use std::{
    env,
    error::Error,
    io::{self, Write},
    ops::Range,
    process::{Command, ExitCode, Output},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use baton_simulation::{run, system, trace::Trace};

const USAGE: &str = "baton-simulation seed N [--shown | --unguarded] | seeds FROM TO";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["seed", seed] => one(seed.parse()?, false, true),
        ["seed", seed, "--shown"] => one(seed.parse()?, true, true),
        ["seed", seed, "--unguarded"] => one(seed.parse()?, false, false),
        ["seeds", from, to] => many(from.parse()?..to.parse()?),
        _ => Err(USAGE.into()),
    }
}

fn one(seed: u64, is_shown: bool, is_guarded: bool) -> Result<ExitCode, Box<dyn Error>> {
    // Before the first hash map, whose keys are a thread's for good.
    system::begin(seed);
    let report = run::run(seed, &Trace::begin(is_shown), is_guarded)?;
    let (hash, lasted, outcomes) = (&report.hash, report.lasted.as_secs(), &report.outcomes);
    let mut out = io::stdout().lock();
    writeln!(out, "seed {seed}: {hash} after {lasted} s of its time: {outcomes:?}")?;
    for wrong in &report.wrong {
        writeln!(out, "  {wrong}")?;
    }
    if report.wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &report.faults {
        writeln!(out, "  fault: {fault:?}")?;
    }
    Ok(ExitCode::FAILURE)
}

/// As many at a time as the machine has cores.
fn many(seeds: Range<u64>) -> Result<ExitCode, Box<dyn Error>> {
    let this = env::current_exe()?;
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let work = || -> io::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(());
            }
            let Output { status, stdout, stderr } =
                Command::new(&this).args(["seed", &seed.to_string()]).output()?;
            if !status.success() {
                failed.fetch_add(1, Ordering::Relaxed);
                let mut out = io::stdout().lock();
                writeln!(out, "FAILED, again by: just sim-seed {seed}")?;
                out.write_all(&stdout)?;
                out.write_all(&stderr)?;
            }
        }
    };
    let workers = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a worker died"))?)
    })?;
    let failed = failed.into_inner();
    writeln!(io::stdout(), "{} seeds, {failed} failed", seeds.end - seeds.start)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
