//! Frames that begin before they are sent.

use std::{collections::VecDeque, sync::Arc, thread};

use baton_protocol::{FrameHeader, KvShape, KvSource};

use super::{Pair, each_transport, frames};
use crate::{
    testing::{Memory, SHAPE, header},
    transport::{PathError, Placement},
};

/// Sends frames as a session does, and lets them arrive in order and whole.
fn send_ahead((mut near, mut far): Pair, shape: &KvShape, frames: &[FrameHeader]) {
    let tokens = 0..frames.last().unwrap().span.tokens.end;
    let (memory, sink) = (Memory::computed(shape, tokens.clone()), Memory::empty(shape, tokens.clone()));
    let (source, mut rest): (Arc<dyn KvSource>, VecDeque<_>) =
        (memory.clone(), frames.iter().cloned().collect());
    let sending = thread::spawn(move || {
        let mut begun = VecDeque::new();
        loop {
            while begun.len() <= near.end.ahead()
                && let Some(header) = rest.pop_front()
            {
                near.end.begin(&header, &source).unwrap();
                begun.push_back(header);
            }
            let Some(header) = begun.pop_front() else { return near };
            near.end.send(&header, &source, None).unwrap();
        }
    });
    for header in frames {
        let frame = far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
        assert_eq!((frame.header.seq, frame.intact), (header.seq, true));
    }
    let _near = sending.join().unwrap();
    assert!(sink.holds(tokens));
    assert_eq!(Arc::strong_count(&memory), 1, "no frame is left in the path");
}

#[test]
fn frames_may_begin_before_they_are_sent() {
    each_transport(|pair| send_ahead(pair, &SHAPE, &frames()));
}

#[test]
fn a_crowd_of_small_frames_leaves() {
    let frames: Vec<_> =
        (0..2000).map(|at| header(&SHAPE, at, SHAPE.span(0..SHAPE.layers, at..at + 1))).collect();
    each_transport(|pair| send_ahead(pair, &SHAPE, &frames));
}

#[test]
fn frames_of_all_sizes_leave_together() {
    let shape = KvShape { head_dim: 1024, page_tokens: 1, ..SHAPE };
    let cuts = [0, 1, 2, 10, 11, 80, 81, 150, 151, 152, 153];
    let frames: Vec<_> = cuts
        .windows(2)
        .zip(0..)
        .map(|(cut, seq)| header(&shape, seq, shape.span(0..shape.layers, cut[0]..cut[1])))
        .collect();
    let sizes: Vec<_> = frames.iter().map(|header| header.bytes).collect();
    assert!(
        sizes.iter().any(|bytes| *bytes > 1 << 20) && sizes.iter().any(|bytes| *bytes < 64 << 10),
        "{sizes:?}"
    );
    each_transport(|pair| send_ahead(pair, &shape, &frames));
}

#[test]
fn a_frame_is_whole_though_the_next_one_cannot_be_read() {
    each_transport(|(mut near, mut far)| {
        let [source, other] = [0, 2].map(|at| -> Arc<dyn KvSource> { Memory::computed(&SHAPE, at..at + 1) });
        let frames = frames();
        for (header, source) in frames.iter().zip([&source, &source, &other]) {
            near.end.begin(header, source).unwrap();
        }
        let mut arrives = |seq| {
            let frame = far.end.recv(&mut |_| Placement::Discard).unwrap();
            assert_eq!((frame.header.seq, frame.intact), (seq, true));
        };
        near.end.send(&frames[0], &source, None).unwrap();
        let error = near.end.send(&frames[1], &source, None).unwrap_err();
        assert!(matches!(error, PathError::Unreadable(_)), "{error}");
        arrives(0);
        near.end.send(&frames[2], &other, None).unwrap();
        arrives(2);
    });
}
