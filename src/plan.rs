//! `baton plan`.

use anyhow::{Result, ensure};
use baton_lab::{
    plan::{Plan, Task, verify},
    simulate::{ClusterShape, MachineShape},
};
use serde_json::json;

use crate::{args, simulate, terminal::say};

/// Prints the plan.
///
/// # Errors
/// When a number means nothing, or there is no such machine.
pub fn run(args: &args::Plan) -> Result<()> {
    ensure!(
        args.tensor_parallel == 1,
        "a node's model lies whole on one card: the engine has no tensor parallelism yet"
    );
    let task = Task {
        rate: args.rate,
        prompt: args.prompt,
        cached: args.cached,
        output: args.output,
        ttft_ms: args.ttft_ms,
        itl_ms: args.itl_ms,
        target: args.target,
    };
    task.check()?;
    let shape = args.machine.over(MachineShape::default());
    let mut machine = shape.machine(simulate::config(&shape)?.as_deref())?;
    if let Some(path) = &args.machine.fit {
        let measured = ClusterShape::default();
        machine = simulate::fitted(path, &measured, &machine)?.on(machine);
    }
    let plan = Plan::of(task, &machine);
    let verified = match args.verify {
        Some(requests) => verify(&plan, &machine, requests)?,
        None => None,
    };
    if args.json {
        say(serde_json::to_string_pretty(&json!({ "plan": plan, "simulated": verified }))?);
    } else {
        say(plan.to_string().trim_end());
        verified.iter().for_each(say);
    }
    Ok(())
}
