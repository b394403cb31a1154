//! One cell: a request is brought into a phase, something happens, and what
//! came of the request, of others beside it and of every page is checked.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::Value;
use tokio::sync::Notify;

use super::{
    case::{Case, client},
    faults::{Does, Fault},
    is_whole,
    phases::Phase,
};
use crate::sandbox::{
    Cluster, Operator, Outcome, PATIENCE, StreamedAnswer, complete, complete_until, eventually,
};

/// What came of a cell.
pub struct Cell {
    /// In a word.
    pub outcome: String,
    /// Longest time without a token after the fault.
    pub pause: Duration,
    /// Until every page was free.
    pub free: Duration,
}

/// What is expected of the requests beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Others {
    Whole,
    Cut,
    /// There are none, but for one that keeps the request waiting where it is to wait.
    Absent,
}

/// Two drawn answers.
const CHOICES: u32 = 2;
/// So often more time is given outside of the whole table: CI's machines are busy.
const CI_PATIENCE: u32 = 5;

/// What became of it, in a word, if that is as it should be.
fn judge(case: &Case, answer: &StreamedAnswer, then: char, attempts: u64) -> String {
    case.assert_prefix(answer);
    match (then, &answer.outcome) {
        ('=', _) => {
            case.assert_whole(answer);
            if attempts > 1 { format!("whole, attempt {attempts}") } else { "whole".to_owned() }
        }
        ('E', Outcome::Error(200, _)) => "error in the stream".to_owned(),
        ('E', Outcome::Error(status, _)) => status.to_string(),
        ('B', Outcome::Broken) => "cut".to_owned(),
        ('X', Outcome::Left) => "left".to_owned(),
        _ => panic!("not {then:?}: {answer:?}"),
    }
}

/// Runs a cell; what was killed is there again afterwards. Panics where something is wrong.
pub async fn run(cluster: &mut Cluster, phase: &Phase, fault: &Fault, (number, then): (u64, char)) -> Cell {
    let workers = cluster.nodes.len() - 1;
    let alone = fault.others() == Others::Absent && phase.letter != 'Q';
    let others: Vec<_> = (1..=if alone { 0 } else { phase.others })
        .map(|other| Case::new(number * 10 + other as u64, phase.prompt_tokens, phase.max_tokens, CHOICES))
        .collect();
    // One token more, by which it is known among the others.
    let case = Case::new(number * 10, phase.prompt_tokens + 1, phase.max_tokens, CHOICES);
    let (http, url) = (cluster.http.clone(), cluster.url.clone());
    let (go, leave, tokens) = (Notify::new(), Notify::new(), Mutex::new(Vec::new()));

    let beside = join_all(others.iter().map(|other| complete(&http, &url, &other.body)));
    let asking = async {
        go.notified().await;
        let client = client(!matches!(fault.does, Does::Deadline));
        let asked = complete_until(&client, &url, &case.body, |_| {
            tokens.lock().unwrap().push(Instant::now());
            false
        });
        tokio::select! {
            answer = asked => answer,
            () = leave.notified() => StreamedAnswer { outcome: Outcome::Left, ..StreamedAnswer::default() },
        }
    };
    let striking = async {
        let operator = Operator::of(cluster);
        let placed =
            |all: &Vec<Value>| all.len() == others.len() && all.iter().all(|one| one["stage"] != "queued");
        eventually("others", || async { operator.requests(&http).await.filter(placed).map(drop) }).await;
        go.notify_one();
        let request = stands(cluster, &operator, phase).await;
        if matches!(fault.does, Does::Leave) {
            leave.notify_one();
        }
        let struck = Instant::now();
        let counting = attempts(&operator, &http, &request["id"]);
        let (gone, attempts) = tokio::join!(fault.strike(cluster, &request), counting);
        (gone, struck, attempts)
    };
    let (said, answer, (gone, struck, attempts)) = tokio::join!(beside, asking, striking);

    let outcome = judge(&case, &answer, then, attempts);
    for (other, answer) in others.iter().zip(&said) {
        match fault.others() {
            Others::Cut => other.assert_prefix(answer),
            Others::Whole | Others::Absent => other.assert_whole(answer),
        }
    }
    let free = recover(cluster, &gone, workers, fault.free_within).await;
    Cell { outcome, pause: pause(&tokens.into_inner().unwrap(), struck), free }
}

/// The request once it stands in its phase.
async fn stands(cluster: &Cluster, operator: &Operator, phase: &Phase) -> Value {
    let seen = AtomicBool::new(false);
    eventually(phase.name, || async {
        let requests = operator.requests(&cluster.http).await?;
        let request = requests.into_iter().find(|one| one["prompt_tokens"] == phase.prompt_tokens + 1);
        assert!(request.is_some() || !seen.load(Ordering::SeqCst), "over before it was {}", phase.name);
        seen.fetch_or(request.is_some(), Ordering::SeqCst);
        let request = request?;
        phase.has(cluster, &request).await.then_some(request)
    })
    .await
}

/// How many attempts it took, once it has ended.
async fn attempts(operator: &Operator, http: &reqwest::Client, id: &Value) -> u64 {
    let mut attempts = 1;
    while let Some(now) = operator.request(http, id).await {
        attempts = now["attempts"].as_u64().unwrap().max(attempts);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    attempts
}

/// Longest time between tokens since something happened.
fn pause(tokens: &[Instant], struck: Instant) -> Duration {
    let after: Vec<_> =
        std::iter::once(struck).chain(tokens.iter().copied().filter(|at| *at > struck)).collect();
    after.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Everything is as before: pages are free, who has gone is back, and every worker is announced.
/// How long the pages took.
async fn recover(cluster: &mut Cluster, gone: &[String], workers: usize, free_within: Duration) -> Duration {
    for node in gone {
        // Those that were asked to end may be about to.
        cluster.nodes.remove(node);
    }
    let ended = Instant::now();
    cluster.wait_until_idle(if is_whole() { free_within } else { CI_PATIENCE * free_within }).await;
    let free = ended.elapsed();
    bring_back(cluster, gone, workers).await;
    free
}

/// Who has gone is started again, once it has ended, and every worker is announced and ready.
pub async fn bring_back(cluster: &mut Cluster, gone: &[String], workers: usize) {
    for node in gone {
        if let Some(mut process) = cluster.nodes.remove(node) {
            tokio::task::block_in_place(|| process.wait_for_exit(PATIENCE));
        }
        cluster.start_node(node);
    }
    cluster.url = cluster.url_of("coordinator");
    let operator = Operator::of(cluster);
    eventually("everybody to be back", || async {
        let nodes = operator.nodes(&cluster.http).await?;
        let is_back = |node: &Value| node["health"] == "ready" && node["announced"] == true;
        (nodes.len() == workers && nodes.iter().all(is_back)).then_some(())
    })
    .await;
}
