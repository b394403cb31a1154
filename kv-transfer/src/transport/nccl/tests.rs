//! What a bad sender may say, and no card is needed to refuse.

use std::time::Duration;

use baton_kernels::cuda::nccl::ID_BYTES;
use baton_protocol::frame::HEADER_BYTES;

use super::{
    FRAME_BYTES, INVITATION_BYTES,
    incoming::{frame_of, invited},
    on_loopback,
};
use crate::{
    testing::{SHAPE, header},
    transport::{PathError, card::Limits},
};

const MINE: Limits = Limits { slot_bytes: 1 << 20, slots: 8, stall: Duration::from_secs(60), checked: true };

#[test]
fn an_invitation_is_to_frames_of_a_size_that_they_may_have() {
    let invitation = |slot_bytes: u64| {
        let mut invitation = [7; INVITATION_BYTES];
        invitation[ID_BYTES..].copy_from_slice(&slot_bytes.to_le_bytes());
        invitation
    };
    let largest = MINE.slot_bytes as u64;
    for slot_bytes in [1, 4096, largest] {
        let (staging, id) = invited(&invitation(slot_bytes), &MINE).unwrap();
        assert_eq!((staging.slot_bytes as u64, staging.slots, id), (slot_bytes, MINE.slots, [7; ID_BYTES]));
    }
    for slot_bytes in [0, largest + 1, u64::MAX] {
        let refused = invited(&invitation(slot_bytes), &MINE).err();
        assert!(matches!(refused, Some(PathError::Unavailable { .. })), "{slot_bytes}");
    }
}

#[test]
fn a_frame_fits_into_staging() {
    let frame = |bytes| {
        let mut message = [0; FRAME_BYTES];
        let mut header = header(&SHAPE, 3, SHAPE.span(0..3, 0..4));
        header.bytes = bytes;
        message[..HEADER_BYTES].copy_from_slice(&header.encode());
        message[HEADER_BYTES..].copy_from_slice(&9_u32.to_le_bytes());
        message
    };
    let (header, told) = frame_of(&frame(1 << 20), &MINE).unwrap();
    assert_eq!((header.seq, header.bytes, told), (3, 1 << 20, 9));
    for bytes in [(1 << 20) + 1, u32::MAX] {
        assert!(matches!(frame_of(&frame(bytes), &MINE), Err(PathError::TooLarge { .. })), "{bytes}");
    }
    for noise in [[0; FRAME_BYTES], [0xff; FRAME_BYTES]] {
        assert!(matches!(frame_of(&noise, &MINE), Err(PathError::Header(_))));
    }
}

#[test]
fn its_own_sockets_stay_on_loopback() {
    for interfaces in [Some("lo"), Some("=lo")] {
        assert!(on_loopback(interfaces), "{interfaces:?}");
    }
    for interfaces in [None, Some(""), Some("eth0"), Some("lo,eth0"), Some("^lo"), Some("lowpan0")] {
        assert!(!on_loopback(interfaces), "{interfaces:?}");
    }
}
