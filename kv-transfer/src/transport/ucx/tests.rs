//! What only UCX's paths can do wrong; the rest is in the tests of every transport.

use std::{
    io::IoSlice,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use baton_protocol::{FrameHeader, KvSource, SessionId};

use super::{
    Reach, Receiver, Ucx,
    worker::{STEP, Worker},
};
use crate::{
    TransferConfig,
    testing::{Memory, SHAPE},
    transport::{
        Checksum, FrameReceiver, FrameSender, Link, PathError, Placement,
        offer::{Terms, Transport},
        tests::{Pair, TOKENS, frames},
    },
};

const PATIENT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

fn terms(secret: u8, stall: Duration) -> Terms {
    let config = TransferConfig {
        stall_timeout_ms: stall.as_millis() as u64,
        connect_timeout_ms: 10_000,
        ..TransferConfig::default()
    };
    Terms { session: SessionId(1), secret: [secret; 32], checksum: Checksum::Crc32c, config }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn host(staged: bool) -> Ucx {
    Ucx { staged, ..Ucx::new(Reach::Host) }
}

/// Both ends of a path, of two openings of UCX.
pub fn pair(staged: bool, stall: Duration) -> Pair {
    let (near, far, terms) = (host(staged), host(staged), terms(1, stall));
    runtime().block_on(async {
        let (addr, waiting) = near.listen(&terms).await.unwrap();
        let (sender, receiver) = tokio::join!(waiting.accept(), far.connect(&terms, &addr));
        (sender.unwrap(), receiver.unwrap())
    })
}

/// A sender that can send anything, and an honest receiver.
fn rogue(stall: Duration) -> (Worker, Receiver) {
    let (near, far, terms) = (host(false), host(false), terms(1, stall));
    let [mut near, mut worker] = [near, far].map(|ucx| runtime().block_on(ucx.worker(&terms)).unwrap());
    let address = near.address().to_vec();
    let calling = thread::spawn(move || worker.call(&address, PATIENT).map(|()| worker));
    near.answer(PATIENT).unwrap();
    (near, Receiver { worker: calling.join().unwrap().unwrap(), terms })
}

/// What a rogue tells of its bytes.
const UNTOLD: (Checksum, Option<u32>) = (Checksum::Crc32c, None);

fn send(near: &mut Worker, frame: &[u8; 80], payload: &[u8]) -> Result<(), PathError> {
    let posted = near.post(frame, &[IoSlice::new(payload)], UNTOLD, PATIENT)?;
    near.finish(posted, PATIENT)
}

fn memory() -> (FrameHeader, Arc<dyn KvSource>) {
    let memory = Memory::computed(&SHAPE, 0..TOKENS);
    (frames()[0].clone(), memory)
}

#[test]
fn ucx_is_open_while_a_path_needs_it() {
    let (ucx, terms) = (host(false), terms(1, PATIENT));
    let is_open = || ucx.context.is_open();
    assert!(!is_open());
    let [one, other] = [(), ()].map(|()| runtime().block_on(ucx.listen(&terms)).unwrap());
    drop(one);
    assert!(is_open());
    drop(other);
    assert!(!is_open());
    runtime().block_on(ucx.listen(&terms)).unwrap();
}

#[test]
fn only_who_knows_the_secret_is_heard() {
    let (near, far) = (host(false), host(false));
    let (addr, waiting) = runtime().block_on(near.listen(&terms(1, PATIENT))).unwrap();
    let mut stranger = terms(2, PATIENT);
    stranger.config.connect_timeout_ms = 300;
    runtime().block_on(async {
        let (accepted, ()) = tokio::join!(waiting.accept(), async {
            let refused = far.connect(&stranger, &addr).await.err();
            assert!(matches!(refused, Some(PathError::Stalled)), "{refused:?}");
            far.connect(&terms(1, PATIENT), &addr).await.unwrap();
        });
        accepted.unwrap();
    });
}

#[test]
fn an_address_is_given_up_with_its_rendezvous() {
    let (near, far) = (host(false), host(false));
    let mut terms = terms(1, PATIENT);
    terms.config.connect_timeout_ms = 300;
    let (addr, waiting) = runtime().block_on(near.listen(&terms)).unwrap();
    runtime().block_on(async {
        // Nobody comes: the thread that waits must not outlive whoever asked.
        tokio::time::timeout(SHORT, waiting.accept()).await.map(|_| ()).unwrap_err();
        assert!(far.connect(&terms, &addr).await.is_err());
        for wrong in ["", "0", "zz", &"00".repeat(super::MAX_ADDRESS_BYTES + 1)] {
            let refused = far.connect(&terms, wrong).await.err();
            assert!(matches!(refused, Some(PathError::Unavailable { .. })), "{refused:?}");
        }
    });
}

#[test]
fn a_peer_that_does_not_take_what_it_was_told_of_is_a_stall() {
    let (mut near, far) = pair(false, SHORT);
    let shape = baton_protocol::KvShape { head_dim: 4096, page_tokens: 1, ..SHAPE };
    let source = Memory::computed(&shape, 0..200);
    let span = shape.span(0..3, 0..200);
    let head = crate::testing::header(&shape, 0, span);
    let source: Arc<dyn KvSource> = source;
    let error = near.end.send(&head, &source, None).unwrap_err();
    assert!(matches!(error, PathError::Stalled), "{error}");
    assert!(matches!(near.end.send(&head, &source, None), Err(PathError::Closed)), "it is over for good");
    drop(far);
}

#[test]
fn a_peer_that_leaves_is_noticed_after_its_last_frame() {
    for staged in [false, true] {
        let (mut near, mut far) = pair(staged, PATIENT);
        let (head, source) = memory();
        near.end.send(&head, &source, None).unwrap();
        drop(near);
        assert!(far.end.recv(&mut |_| Placement::Discard).unwrap().intact);
        assert!(matches!(far.end.recv(&mut |_| Placement::Discard), Err(PathError::Closed)));
        let (mut near, far) = pair(staged, PATIENT);
        drop(far);
        let error =
            std::iter::repeat_with(|| near.end.send(&head, &source, None)).find_map(Result::err).unwrap();
        assert!(matches!(error, PathError::Closed), "{error}");
    }
}

/// Lengths that differ from what the header says.
#[test]
pub fn steps_that_make_no_sense_end_the_path() {
    let (head, _) = memory();
    let payload = vec![0; head.bytes as usize];
    let huge = FrameHeader { bytes: u32::MAX, ..head.clone() };
    for header in [huge.encode(), [7; 80]] {
        let (mut near, mut far) = rogue(PATIENT);
        near.post(&header, &[IoSlice::new(&[])], UNTOLD, PATIENT).unwrap();
        let error = far.recv(&mut |_| panic!("placed")).unwrap_err();
        assert!(matches!(error, PathError::Header(_) | PathError::TooLarge { .. }), "{error}");
    }
    for wrong in [0, 1, payload.len() - 1, payload.len() + 1, 5000, STEP] {
        let (mut near, mut far) = rogue(PATIENT);
        let sent = vec![0; wrong];
        let sending = thread::spawn(move || {
            let _ = send(&mut near, &head_bytes(), &sent);
            near
        });
        let error = far.recv(&mut |_| Placement::Discard).unwrap_err();
        assert!(matches!(error, PathError::Unavailable { .. }), "{wrong}: {error}");
        drop(far);
        sending.join().unwrap();
    }
}

fn head_bytes() -> [u8; 80] {
    memory().0.encode()
}

/// The second step is missing.
#[test]
pub fn a_frame_whose_rest_does_not_come_is_a_stall() {
    let (mut near, mut far) = rogue(SHORT);
    let (head, _) = memory();
    let long = FrameHeader { bytes: STEP as u32 + 1, ..head };
    let sending = thread::spawn(move || (send(&mut near, &long.encode(), &vec![0; STEP]), near));
    let error = far.recv(&mut |_| Placement::Discard).unwrap_err();
    assert!(matches!(error, PathError::Stalled), "{error}");
    drop(far);
    assert!(sending.join().unwrap().0.is_ok());
}

/// Not a test by itself: the process that is killed below.
#[test]
fn receives_for_ever() {
    let Ok(addr) = std::env::var("BATON_TEST_UCX_ADDR") else { return };
    let mut link: Link<dyn FrameReceiver> =
        runtime().block_on(host(false).connect(&terms(1, PATIENT), &addr)).unwrap();
    while link.end.recv(&mut |_| Placement::Discard).is_ok() {}
}

#[test]
fn a_killed_process_ends_the_path_in_time() {
    let (near, terms) = (host(false), terms(1, Duration::from_secs(1)));
    let (addr, waiting) = runtime().block_on(near.listen(&terms)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "transport::ucx::tests::receives_for_ever"])
        .env("BATON_TEST_UCX_ADDR", addr)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut link: Link<dyn FrameSender> = runtime().block_on(waiting.accept()).unwrap();
    let shape = baton_protocol::KvShape { head_dim: 4096, page_tokens: 1, ..SHAPE };
    let source = Memory::computed(&shape, 0..20);
    let span = shape.span(0..3, 0..20);
    let head = crate::testing::header(&shape, 0, span);
    let weak = Arc::downgrade(&source);
    let source: Arc<dyn KvSource> = source;
    link.end.send(&head, &source, None).unwrap();
    let killing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let error = std::iter::repeat_with(|| link.end.send(&head, &source, None)).find_map(Result::err).unwrap();
    assert!(matches!(error, PathError::Closed | PathError::Stalled), "{error}");
    killing.join().unwrap();
    drop(source);
    assert!(weak.upgrade().is_none(), "nothing keeps its pages");
}
