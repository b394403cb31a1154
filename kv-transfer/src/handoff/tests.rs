//! Both machines joined by simulated channels: control in order, data faulty.
//! Interleavings are random, with at most one crash and one end by the caller.
//!
//! - [`world`]: the machines and channels

mod every_order;
mod matrix;
mod shapes;
mod world;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use baton_protocol::{ErrorCode, Failure, FrameHeader, KvSource, wire::control::Message};
use proptest::prelude::*;

use super::{
    HandoffEvent,
    plan::Cut,
    receiver::{Receiver, ReceiverAction, ReceiverEvent, ReceiverTerms},
    sender::{Sender, SenderAction, SenderEvent, SenderTerms},
};
use crate::{
    Progress, Queue,
    metrics::Outcome,
    testing::{Memory, SHAPE, Slot, handoff_id},
    transport::{Checksum, Received},
};
use world::*;

#[test]
fn nothing_goes_wrong() {
    let mut world = World::new(true);
    world.settle();
    assert_eq!(world.sender_closed, Some(Outcome::Committed));
    assert_eq!(world.receiver.repaired(), 0);
    assert_eq!(world.check(), (true, None));
}

#[test]
fn no_pages_is_later() {
    let mut world = World::new(false);
    world.settle();
    assert_eq!((world.sender_closed, world.receiver_closed), (Some(Outcome::Later), Some(Outcome::Later)));
    assert_eq!(world.check(), (false, Some(HAVE)));
}

/// Runs with `spoil` done to the wire again and again, with or without silences; why the handoff is lost.
fn lost_by(spoil: fn(&mut VecDeque<(FrameHeader, bool)>), silences: bool) -> String {
    let mut world = World::new(true);
    for _ in 0..2_000 {
        if world.receiver_closed.is_some() {
            break;
        }
        (0..7).for_each(|what| {
            world.step(what);
            spoil(&mut world.wire);
        });
        if silences {
            world.step(7);
        }
    }
    assert_eq!(world.receiver.repaired(), 3);
    let reason = world.reason.clone();
    // Tokens 4..8 in all layers need frame 3; only what came before it is whole.
    assert!(matches!(world.check(), (false, Some(_))));
    reason
}

#[test]
fn a_frame_that_does_not_get_through_is_given_up_by_name() {
    let never = lost_by(|wire| wire.retain(|(header, _)| header.seq != 3), true);
    assert_eq!(never, "frame 3 is overdue, asked for again 3 times");
    let spoilt =
        lost_by(|wire| wire.iter_mut().for_each(|(header, intact)| *intact &= header.seq != 3), false);
    assert_eq!(spoilt, "frame 3 is damaged, asked for again 3 times");
}

#[test]
fn a_window_that_is_lost_whole_is_repaired() {
    let mut world = World::new(true);
    let mut lost = 0;
    // No later frame can show the gap: the sender has no credit left.
    while lost < 2 {
        (0..5).for_each(|what| {
            world.step(what);
        });
        lost += world.wire.drain(..).count();
    }
    assert_eq!(world.check(), (true, None));
}

/// More often the things that move a handoff on than the ones that end it.
fn choice() -> impl Strategy<Value = (bool, u8)> {
    prop_oneof![40 => (Just(true), 0..8u8), 5 => (Just(false), 0..4u8), 1 => (Just(false), 4..8u8)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn every_interleaving_ends_well(choices in prop::collection::vec(choice(), 0..200), landing in prop::bool::weighted(0.95)) {
        let mut world = World::new(landing);
        let (mut spoiled, mut timeouts) = (!landing, 0);
        for (ordinary, what) in choices {
            if ordinary {
                world.step(what);
                timeouts += u32::from(what == 7);
            } else {
                spoiled |= what != 2 && what != 3;
                world.misfortune(what);
            }
        }
        let left = world.left;
        let (ready, _) = world.check();
        // Three silences of a whole repair timeout, and a frame on its way counts as lost.
        prop_assert!(ready || left || spoiled || timeouts > 2, "reordering and repeats alone cost only time");
    }
}
