use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn claim(start: Instant, tenant: &str, priority: i32, due_ms: u64) -> Claim {
    Claim { tenant: tenant.to_owned(), priority, due: start + Duration::from_millis(due_ms), tokens: 10 }
}

fn drain<T>(queue: &mut Queue<T>) -> Vec<T> {
    std::iter::from_fn(|| queue.pop()).collect()
}

#[test]
fn the_earliest_deadline_in_the_highest_band_goes_first() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    for (name, priority, due) in [("late", 0, 90), ("soon", 0, 10), ("low", -1, 1), ("high", 1, 500)] {
        queue.push(claim(start, "t", priority, due), name);
    }
    assert_eq!(queue.ahead_of(&claim(start, "t", 0, 50)), 2);
    assert_eq!(drain(&mut queue), ["high", "soon", "late", "low"]);
}

#[test]
fn tenants_take_turns_however_many_one_sends() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    for due in 0..6 {
        queue.push(claim(start, "noisy", 0, due), "noisy");
    }
    for due in 900..902 {
        queue.push(claim(start, "quiet", 0, due), "quiet");
    }
    let order = drain(&mut queue);
    assert_eq!(order[..4].iter().filter(|name| **name == "quiet").count(), 2, "{order:?}");
    assert_eq!(order[4..], ["noisy"; 4]);
}

#[test]
fn a_pause_is_no_credit() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    for due in 0..20 {
        queue.push(claim(start, "busy", 0, due), "busy");
    }
    for _ in 0..10 {
        assert_eq!(queue.pop(), Some("busy"));
    }
    for due in 0..5 {
        queue.push(claim(start, "new", 0, due), "new");
    }
    let order: Vec<_> = (0..6).filter_map(|_| queue.pop()).collect();
    assert_eq!(order.iter().filter(|name| **name == "new").count(), 3, "{order:?}");
}

#[test]
fn whoever_leaves_is_not_called() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    let number = queue.push(claim(start, "t", 0, 1), "gone");
    queue.push(claim(start, "t", 0, 2), "here");
    queue.leave(number);
    queue.leave(number);
    assert_eq!((queue.len(), drain(&mut queue)), (1, vec!["here"]));
}

proptest! {
    #[test]
    fn everyone_goes_once_and_bands_and_deadlines_hold(
        claims in prop::collection::vec((0..3u8, -2..3i32, 0..1000u64), 0..60),
    ) {
        let (start, mut queue) = (Instant::now(), Queue::default());
        for (at, (tenant, priority, due)) in claims.iter().enumerate() {
            queue.push(claim(start, &tenant.to_string(), *priority, *due), at);
        }
        let order = drain(&mut queue);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..claims.len()).collect::<Vec<_>>());
        for (place, &one) in order.iter().enumerate() {
            for &after in &order[place + 1..] {
                prop_assert!(claims[one].1 >= claims[after].1);
                if claims[one].0 == claims[after].0 && claims[one].1 == claims[after].1 {
                    prop_assert!(claims[one].2 <= claims[after].2);
                }
            }
        }
    }

    #[test]
    fn tenants_that_wait_are_never_further_apart_than_one_request(
        costs in prop::collection::vec((0..3usize, 1..50u64), 30..90),
    ) {
        let (start, mut queue) = (Instant::now(), Queue::default());
        for (tenant, tokens) in &costs {
            queue.push(Claim { tokens: *tokens, ..claim(start, &tenant.to_string(), 0, 0) }, (*tenant, *tokens));
        }
        let mut left = [0, 1, 2].map(|tenant| costs.iter().filter(|(other, _)| *other == tenant).count());
        let mut given = [0u64; 3];
        while left.iter().all(|left| *left > 0) {
            let (tenant, tokens) = queue.pop().unwrap();
            left[tenant] -= 1;
            given[tenant] += tokens;
            prop_assert!(given.iter().max().unwrap() - given.iter().min().unwrap() <= 50, "{given:?}");
        }
    }
}
