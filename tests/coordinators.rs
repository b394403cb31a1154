//! Two coordinators over one etcd serve one cluster, mock backend. One is
//! killed: clients of the other notice nothing, and it takes over what one does alone.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use baton_protocol::Sampling;
use futures::future::join_all;
use serde_json::json;

use crate::{
    chaos::{Harm, MEMBERS, Which, is_whole, strike_members},
    sandbox::{Cluster, Outcome, Plan, Within, complete, enter, eventually, mock_expected},
};

const SETTINGS: &str = r#"
cluster = "coordinators"
model = "mock"

[engine]
backend = "mock"
pages = 512
page_tokens = 16

[engine.mock]
step_us_base = 8000

[coordinator]
balancer = "on"
balancing = { interval_ms = 200 }

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[[nodes]]
id = "coordinator-2"
roles = ["coordinator"]
"#;

/// A coordinator as its clients know it.
#[derive(Clone)]
struct Side {
    http: reqwest::Client,
    url: String,
}

impl Side {
    fn of(cluster: &Cluster, node: &str) -> Self {
        Self { http: cluster.http.clone(), url: cluster.url_of(node) }
    }

    /// How an answer of so many tokens ended; what came of it is right.
    async fn ask(&self, seed: u64, tokens: usize) -> Outcome {
        let prompt: Vec<u32> = (0..60).map(|at| 32 + ((seed * 31 + at * 7) % 90) as u32).collect();
        let body = json!({
            "model": "mock", "prompt": prompt, "max_tokens": tokens, "seed": seed, "temperature": 1.0,
            "stream": true, "ignore_eos": true,
        });
        let answer = complete(&self.http, &self.url, &body).await;
        let expected = mock_expected(&prompt, &Sampling { seed, ..Sampling::default() }, 1, tokens);
        assert!(expected[0].starts_with(&answer.texts[0]), "{answer:?}");
        assert!(answer.outcome != Outcome::Done || answer.texts == expected, "{answer:?}");
        answer.outcome
    }

    /// The value of a metric without labels.
    async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.ok()?.text().await.ok()?;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    async fn has_office(&self) -> bool {
        self.metric("baton_balancer_office").await == Some(1.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_coordinator_dies_and_clients_of_the_other_notice_nothing() {
    let plan = Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 2 };
    let mut cluster = Cluster::start(&plan).await;
    cluster.start_node("coordinator-2");
    let sides = ["coordinator", "coordinator-2"].map(|node| Side::of(&cluster, node));
    let first_holds = eventually("one to hold the office", || async {
        match (sides[0].has_office().await, sides[1].has_office().await) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    });
    let first_holds = first_holds.await;
    // The one that holds it dies.
    let [one, other] = sides;
    let (dies, dying, staying) =
        if first_holds { ("coordinator", one, other) } else { ("coordinator-2", other, one) };
    eventually("the nodes", || async { (staying.ask(1, 2).await == Outcome::Done).then_some(()) }).await;

    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let more = async |count| {
        let before = answered.load(Ordering::SeqCst);
        eventually("answers", || async { (answered.load(Ordering::SeqCst) >= before + count).then_some(()) })
            .await;
    };
    let calling = join_all((1..9).map(|caller| {
        let (staying, stop, answered) = (&staying, &stop, &answered);
        async move {
            for turn in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                assert_eq!(staying.ask(caller * 1000 + turn, 40).await, Outcome::Done);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        }
    }));
    let cut = join_all((20..24).map(|seed| dying.ask(seed, 2000)));
    let killing = async {
        more(16).await;
        cluster.kill(dies);
        more(32).await;
        eventually("the other to take over", || async { staying.has_office().await.then_some(()) }).await;
        more(16).await;
        stop.store(true, Ordering::SeqCst);
    };
    let (_, outcomes, ()) = tokio::join!(calling, cut, killing);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Broken), "{outcomes:?}");
    assert_eq!(staying.metric("baton_resumed_requests_total").await, Some(0.0));
    // What ran for the dead one was given up.
    cluster.wait_until_idle(Duration::from_secs(30)).await;
}

/// What befalls an etcd of three members, and whether CI runs it.
const HARMS: [(Which, Harm, bool); 5] = [
    (Which::Leader, Harm::Killed(5), true),
    (Which::Leader, Harm::Split(20), true),
    (Which::Leader, Harm::Alone(20), false),
    (Which::Leader, Harm::Starved(20), false),
    (Which::Majority, Harm::Killed(20), false),
];

#[test]
fn whatever_befalls_etcd_one_coordinator_at_most_holds_the_office() {
    match enter("coordinators::whatever_befalls_etcd_one_coordinator_at_most_holds_the_office") {
        Within::Done => return,
        Within::Shared => return println!("this system gives no network of its own: nobody is cut off"),
        Within::Own => {}
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let plan = Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 2 };
        let mut cluster = Cluster::start_apart(&plan, ("coordinators", 201), &MEMBERS).await;
        cluster.start_node("coordinator-2");
        let sides = ["coordinator", "coordinator-2"].map(|node| Side::of(&cluster, node));
        for (number, (which, harm, _)) in HARMS.iter().enumerate().filter(|(_, (.., ci))| *ci || is_whole()) {
            one_holds(&sides).await;
            let stop = AtomicBool::new(false);
            let watching = async {
                let mut looks = 0;
                while !stop.load(Ordering::SeqCst) {
                    // The first is asked again: both together is both at one time.
                    let [one, other] = &sides;
                    let both = one.has_office().await && other.has_office().await && one.has_office().await;
                    assert!(!both, "both hold the office while {harm:?} befalls {which:?}");
                    looks += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                looks
            };
            let calling = async {
                let mut turn = 0;
                while !stop.load(Ordering::SeqCst) {
                    turn += 1;
                    for side in &sides {
                        let answer = side.ask(number as u64 * 1000 + turn, 20).await;
                        assert_eq!(answer, Outcome::Done, "{harm:?}");
                    }
                }
                turn
            };
            let striking = async {
                strike_members(&mut cluster, *which, *harm).await;
                one_holds(&sides).await;
                stop.store(true, Ordering::SeqCst);
            };
            let (looks, turns, ()) = tokio::join!(watching, calling, striking);
            println!("{harm:?} of {which:?}: {looks} looks, {} requests answered", 2 * turns);
        }
    });
}

async fn one_holds(sides: &[Side; 2]) {
    eventually("one to hold the office", || async {
        (sides[0].has_office().await != sides[1].has_office().await).then_some(())
    })
    .await;
}
