//! `baton simulate` and `baton plan`, as people run them.

use std::{path::Path, process::Command};

use baton_lab::{
    report::RunFile,
    simulate::{ClusterShape, ScenarioFile},
};

/// Runs `baton`; whether it ended well, and what it said.
fn baton(words: &str) -> (bool, String) {
    let args = words.split_whitespace();
    let output = Command::new(env!("CARGO_BIN_EXE_baton"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (output.status.success(), said.concat())
}

#[test]
fn every_scenario_of_the_repository_can_be_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root.join("scenarios")).unwrap() {
        let path = entry.unwrap().path();
        let mut file: ScenarioFile = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let shape = root.join("shapes").join(file.machine.shape.as_deref().unwrap()).join("config.json");
        file.workload.sessions = 10;
        file.scenario(Some(&std::fs::read_to_string(shape).unwrap())).unwrap();
    }
}

#[test]
fn a_simulation_says_what_came_of_it_and_agrees_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let [json, html, csv] = ["run.json", "run.html", "run.csv"].map(|name| dir.path().join(name));
    let cluster = "simulate --prefill 2 --decode 3 --gpu h100 --shape llama-3.1-8b --policy predicted";
    let smaller = "simulate --prefill 1 --decode 1 --gpu l40s --shape llama-3.1-8b";
    let (ok, said) = baton(&format!(
        "{cluster} --rate 20 --sessions 200 --input 100:2000 --output 20:60 --ttft-ms 500 --itl-ms 50 \
         --json {} --html {} --csv {} --growth",
        json.display(),
        html.display(),
        csv.display()
    ));
    assert!(
        ok && said.contains("TTFT") && said.contains("goodput") && said.contains("decision p50"),
        "{said}"
    );
    let file = RunFile::load(&json).unwrap();
    assert_eq!((file.runs[0].summary.all.requests, file.runs[0].summary.all.answered), (200, 200));
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 201);
    assert!(std::fs::read_to_string(html).unwrap().contains("Time to first token"));
    // The same traffic again is the same to the last digit, and is not on half of the nodes.
    let (ok, said) = baton(&format!("{cluster} --against {}", json.display()));
    assert!(ok && said.contains("0.0 %") && !said.contains(" no "), "{said}");
    let (ok, said) = baton(&format!("{smaller} --against {}", json.display()));
    assert!(!ok && said.contains("farther"), "{said}");
}

#[test]
fn a_plan_is_text_or_json_and_refuses_what_nodes_cannot_do() {
    let task =
        "plan --gpu h100 --shape llama-3.1-8b --rate 20 --prompt 4096 --output 256 --ttft-ms 500 --itl-ms 15";
    let (ok, said) = baton(&format!("{task} --verify 300"));
    assert!(ok && said.contains("pick:   split") && said.contains("breaks:"), "{said}");
    assert!(said.contains("simulated, 300 requests"), "{said}");
    let (ok, said) = baton(&format!("{task} --json"));
    let plan: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(ok && plan["plan"]["pick"] == "split" && plan["simulated"].is_null(), "{said}");
    let (ok, said) = baton(&format!("{task} --tensor-parallel 2,8"));
    assert!(ok && said.contains("Baton's engine does not have") && said.contains("cards each"), "{said}");
    let (ok, said) = baton(&format!("{task} --tensor-parallel 1,2,4"));
    assert!(ok && said.contains("nodes of a card each"), "more cards cost more than they bring: {said}");
    for (more, why) in [("--tensor-parallel 3", "evenly"), ("--target 2", "between 0 and 1")] {
        let (ok, said) = baton(&format!("{task} {more}"));
        assert!(!ok && said.contains(why), "{said}");
    }
}

#[test]
fn a_cluster_without_options_is_one_of_each() {
    assert_eq!(ScenarioFile::default().cluster, ClusterShape { prefill: 1, decode: 1, local: 0 });
}
