//! Thirty ways to be a bad peer, and where each is tried: rows of the tables name theirs, tests of
//! their own are named in [`APART`]. A way that a transport cannot be gone has its reason in [`NOWHERE`].
//! `cargo test -p baton-kv-transfer every_way -- --nocapture` prints who is tried where.

use std::collections::{BTreeMap, BTreeSet};

use TransportKind::{Inproc, Shm, Tcp, Ucx};

use super::{
    answering as answers,
    asking::{self as asks, opening as opens},
    *,
};
use crate::session::tests::{encrypted, opening};
#[cfg(feature = "ucx")]
use crate::transport::ucx::tests as steps;

/// What they are, in order from 1.
pub const WAYS: [&str; 30] = [
    "no certificate, another authority's, another role's, one that has expired",
    "a megabyte of noise, HTTP",
    "another magic, another version, a version to come",
    "lengths that are zero, the largest, longer than what comes; cut short at each byte",
    "a handshake byte by byte; handshakes that are never made",
    "messages of no known kind, from the wrong side, in the wrong state",
    "handoffs that are unknown, over, without an id, of zeros",
    "boxes beyond the cache, twice, overlapping; another shape of cache",
    "numbers that overflow, reversed or empty ranges, bytes that are no whole rows",
    "another session's number, another incarnation",
    "a wrong checksum; right bytes in another's place",
    "more than was granted; FIN too early, of fewer or of more",
    "requests that make no sense, another model",
    "numbers that are none in the KV",
    "memory beyond what is shared",
    "what was recorded before, again",
    "ten thousand asks that take nothing",
    "an id twice",
    "pings for what is not there, floods of pings, the largest digest",
    "a deadline after the end of time",
    "whoever reads neither words nor frames",
    "ABORT in every order",
    "hanging up and silence at every step",
    "fields of megabytes, compression that was not agreed",
    "a name or an address that the certificate or the session has not",
    "frames in another order, on another socket",
    "many sessions",
    "a message's head of another size, bytes without a frame",
    "an invitation to NCCL used twice or made up",
    "less safety than asked for: no TLS, no checksum",
];

/// The control stream alone, which is the same whatever carries the frames.
const CONTROL: &[TransportKind] = &[];
const EVERYWHERE: &[TransportKind] = &[Inproc, Tcp, Shm, Ucx];

