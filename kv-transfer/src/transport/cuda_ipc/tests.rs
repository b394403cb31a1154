//! What a bad sender may say, and no card is needed to refuse.

use std::time::Duration;

use baton_protocol::frame::HEADER_BYTES;

use super::{EXPORT_BYTES, EXPORT_MAGIC, FRAME_BYTES, MAX_SLOTS, PROCESS, frame_of, ring_of};
use crate::{
    testing::{SHAPE, header},
    transport::{MAX_FRAME_BYTES, PathError, card::Limits},
};

const MINE: Limits = Limits { slot_bytes: 1 << 20, slots: 8, stall: Duration::from_secs(60), checked: true };

fn export(slots: u32, slot_bytes: u64, process: [u8; 16]) -> [u8; EXPORT_BYTES] {
    let mut export = [7; EXPORT_BYTES];
    export[..4].copy_from_slice(&EXPORT_MAGIC);
    export[4..8].copy_from_slice(&slots.to_le_bytes());
    export[8..16].copy_from_slice(&slot_bytes.to_le_bytes());
    export[16..32].copy_from_slice(&process);
    export
}

#[test]
fn a_ring_is_within_bounds_and_of_another_process() {
    let largest = u64::from(MAX_FRAME_BYTES);
    for (slots, slot_bytes) in [(1, 1), (4, 4096), (MAX_SLOTS, largest)] {
        let (ring, handle) = ring_of(&export(slots, slot_bytes, [1; 16]), &MINE).unwrap();
        assert_eq!((ring.slots as u32, ring.slot_bytes as u64, handle), (slots, slot_bytes, [7; 64]));
        assert_eq!((ring.stall, ring.checked), (MINE.stall, MINE.checked), "not the sender's to say");
    }
    let wrong = [(0, 4096), (MAX_SLOTS + 1, 4096), (u32::MAX, 4096), (4, 0), (4, largest + 1), (4, u64::MAX)];
    for (slots, slot_bytes) in wrong {
        assert!(ring_of(&export(slots, slot_bytes, [1; 16]), &MINE).is_err(), "{slots} of {slot_bytes}");
    }
    assert!(ring_of(&export(4, 4096, *PROCESS), &MINE).is_err(), "it cannot map its own");
    for at in 0..4 {
        let mut other = export(4, 4096, [1; 16]);
        other[at] ^= 0x20;
        assert!(ring_of(&other, &MINE).is_err(), "another beginning");
    }
}

#[test]
fn a_frame_lies_in_a_slot_and_fits_there() {
    let frame = |bytes, slot: u32| {
        let mut message = [0; FRAME_BYTES];
        let mut header = header(&SHAPE, 3, SHAPE.span(0..3, 0..4));
        header.bytes = bytes;
        message[..HEADER_BYTES].copy_from_slice(&header.encode());
        message[HEADER_BYTES..][..4].copy_from_slice(&slot.to_le_bytes());
        message[HEADER_BYTES + 4..].copy_from_slice(&9_u32.to_le_bytes());
        message
    };
    let (header, slot, told) = frame_of(&frame(1 << 20, 7), &MINE).unwrap();
    assert_eq!((header.seq, header.bytes, slot, told), (3, 1 << 20, 7, 9));
    for slot in [8, u32::MAX] {
        assert!(matches!(frame_of(&frame(64, slot), &MINE), Err(PathError::Io(_))), "slot {slot}");
    }
    for bytes in [(1 << 20) + 1, u32::MAX] {
        assert!(matches!(frame_of(&frame(bytes, 0), &MINE), Err(PathError::TooLarge { .. })), "{bytes}");
    }
    for noise in [[0; FRAME_BYTES], [0xff; FRAME_BYTES]] {
        assert!(matches!(frame_of(&noise, &MINE), Err(PathError::Header(_))));
    }
}
