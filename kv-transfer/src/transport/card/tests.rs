//! What needs no card: signals, and where copies go.

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use baton_kernels::cuda::PieceCopy;
use baton_protocol::DeviceSpan;
use baton_trust::Trust;

use super::{copies, signals::Signals};
use crate::{
    SessionError, TransferConfig, TransportKind, Wanted,
    metrics::Side,
    transport::{PathError, offer::Transports},
};

const PATIENT: Duration = Duration::from_secs(60);

fn pair(stall: Duration) -> (Signals, Signals) {
    let (near, far) = UnixStream::pair().unwrap();
    (Signals::new(near, stall).unwrap(), Signals::new(far, stall).unwrap())
}

#[test]
fn messages_come_whole_however_they_are_cut() {
    let (mut near, mut far) = pair(PATIENT);
    assert_eq!(far.poll::<4>().unwrap(), None);
    near.send(&[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(far.wait::<4>(true).unwrap(), [1, 2, 3, 4]);
    assert_eq!(far.poll::<4>().unwrap(), None, "half of one");
    near.send(&[7, 8, 9]).unwrap();
    assert_eq!(far.poll::<4>().unwrap(), Some([5, 6, 7, 8]));
    far.look().unwrap();
    drop(near);
    assert!(matches!(far.poll::<4>(), Err(PathError::Closed)));
    assert!(matches!(far.wait::<4>(true), Err(PathError::Closed)));
    assert!(matches!(far.look(), Err(PathError::Closed)));
}

#[test]
fn a_message_that_stops_half_way_is_a_stall() {
    let (mut near, mut far) = pair(Duration::from_millis(20));
    near.send(&[1]).unwrap();
    assert!(matches!(far.wait::<4>(true), Err(PathError::Stalled)));
    assert!(matches!(near.wait::<4>(false), Err(PathError::Stalled)), "an answer that does not come");
}

#[test]
fn closing_wakes_both_ends_and_a_farewell_ends() {
    let (near, mut far) = pair(PATIENT);
    let closer = near.closer(Shutdown::Both).unwrap();
    let mut waiting = near;
    let woken = thread::spawn(move || waiting.wait::<4>(true).is_err());
    closer.close();
    assert!(woken.join().unwrap() && far.wait::<4>(true).is_err());
    let (mut near, far) = pair(PATIENT);
    near.farewell(Duration::from_millis(1));
    drop(far);
    near.farewell(PATIENT);
}

#[test]
fn who_sends_what_nobody_waits_for_fills_no_memory() {
    let (mut rogue, far) = UnixStream::pair().unwrap();
    rogue.set_nonblocking(true).unwrap();
    let (mut far, mut taken) = (Signals::new(far, PATIENT).unwrap(), 0);
    for _ in 0..10_000 {
        match rogue.write(&[0; 4096]) {
            Ok(bytes) => taken += bytes,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        far.look().unwrap();
    }
    assert!((4096..4 << 20).contains(&taken), "{taken} bytes");
    drop(rogue);
    assert_eq!(far.wait::<4>(true).unwrap(), [0; 4], "what has come is still there");
}

#[test]
fn a_node_without_a_card_is_told_so_by_name_or_goes_without() {
    let trust = Trust::default();
    for kind in [TransportKind::CudaIpc, TransportKind::Nccl] {
        let named = TransferConfig { transport: Wanted::Only(kind), ..TransferConfig::default() };
        let refused = Transports::new(&named, &trust, Side::Receiving).err().unwrap();
        assert!(matches!(refused, SessionError::NotHere { transport, .. } if transport == kind.as_str()));
        let lenient = TransferConfig { fallback: true, ..named };
        let offers = Transports::new(&lenient, &trust, Side::Receiving).unwrap().offers();
        assert!(!offers.is_empty() && offers.iter().all(|offer| offer.kind != kind.as_str()));
    }
}

#[test]
fn pieces_follow_each_other_in_the_frame() {
    let span = DeviceSpan { device: 1, pieces: vec![(1000, 8), (500, 4)] };
    let copy = |from, to, bytes| PieceCopy { from, to, bytes };
    let gather = copies((&span, 1), (64, 12), |page, at| (page, at)).unwrap();
    assert_eq!(gather, [copy(1000, 64, 8), copy(500, 72, 4)]);
    let scatter = copies((&span, 1), (64, 12), |page, at| (at, page)).unwrap();
    assert_eq!(scatter, [copy(64, 1000, 8), copy(72, 500, 4)]);
    assert_eq!(copies((&span, 0), (64, 12), |page, at| (page, at)), None, "another card");
    assert_eq!(copies((&span, 1), (64, 16), |page, at| (page, at)), None, "another size");
}