/// A test, and the transports over which it goes this way.
type Apart = (Way, fn(), &'static [TransportKind]);

/// Tests that are no rows.
const APART: &[Apart] = &[
    (1, encrypted::only_nodes_of_the_cluster_with_kv_have_a_session, CONTROL),
    (1, encrypted::the_secret_is_not_heard_in_the_open, &[Tcp]),
    (2, opens::no_hello_no_session, CONTROL),
    (2, opens::sockets_without_the_secret_get_nothing, &[Tcp]),
    (3, opens::a_bad_hello_is_refused_by_name, EVERYWHERE),
    (3, answers::a_bad_welcome_is_no_session, EVERYWHERE),
    (4, opens::lengths_of_control_messages_are_not_believed, CONTROL),
    (4, answers::a_frame_may_be_cut_at_any_byte, &[Tcp, Shm]),
    (5, opens::who_says_nothing_on_the_control_port_is_in_nobodys_way, CONTROL),
    (5, opens::who_says_nothing_on_the_data_port_is_in_nobodys_way, &[Tcp]),
    (5, encrypted::handshakes_that_are_never_made_are_in_nobodys_way, CONTROL),
    (5, opens::sockets_without_the_secret_get_nothing, &[Tcp]),
    (5, opens::who_tells_the_secret_too_slowly_is_hung_up_on, &[Tcp, Shm]),
    (8, opens::a_bad_hello_is_refused_by_name, EVERYWHERE),
    (10, opens::a_bad_hello_is_refused_by_name, EVERYWHERE),
    (13, opens::a_bad_hello_is_refused_by_name, EVERYWHERE),
    (16, opens::a_recorded_session_opens_nothing, EVERYWHERE),
    (16, opens::a_secret_is_good_for_one_path, EVERYWHERE),
    (17, asks::a_flood_of_asks_holds_no_more_than_is_allowed, EVERYWHERE),
    (17, asks::who_pings_on_and_takes_nothing_holds_no_pages, EVERYWHERE),
    (21, asks::who_reads_no_words_is_cut_off, EVERYWHERE),
    (22, answers::who_does_not_fall_silent_keeps_no_pages, EVERYWHERE),
    (21, asks::who_reads_no_frames_is_cut_off, EVERYWHERE),
    (21, opens::who_wants_the_largest_probes_and_reads_none_is_cut_off, EVERYWHERE),
    (23, asks::a_peer_may_hang_up_at_any_step, EVERYWHERE),
    (23, answers::who_never_answers_is_given_up, CONTROL),
    (25, encrypted::a_certificate_is_for_its_address, CONTROL),
    (25, answers::a_bad_welcome_is_no_session, EVERYWHERE),
    (25, opens::a_ring_is_for_whoever_knows_the_secret, &[Shm]),
    (26, answers::frames_on_another_socket_are_lost, &[Tcp]),
    (27, opens::the_newest_of_many_sessions_stays, EVERYWHERE),
    (27, opens::names_without_end_get_no_sessions, CONTROL),
    (30, answers::a_bad_welcome_is_no_session, EVERYWHERE),
    (30, encrypted::both_sides_encrypt_or_none, &[Tcp]),
    (30, opening::checksums_are_off_only_where_both_say_so, &[Tcp]),
    #[cfg(feature = "ucx")]
    (2, opens::strangers_at_the_ports_of_ucx_get_nothing, &[Ucx]),
    #[cfg(feature = "ucx")]
    (4, steps::steps_that_make_no_sense_end_the_path, &[Ucx]),
    #[cfg(feature = "ucx")]
    (15, steps::steps_that_make_no_sense_end_the_path, &[Ucx]),
    #[cfg(feature = "ucx")]
    (28, steps::steps_that_make_no_sense_end_the_path, &[Ucx]),
    #[cfg(feature = "ucx")]
    (28, steps::a_frame_whose_rest_does_not_come_is_a_stall, &[Ucx]),
];

/// Ways that cannot be gone somewhere, and why.
const NOWHERE: &[(Way, &[TransportKind], &str)] = &[
    (1, &[Inproc, Shm, Ucx], "certificates are of the control stream and of tcp's sockets"),
    (2, &[Inproc], "there are no bytes between two nodes of a process"),
    (5, &[Inproc, Ucx], "there is no handshake of several bytes: an address, or one message"),
    (15, &[Inproc, Tcp], "no memory is shared, and none is named by an address"),
    (28, &[Inproc, Tcp, Shm], "there are no active messages"),
    (29, EVERYWHERE, "there is no NCCL without a card"),
];

#[test]
fn every_way_is_tried_over_every_transport() {
    let mut tried: BTreeMap<Way, BTreeSet<&str>> = BTreeMap::new();
    for &road in ROADS {
        let said = asks::cases().into_iter().map(|(way, ..)| way);
        let answered = road.bad_answers().into_iter().chain(answers::harmless()).map(|(way, ..)| way);
        let apart = APART.iter().filter(|(.., over)| over.contains(&road.kind)).map(|(way, ..)| *way);
        for way in said.chain(answered).chain(apart) {
            tried.entry(way).or_default().insert(road.name());
        }
    }
    for (way, ..) in APART.iter().filter(|(.., over)| over.is_empty()) {
        tried.entry(*way).or_default().insert("control stream");
    }
    for (way, what) in (1..).zip(WAYS) {
        let over = tried.remove(&way).unwrap_or_default();
        println!("{way:2} {what}: {}", over.iter().copied().collect::<Vec<_>>().join(", "));
        for road in ROADS {
            let why = NOWHERE.iter().find(|(no, roads, _)| *no == way && roads.contains(&road.kind));
            assert_ne!(over.contains(road.name()), why.is_some(), "{way}, {what}: over {}", road.name());
        }
        NOWHERE.iter().filter(|(no, ..)| *no == way).for_each(|(.., reason)| println!("   else {reason}"));
    }
    assert!(tried.is_empty(), "no such ways: {tried:?}");
}
