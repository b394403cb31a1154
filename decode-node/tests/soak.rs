//! Many handoffs that are given up at random moments, on small pools, over
//! every transport: books, bytes, memory and file descriptors stay right. A
//! process of its own, since it counts what the process holds.

#![expect(clippy::unwrap_used, reason = "tests, and what only tests use")]
#![expect(dead_code, reason = "what other tests need of the shared files")]

#[path = "pair/call.rs"]
mod call;
#[path = "../../tests/counts.rs"]
mod counts;
#[path = "pair/sandbox.rs"]
mod sandbox;

use std::{
    fs,
    time::{Duration, Instant},
};

use baton_engine::backend::mock::MockConfig;
use baton_kv_transfer::{FaultsConfig, TransportKind, Wanted, transport::offer};

use crate::{
    call::{Call, answer, open, request},
    counts::counts,
    sandbox::{Sandbox, Settings, prompt},
};

/// What a leak would make grow.
#[derive(Clone, Copy, Debug)]
struct Held {
    fds: usize,
    rings: usize,
    resident_kib: usize,
}

fn held() -> Held {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Held {
        fds: fs::read_dir("/proc/self/fd").unwrap().count(),
        rings: maps.lines().filter(|line| line.contains("baton-ring")).count(),
        resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
    }
}

/// Frames are late, lost or damaged now and then, so that a handoff that is
/// given up may be anywhere in the protocol. None change places: one that waits
/// to be overtaken would keep its pages until another handoff comes.
fn settings(transport: TransportKind) -> Settings {
    let faults = FaultsConfig {
        seed: 11,
        delay_probability: 0.2,
        max_delay_ms: 2,
        drop_probability: 0.01,
        corrupt_probability: 0.01,
        ..FaultsConfig::default()
    };
    let mut settings = Settings {
        prefill_pages: 32,
        decode_pages: 32,
        mock: MockConfig { prefill_us_per_token: 5, ..MockConfig::default() },
        faults_of_first: Some(faults),
        ..Settings::default()
    };
    settings.transfer.transport = Wanted::Only(transport);
    settings.transfer.repair_timeout_ms = 10;
    settings.transfer.max_nacks = 20;
    settings
}

/// The transports of this build, or those of them that `BATON_TRANSPORTS` names.
fn transports() -> Vec<TransportKind> {
    let named = std::env::var("BATON_TRANSPORTS").ok();
    let wanted = |kind: &TransportKind| {
        named.as_deref().is_none_or(|names| names.split(',').any(|name| name == kind.as_str()))
    };
    let found: Vec<_> = offer::built().filter(wanted).collect();
    assert!(!found.is_empty(), "{named:?} names no transport of this build");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_handoffs_leave_nothing_behind() {
    for transport in transports() {
        let begun = Instant::now();
        let cluster = Sandbox::start(settings(transport)).await;
        let mut random = fastrand::Rng::with_seed(5);
        let (mut settled, mut handed_over) = (None, 0);
        let handoffs = counts().soak_handoffs;
        for round in 0..handoffs {
            let request = request(prompt(round as u64, random.usize(33..200)), round as u64, 1, 4);
            let attempt = open(&request, cluster.candidates());
            if random.u8(..4) == 0 {
                let split = answer(&cluster.decode, attempt).await;
                assert_eq!(split.failure, None, "{transport:?}");
                handed_over += usize::from(split.bill().prefill_node.is_some());
                assert_eq!(
                    split.choices,
                    cluster.local(&request).await.choices,
                    "{transport:?} round {round}"
                );
            } else {
                let call = Call::open(&cluster.decode, attempt).await;
                tokio::time::sleep(Duration::from_micros(random.u64(0..6_000))).await;
                drop(call);
            }
            cluster.settles().await;
            if round == handoffs / 2 {
                settled = Some(held());
            }
        }
        assert!(handed_over > 0, "{transport:?}");
        let (before, after) = (settled.unwrap(), held());
        assert!(after.fds <= before.fds + 8 && after.rings <= before.rings, "{before:?} {after:?}");
        assert!(after.resident_kib <= before.resident_kib + (16 << 10), "{before:?} {after:?}");
        let took = begun.elapsed();
        println!(
            "{transport:?}: {handoffs} begun, {handed_over} handed over, {took:.0?}; {before:?} {after:?}"
        );
    }
}
