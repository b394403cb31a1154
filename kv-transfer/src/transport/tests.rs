//! The same tests for every transport, plain and disturbed.
//!
//! - `ahead`: frames that begin before they are sent

mod ahead;

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use baton_protocol::{FrameHeader, KvShape, KvSource, SessionId};

use super::{Checksum, FrameReceiver, FrameSender, Link, PathError, Placement, faulty, inproc, shm, tcp};
use crate::{
    FaultsConfig,
    testing::{Memory, SHAPE, header},
};

/// Both ends of a path.
pub type Pair = (Link<dyn FrameSender>, Link<dyn FrameReceiver>);

/// Tokens of the memory that frames come from.
pub const TOKENS: u32 = 10;
const PATIENT: Duration = Duration::from_secs(60);

fn inproc_pair() -> Pair {
    let (addr, sender) = inproc::listen(Checksum::Crc32c);
    (sender, inproc::connect(&addr, Checksum::Crc32c).unwrap())
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn tcp_link(near: TcpStream, stall: Duration) -> Link<dyn FrameSender> {
    tcp::sender(vec![near.into()], Checksum::Crc32c, stall).unwrap()
}

fn tcp_far(far: TcpStream, stall: Duration) -> Link<dyn FrameReceiver> {
    tcp::receiver(vec![far.into()], Checksum::Crc32c, stall).unwrap()
}

fn tcp_pair() -> Pair {
    let (near, far) = sockets();
    (tcp_link(near, PATIENT), tcp_far(far, PATIENT))
}

fn three_sockets() -> Pair {
    let pairs = [sockets(), sockets(), sockets()].map(|(near, far)| (near.into(), far.into()));
    let (near, far) = pairs.into_iter().unzip();
    (
        tcp::sender(near, Checksum::Crc32c, PATIENT).unwrap(),
        tcp::receiver(far, Checksum::Crc32c, PATIENT).unwrap(),
    )
}

fn shm_pair() -> Pair {
    let fd = shm::map::create().unwrap();
    let [near, far] = [(); 2].map(|()| shm::map::Map::new(&fd).unwrap());
    (shm::sender(near, Checksum::Crc32c, PATIENT), shm::receiver(far, Checksum::Crc32c, PATIENT))
}

fn each_transport(test: impl Fn(Pair)) {
    test(inproc_pair());
    test(shm_pair());
    test(tcp_pair());
    test(three_sockets());
    #[cfg(feature = "ucx")]
    for staged in [false, true] {
        test(super::ucx::tests::pair(staged, PATIENT));
    }
}

/// One frame a token, all layers.
pub fn frames() -> Vec<FrameHeader> {
    let span = |token| SHAPE.span(0..SHAPE.layers, token..token + 1);
    (0..TOKENS).map(|token| header(&SHAPE, token, span(token))).collect()
}

#[test]
fn frames_arrive_whole_and_in_order() {
    each_transport(|(mut near, mut far)| {
        let sink = Memory::empty(&SHAPE, 0..TOKENS);
        let memory = Memory::computed(&SHAPE, 0..TOKENS);
        let (headers, source): (_, Arc<dyn KvSource>) = (frames(), memory.clone());
        let sending = thread::spawn(move || {
            let sent = headers.iter().all(|header| near.end.send(header, &source, None).is_ok());
            (sent, near)
        });
        for seq in 0..TOKENS {
            let frame = far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
            assert_eq!((frame.header.seq, frame.intact), (seq, true));
        }
        assert!(sending.join().unwrap().0 && sink.holds(0..TOKENS));
        assert_eq!(Arc::strong_count(&memory), 1, "no frame is left in the path");
    });
}

#[test]
fn frames_of_many_pieces_are_written_in_parts() {
    let shape = KvShape { page_tokens: 1, ..SHAPE };
    let head = header(&shape, 0, shape.span(0..shape.layers, 0..2000));
    each_transport(|(mut near, mut far)| {
        let sink = Memory::empty(&shape, 0..2000);
        let (source, head): (Arc<dyn KvSource>, _) = (Memory::computed(&shape, 0..2000), head.clone());
        let sending = thread::spawn(move || near.end.send(&head, &source, None).map(|_| near));
        assert!(far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert!(sending.join().unwrap().is_ok() && sink.holds(0..2000));
    });
}

#[test]
fn large_frames_come_through_partial_writes() {
    let shape = KvShape { head_dim: 4096, page_tokens: 1, ..SHAPE };
    let source = Memory::computed(&shape, 0..200);
    let span = shape.span(0..3, 0..200);
    let head = header(&shape, 0, span);
    assert!(head.bytes > 8 << 20);
    each_transport(|(mut near, mut far)| {
        let sink = Memory::empty(&shape, 0..200);
        let (source, head): (Arc<dyn KvSource>, _) = (source.clone(), head.clone());
        let sending = thread::spawn(move || near.end.send(&head, &source, None).map(|_| near));
        let frame = far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
        assert!(frame.intact && sink.holds(0..200));
        sending.join().unwrap().unwrap();
    });
}

#[test]
fn the_bit_bucket_keeps_the_path_in_step() {
    each_transport(|(mut near, mut far)| {
        let memory = Memory::computed(&SHAPE, 0..TOKENS);
        let headers = frames();
        let source: Arc<dyn KvSource> = memory;
        let sink = Memory::empty(&SHAPE, 1..TOKENS);
        near.end.send(&headers[0], &source, None).unwrap();
        near.end.send(&headers[1], &source, None).unwrap();
        let first = far.end.recv(&mut |_| Placement::Discard).unwrap();
        assert_eq!((first.header.seq, first.intact), (0, true));
        let second = far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
        assert!(second.intact && sink.holds(1..2));
        // A landing without such memory: not intact, and still in step.
        near.end.send(&headers[0], &source, None).unwrap();
        near.end.send(&headers[2], &source, None).unwrap();
        assert!(!far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
        assert!(far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
    });
}

#[test]
fn pages_that_cannot_be_read_cost_nothing() {
    each_transport(|(mut near, mut far)| {
        let source: Arc<dyn KvSource> = Memory::computed(&SHAPE, 0..1);
        let error = near.end.send(&frames()[1], &source, None).unwrap_err();
        assert!(matches!(error, PathError::Unreadable(_)), "{error}");
        near.end.send(&frames()[0], &source, None).unwrap();
        assert!(far.end.recv(&mut |_| Placement::Discard).unwrap().intact);
    });
}

#[test]
fn what_is_told_is_compared_with_what_arrives() {
    each_transport(|(mut near, mut far)| {
        let memory = Memory::computed(&SHAPE, 0..TOKENS);
        let (sink, head) = (Memory::empty(&SHAPE, 0..TOKENS), frames()[0].clone());
        let right = Checksum::Crc32c.of(&*memory, &head.span).unwrap();
        let source: Arc<dyn KvSource> = memory;
        for (told, intact) in [(None, true), (Some(right), true), (Some(right ^ 1), false), (None, true)] {
            let sent = near.end.send(&head, &source, told).unwrap();
            assert_eq!(sent, told.unwrap_or(right));
            let frame = far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap();
            assert_eq!((frame.crc, frame.intact), (right, intact));
        }
    });
}

#[test]
fn closing_wakes_both_ends() {
    each_transport(|(near, mut far)| {
        let closer = far.closer.clone();
        let waiting = thread::spawn(move || far.end.recv(&mut |_| Placement::Discard));
        closer.close();
        assert!(matches!(waiting.join().unwrap(), Err(PathError::Closed | PathError::Io(_))));
        drop(near);
    });
    // A sender that waits for a receiver which does not read.
    each_transport(|(mut near, far)| {
        let memory = Memory::computed(&SHAPE, 0..TOKENS);
        let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
        let closer = near.closer.clone();
        let sending = thread::spawn(move || while near.end.send(&head, &source, None).is_ok() {});
        thread::sleep(Duration::from_millis(20));
        closer.close();
        sending.join().unwrap();
        drop(far);
    });
}

#[test]
fn a_peer_that_does_not_read_is_a_stall() {
    let (near, _far) = sockets();
    let mut near = tcp_link(near, Duration::from_millis(20));
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    let error = std::iter::repeat_with(|| near.end.send(&head, &source, None)).find_map(Result::err).unwrap();
    assert!(matches!(error, PathError::Stalled), "{error}");
}

#[test]
fn segments_within_a_host_are_not_held_back() {
    let (near, far) = sockets();
    let other = near.try_clone().unwrap();
    let (_near, _far) = (tcp_link(near, PATIENT), tcp_far(far, PATIENT));
    assert_eq!(rustix::net::sockopt::tcp_congestion(&other).unwrap(), "reno");
}

#[test]
fn a_frame_that_stops_half_way_is_a_stall() {
    let (mut near, far) = sockets();
    let mut far = tcp_far(far, Duration::from_millis(20));
    near.write_all(&frames()[0].encode()).unwrap();
    let error = far.end.recv(&mut |_| Placement::Discard).unwrap_err();
    assert!(matches!(error, PathError::Stalled), "{error}");
}

#[test]
fn bytes_that_are_no_frame_end_the_path() {
    let mut large = frames()[0].clone();
    large.bytes = u32::MAX;
    let mut flipped = frames()[0].encode();
    flipped[50] ^= 1;
    for bytes in [large.encode().to_vec(), flipped.to_vec(), vec![7; 200]] {
        let (mut near, far) = sockets();
        let mut far = tcp_far(far, PATIENT);
        near.write_all(&bytes).unwrap();
        let error = far.end.recv(&mut |_| panic!("placed")).unwrap_err();
        assert!(matches!(error, PathError::Header(_) | PathError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn an_inproc_address_is_taken_once() {
    let (addr, sender) = inproc::listen(Checksum::Crc32c);
    assert!(inproc::connect(&addr, Checksum::Crc32c).is_some());
    assert!(inproc::connect(&addr, Checksum::Crc32c).is_none());
    drop(sender);
    let (addr, sender) = inproc::listen(Checksum::Crc32c);
    drop(sender);
    assert!(inproc::connect(&addr, Checksum::Crc32c).is_none(), "a sender that is gone is not found");
}

#[test]
fn a_data_socket_says_who_it_is() {
    let hello = tcp::SocketHello { session: SessionId(9), secret: [3; 32], index: 1, sockets: 2 };
    assert_eq!(tcp::SocketHello::decode(&hello.encode()), Some(hello));
    assert_eq!(tcp::SocketHello::decode(&[0; tcp::HELLO_BYTES]), None);
    for (index, sockets) in [(2, 2), (0, 0), (0, tcp::MAX_SOCKETS + 1)] {
        assert_eq!(tcp::SocketHello::decode(&tcp::SocketHello { index, sockets, ..hello }.encode()), None);
    }
}

/// Sends all frames over a disturbed socket; what arrived, in order, until it closed.
fn disturbed(config: FaultsConfig) -> Vec<(u32, bool)> {
    let (near, mut far) = tcp_pair();
    let mut near = faulty::sender(near, Checksum::Crc32c, config);
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (headers, source): (_, Arc<dyn KvSource>) = (frames(), memory);
    for header in &headers {
        near.end.send(header, &source, None).unwrap();
    }
    // Both handles of the socket go, so the other end sees its end.
    drop(near);
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut arrived = Vec::new();
    while let Ok(frame) = far.end.recv(&mut |_| Placement::Land(sink.clone())) {
        arrived.push((frame.header.seq, frame.intact));
    }
    arrived
}

#[test]
fn faults_do_what_they_say() {
    let all = |intact| (0..TOKENS).map(|seq| (seq, intact)).collect::<Vec<_>>();
    assert_eq!(disturbed(FaultsConfig::default()), all(true));
    assert_eq!(disturbed(FaultsConfig { drop_probability: 1.0, ..Default::default() }), []);
    assert_eq!(disturbed(FaultsConfig { corrupt_probability: 1.0, ..Default::default() }), all(false));
    let swapped = disturbed(FaultsConfig { reorder_probability: 1.0, ..Default::default() });
    assert_eq!(swapped, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8].map(|seq| (seq, true)));
    let late = FaultsConfig {
        delay_probability: 1.0,
        max_delay_ms: 2,
        stall_at_frame: Some(3),
        stall_ms: 5,
        ..Default::default()
    };
    assert_eq!(disturbed(late), all(true));
    let some =
        FaultsConfig { seed: 3, drop_probability: 0.3, corrupt_probability: 0.3, ..Default::default() };
    assert_eq!(disturbed(some.clone()), disturbed(some.clone()), "equal seeds disturb equally");
    assert_ne!(disturbed(some.clone()), disturbed(FaultsConfig { seed: 4, ..some }));
}

#[test]
fn a_frame_held_back_holds_no_pages() {
    let (near, _far) = tcp_pair();
    let config = FaultsConfig { reorder_probability: 1.0, ..Default::default() };
    let mut near = faulty::sender(near, Checksum::Crc32c, config);
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    near.end.send(&head, &source, None).unwrap();
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn a_cut_path_is_broken_for_good() {
    let (near, _far) = tcp_pair();
    let mut near = faulty::sender(
        near,
        Checksum::Crc32c,
        FaultsConfig { cut_after_frames: Some(2), ..Default::default() },
    );
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    assert!(near.end.send(&head, &source, None).is_ok() && near.end.send(&head, &source, None).is_ok());
    assert!(near.end.send(&head, &source, None).is_err() && near.end.send(&head, &source, None).is_err());
}

#[test]
fn closing_ends_a_silence() {
    let (near, _far) = tcp_pair();
    let config = FaultsConfig { stall_at_frame: Some(1), stall_ms: 3_600_000, ..Default::default() };
    let mut near = faulty::sender(near, Checksum::Crc32c, config);
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    let closer = near.closer.clone();
    let silent = thread::spawn(move || near.end.send(&head, &source, None).is_err());
    closer.close();
    assert!(silent.join().unwrap());
}

fn two_maps() -> [shm::map::Map; 2] {
    let fd = shm::map::create().unwrap();
    [(); 2].map(|()| shm::map::Map::new(&fd).unwrap())
}

#[test]
fn bytes_past_the_caches_land_in_their_place_alone() {
    let [near, far] = two_maps();
    let bytes: Vec<u8> = (0..300_u32).map(|at| (at % 251) as u8 + 1).collect();
    for (at, size) in (0..70).flat_map(|at| [0, 1, 63, 64, 65, 129, 300].map(|size| (at, size))) {
        near.copy_in(0, &[0; 512]);
        near.stream_in(at, &bytes[..size]);
        let mut seen = [0; 512];
        far.copy_out(0, &mut seen);
        let (before, rest) = seen.split_at(at);
        let (written, after) = rest.split_at(size);
        assert_eq!(written, &bytes[..size], "{size} at {at}");
        assert!(before.iter().chain(after).all(|byte| *byte == 0), "{size} at {at}");
    }
}

#[test]
fn frames_larger_than_the_ring_arrive_whole() {
    let shape = KvShape { head_dim: 4096, page_tokens: 1, ..SHAPE };
    let head = header(&shape, 0, shape.span(0..3, 0..200));
    let [near, far] = two_maps();
    let (mut near, mut far) =
        (shm::sender(near, Checksum::Crc32c, PATIENT), shm::receiver(far, Checksum::Crc32c, PATIENT));
    let (source, sink) = (Memory::computed(&shape, 0..200), Memory::empty(&shape, 0..200));
    let sending =
        thread::spawn(move || near.end.send(&head, &(source as Arc<dyn KvSource>), None).map(|_| near));
    assert!(far.end.recv(&mut |_| Placement::Land(sink.clone())).unwrap().intact);
    assert!(sending.join().unwrap().is_ok() && sink.holds(0..200));
}

#[test]
fn nonsense_in_shared_memory_ends_the_path() {
    use std::sync::atomic::Ordering::SeqCst;
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    // Words 0 and 4 are the places of the two ends.
    for place in [shm::map::DATA_BYTES as u32 + 1, u32::MAX, 1 << 31] {
        let [near, far] = two_maps();
        near.word(0).store(place, SeqCst);
        let mut far = shm::receiver(far, Checksum::Crc32c, PATIENT);
        let error = far.end.recv(&mut |_| panic!("placed")).unwrap_err();
        assert!(matches!(error, PathError::Unavailable { .. }), "{error}");
        let [near, far] = two_maps();
        far.word(4).store(place, SeqCst);
        let mut near = shm::sender(near, Checksum::Crc32c, PATIENT);
        let error =
            std::iter::repeat_with(|| near.end.send(&head, &source, None)).find_map(Result::err).unwrap();
        assert!(matches!(error, PathError::Unavailable { .. }), "{error}");
    }
    // A place that could be right, with bytes that are no frame.
    let [near, far] = two_maps();
    near.copy_in(0, &[7; 200]);
    near.word(0).store(200, SeqCst);
    let mut far = shm::receiver(far, Checksum::Crc32c, PATIENT);
    assert!(matches!(far.end.recv(&mut |_| panic!("placed")), Err(PathError::Header(_))));
}

#[test]
fn a_ring_that_stops_half_way_is_a_stall() {
    let short = Duration::from_millis(20);
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    let (head, source): (_, Arc<dyn KvSource>) = (frames()[0].clone(), memory);
    let [near, far] = two_maps();
    near.copy_in(0, &head.encode());
    near.word(0).store(80, std::sync::atomic::Ordering::SeqCst);
    let mut far = shm::receiver(far, Checksum::Crc32c, short);
    assert!(matches!(far.end.recv(&mut |_| Placement::Discard), Err(PathError::Stalled)));
    let [near, _far] = two_maps();
    let mut near = shm::sender(near, Checksum::Crc32c, short);
    let error = std::iter::repeat_with(|| near.end.send(&head, &source, None)).find_map(Result::err).unwrap();
    assert!(matches!(error, PathError::Stalled), "{error}");
}

#[test]
fn only_memory_that_cannot_shrink_is_mapped() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let fd = memfd_create("other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, shm::map::MAP_BYTES as u64).unwrap();
    assert!(shm::map::Map::new(&fd).is_err(), "not sealed");
    let ring = shm::map::create().unwrap();
    assert!(ftruncate(&ring, 0).is_err());
    assert!(shm::map::Map::new(std::fs::File::open("/dev/null").unwrap()).is_err());
}
