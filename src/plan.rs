//! `baton plan`.

use anyhow::{Context, Result, ensure};
use baton_lab::{
    plan::{Plan, Task, verify},
    simulate::{ClusterShape, Machine, MachineShape},
};
use serde_json::json;

use crate::{args, simulate, terminal::say};

/// Prints the plan.
///
/// # Errors
/// When a number means nothing, or there is no such machine.
pub fn run(args: &args::Plan) -> Result<()> {
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
    let machines = machines(args, &shape)?;
    let plan = Plan::cheapest(task, &machines).context("a plan needs a number of cards")?;
    let machine = machines.iter().find(|(cards, _)| *cards == plan.cards).map(|(_, machine)| machine);
    let verified = match (args.verify, machine) {
        (Some(requests), Some(machine)) => verify(&plan, machine, requests)?,
        _ => None,
    };
    if args.json {
        say(serde_json::to_string_pretty(&json!({ "plan": plan, "simulated": verified }))?);
    } else {
        say(plan.to_string().trim_end());
        verified.iter().for_each(say);
    }
    Ok(())
}

/// Nodes by their number of cards: those that hold the model.
fn machines(args: &args::Plan, shape: &MachineShape) -> Result<Vec<(usize, Machine)>> {
    let config = simulate::config(shape)?;
    if let Some(path) = &args.machine.fit {
        ensure!(args.tensor_parallel == [1], "what was measured is a node's: it says nothing of more cards");
        let machine = shape.machine(config.as_deref())?;
        let fitted = simulate::fitted(path, &ClusterShape::default(), &machine)?;
        return Ok(vec![(1, fitted.on(machine))]);
    }
    let (mut machines, mut refused) = (Vec::new(), None);
    for &cards in &args.tensor_parallel {
        match shape.machine_of(cards, config.as_deref()) {
            Ok(machine) => machines.push((cards, machine)),
            Err(error) => refused = Some(error),
        }
    }
    // Of those that cannot be, the last one says why.
    refused.filter(|_| machines.is_empty()).map_or(Ok(machines), |error| Err(error.into()))
}
