use super::*;
use crate::simulate::{
    Limits, Link,
    presets::{Gpu, ModelShape},
};

const LLAMA_8B: &str = include_str!("../../../shapes/llama-3.1-8b/config.json");

fn h100(gbit: f64) -> Machine {
    let link = Link { bytes_per_second: gbit * 1e9 / 8.0, ..Link::default() };
    let model = ModelShape::parse(LLAMA_8B).unwrap();
    Gpu::named("h100").unwrap().machine(&model, Limits::default(), link).unwrap()
}

const TASK: Task =
    Task { rate: 20.0, prompt: 4096, cached: 0, output: 256, ttft_ms: 500.0, itl_ms: 15.0, target: 0.9 };

#[test]
fn long_prompts_and_tight_gaps_are_split_and_a_little_load_is_not() {
    let plan = Plan::of(TASK, &h100(400.0));
    assert_eq!(plan.pick, Pick::Split, "{plan}");
    assert!(plan.limits[0].rate >= TASK.rate, "{plan}");
    // Ten times the load takes about ten times the nodes, and never fewer.
    let more = Plan::of(Task { rate: 200.0, ..TASK }, &h100(400.0));
    let nodes = |plan: &Plan| plan.cluster().unwrap().nodes();
    assert!((5 * nodes(&plan)..11 * nodes(&plan)).contains(&nodes(&more)), "{plan}{more}");

    let little = Plan::of(Task { rate: 0.1, prompt: 256, itl_ms: 100.0, ..TASK }, &h100(400.0));
    assert_eq!((little.pick, little.cluster().unwrap().local), (Pick::Local, 1), "{little}");
    assert!(little.to_string().contains("do not split"), "{little}");
}

#[test]
fn a_slow_link_shows_and_short_answers_do_not_bear_it() {
    let task = Task { output: 50, ..TASK };
    let (fast, slow) = (Plan::of(task, &h100(400.0)), Plan::of(task, &h100(4.0)));
    assert!(fast.split.is_some() && slow.split.is_none(), "{fast}{slow}");
    assert!(slow.exposed_ms > 900.0 && slow.reasons.iter().any(|why| why.contains("do not split")), "{slow}");
    assert_eq!(fast.hiding_bytes_per_second, slow.hiding_bytes_per_second);
}

#[test]
fn budgets_that_no_number_of_nodes_keeps_are_said() {
    let plan = Plan::of(Task { ttft_ms: 20.0, ..TASK }, &h100(400.0));
    assert_eq!((plan.pick, plan.cluster()), (Pick::Neither, None), "{plan}");
    assert!(plan.reasons[0].contains("a prompt alone takes"), "{plan}");
    let plan = Plan::of(Task { itl_ms: 2.0, ..TASK }, &h100(400.0));
    assert!(plan.reasons.iter().any(|why| why.contains("a step with one answer")), "{plan}");
    assert!(Task { rate: -1.0, ..TASK }.check().is_err() && Task { cached: 5000, ..TASK }.check().is_err());
    TASK.check().unwrap();
}

#[test]
fn a_simulation_finds_the_pick_in_time() {
    for task in [TASK, Task { rate: 3.0, prompt: 1000, itl_ms: 60.0, ..TASK }] {
        let (plan, machine) = (Plan::of(task, &h100(400.0)), h100(400.0));
        let verified = verify(&plan, &machine, 2000).unwrap().unwrap();
        assert!(verified.attainment >= task.target - 0.03, "{plan}{verified}");
    }
}
