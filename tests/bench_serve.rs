//! `baton bench serve` and `bench slo` against a split cluster of processes, mock backend; a bench that is killed.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use baton_lab::{report::RunFile, slo::SloFile};

use crate::sandbox::{Cluster, Plan};

const SETTINGS: &str = r#"
cluster = "bench"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
step_us_base = 2000
prefill_us_per_token = 100

[frontend]
listen = "127.0.0.1:0"
"#;

/// Runs `baton bench` to its good end; returns what it wrote.
async fn bench(args: Vec<String>) -> String {
    let run = move || Command::new(env!("CARGO_BIN_EXE_baton")).arg("bench").args(args).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_measured_and_what_is_measured_is_written() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let (dir, url) = (tempfile::tempdir().unwrap(), &cluster.url);
    let [json, csv, markdown] = ["run.json", "run.csv", "run.md"].map(|name| dir.path().join(name));
    let mut args = words(&format!(
        "serve --url ours={url} --rate 50 --burstiness 0.5 --sessions 20 --turns 2 --input 40 --output 8:12 --prefix 64:2"
    ));
    for (flag, path) in [("--json", &json), ("--csv", &csv), ("--markdown", &markdown)] {
        args.extend([flag.to_owned(), path.display().to_string()]);
    }
    let said = bench(args).await;
    assert!(said.contains("| ours") && said.contains("TTFT") && said.contains("goodput"), "{said}");
    let file = RunFile::load(&json).unwrap();
    let [measured] = file.runs.as_slice() else { panic!("one run") };
    let all = &measured.summary.all;
    assert_eq!((all.requests, all.answered, all.other_length), (40, 40, 0), "{all:?}");
    // Conversations find their beginnings, and a first token takes its prompt's time.
    assert!(all.cached_tokens > 0 && all.cached_tokens < all.prompt_tokens, "{all:?}");
    assert!(all.ttft.p50 > 0.004 && all.itl.count > 300, "{all:?}");
    for record in &measured.run.records {
        let phases = record.phases.expect("a bill");
        assert!(phases.prefill_ms > 0.0 && phases.prefill_ms <= 1e3 * record.ttft.unwrap(), "{record:?}");
    }
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 1 + 40);
    assert!(std::fs::read_to_string(&markdown).unwrap().contains("memory efficiency"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_the_rate_above_which_budgets_are_missed() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 1 }).await;
    let (dir, url) = (tempfile::tempdir().unwrap(), &cluster.url);
    let [json, html] = ["slo.json", "slo.html"].map(|name| dir.path().join(name).display().to_string());
    // A prompt takes 100 ms of the one prefill node: it can have no more than ten a second.
    let search = format!(
        "slo --url a={url} --completions --ids 32:127 --constant --rate 40 --seconds 1 --input 1000 --output 4 \
         --ttft-ms 300 --repeats 1 --precision 1.5 --json {json} --html {html}"
    );
    bench(words(&search)).await;
    let file = SloFile::load(json.as_ref()).unwrap();
    let bracket = file.sides[0].bracket;
    assert!(bracket.missed.is_some() && bracket.held.is_none_or(|held| held < 20.0), "{bracket:?}");
    let said = bench(words(&format!("slo --compare {json} --compare {json} --html {html}"))).await;
    assert_eq!(said.matches("\n| a ").count(), 2, "{said}");
    assert!(std::fs::read_to_string(&html).unwrap().contains("Attainment"));
}

/// Programs that a process has started, and their numbers.
fn children(of: u32) -> Vec<(String, u32)> {
    let child = |process: std::fs::DirEntry| {
        let number = process.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
        let parent: u32 = fields.split_whitespace().nth(1)?.parse().ok()?;
        (parent == of).then(|| (name.to_owned(), number))
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|process| child(process.unwrap())).collect()
}

#[test]
fn a_bench_that_is_killed_leaves_no_server() {
    const LIMIT: Duration = Duration::from_secs(60);
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(["bench", "simulated"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bench = command.spawn().unwrap();
    let begun = Instant::now();
    let servers = loop {
        let mut servers = children(bench.id());
        servers.retain(|(name, _)| name != "sh");
        if servers.len() >= 4 {
            break servers;
        }
        assert!(begun.elapsed() < LIMIT, "{servers:?}");
        sleep(Duration::from_millis(20));
    };
    bench.kill().unwrap();
    bench.wait().unwrap();
    let killed = Instant::now();
    while let Some(left) = servers.iter().find(|(_, number)| Path::new(&format!("/proc/{number}")).exists()) {
        assert!(killed.elapsed() < LIMIT, "{left:?}");
        sleep(Duration::from_millis(20));
    }
}
