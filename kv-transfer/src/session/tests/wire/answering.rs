//! Bad prefill nodes.

use std::io::IoSlice;

use baton_protocol::{Digest, HandoffId, KvSource, KvSpan, RequestId, wire::prefill_server::Prefill};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{
    session::control::opening,
    testing::{handoff_id, header},
    transport::probe::{self, PROBE},
};

const ZEROS: HandoffId = HandoffId { request: RequestId(0), attempt: 0, leg: 0 };

/// Bytes without end that are no numbers, whatever they are taken for.
struct NotNumbers;

impl KvSource for NotNumbers {
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        use_bytes(&[IoSlice::new(&vec![0xff; SHAPE.span_bytes(span)])])
    }
}

/// The bytes of another layer.
struct OtherLayer(Arc<Memory>, u32);

impl KvSource for OtherLayer {
    fn read(
        &self,
        span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.0.read(&KvSpan { layers: self.1..self.1 + 1, ..span.clone() }, use_bytes)
    }
}

/// Size of the frames that measure a path, where one is measured.
const PROBE_BYTES: u32 = 100;

/// One thing that a bad node does.
pub enum Does {
    /// Waits until a handoff is asked for.
    AwaitAsk,
    Say(Message),
    /// With its own number and session.
    Control(Control),
    AwaitCredit,
    Frame(FrameHeader),
    /// A right frame, but for what is told of it.
    Damaged(FrameHeader),
    /// A right header with other bytes: those of a layer, or, without one, numbers that are none.
    Other(FrameHeader, Option<u32>),
    /// FIN of what the headers so far have named.
    Fin,
    AwaitCommit,
    /// A place in the ring; for shared memory.
    Place(u32),
    /// Whatever a stream can carry; for transports over one.
    Bytes(Vec<u8>),
    HangUp,
    /// Keeps everything open and says nothing more.
    Silence,
}

/// Its way, a name, and what is done.
type Case = (Way, &'static str, Vec<Does>);

fn id() -> Option<wire::HandoffId> {
    Some(handoff_id(0).into())
}

fn start() -> Does {
    Does::Say(Message::Start(wire::Start { id: id(), ..Default::default() }))
}

fn first() -> Does {
    Does::Say(Message::First(wire::First { id: id(), ..Default::default() }))
}

fn fin(frames: u32, digest: u64) -> Does {
    Does::Say(Message::Fin(wire::Fin { id: id(), frames, digest }))
}

/// A right frame of one layer, but for the change.
fn frame(seq: u32, change: impl FnOnce(&mut FrameHeader)) -> Does {
    let mut header = header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS));
    change(&mut header);
    Does::Frame(header)
}

/// Right frames of all layers.
fn right() -> impl Iterator<Item = Does> {
    (0..3).map(|seq| frame(seq, |_| {}))
}

fn abort(reason: &str) -> Does {
    Does::Say(Message::Abort(wire::Abort { id: id(), reason: reason.to_owned(), ..Default::default() }))
}

fn begun(then: impl IntoIterator<Item = Does>) -> Vec<Does> {
    [start(), Does::AwaitCredit].into_iter().chain(then).collect()
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<Case> {
    let damaged = |_| Does::Damaged(header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS)));
    let swapped =
        |seq, layer| Does::Other(header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS)), Some(layer));
    let other = |change: fn(&mut Control)| {
        let mut control = Control { session: 0, number: 2, message: Some(Message::Ping(Default::default())) };
        change(&mut control);
        vec![Does::Control(control)]
    };
    vec![
        (6, "a number left out", other(|control| control.number = 3)),
        (16, "a number again: a replay", other(|control| control.number = 1)),
        (10, "another session", other(|control| control.session = 1)),
        (6, "a kind that nobody knows", other(|control| control.message = None)),
        (6, "PREFILL from the wrong side", vec![Does::Say(Message::Prefill((&ask(0, TOKENS, 0)).into()))]),
        (6, "WELCOME again", vec![Does::Say(Message::Welcome(Welcome::default()))]),
        (7, "START without an id", vec![Does::Say(Message::Start(Default::default()))]),
        (
            7,
            "RECONCILE with an id of no bytes",
            vec![Does::Say(Message::Reconcile(wire::Reconcile {
                ids: vec![wire::HandoffId::default()],
                up_to_number: u64::MAX,
            }))],
        ),
        (
            19,
            "RECONCILE that knows nothing",
            vec![Does::Say(Message::Reconcile(wire::Reconcile { ids: Vec::new(), up_to_number: u64::MAX }))],
        ),
        (22, "ABORT", vec![Does::Say(Message::Abort(wire::Abort { id: id(), ..Default::default() }))]),
        (6, "a frame before START", vec![frame(0, |_| {})]),
        (18, "START twice and hang up", begun([start(), start(), Does::HangUp])),
        (8, "a layer beyond", begun([frame(0, |header| header.span.layers = 2..4)])),
        (9, "all layers there are numbers for", begun([frame(0, |header| header.span.layers = 0..u32::MAX)])),
        (8, "tokens beyond", begun([frame(0, |header| header.span.tokens = 0..TOKENS + 1)])),
        (
            9,
            "the last token there is a number for",
            begun([frame(0, |header| header.span.tokens = u32::MAX - 1..u32::MAX)]),
        ),
        (8, "heads beyond", begun([frame(0, |header| header.span.heads = 1..3)])),
        (9, "too few bytes", begun([frame(0, |header| header.bytes -= 1)])),
        (9, "too many bytes", begun([frame(0, |header| header.bytes += 16)])),
        (4, "no bytes", begun([frame(0, |header| header.bytes = 0)])),
        (12, "beyond the credit", begun([frame(0, |header| header.seq = 4)])),
        (9, "the largest number", begun([frame(0, |header| header.seq = u32::MAX)])),
        (8, "a box twice under two numbers", begun([frame(0, |_| {}), frame(0, |header| header.seq = 1)])),
        (
            26,
            "one frame in another's place",
            begun([first(), frame(0, |header| header.span.layers = 1..2), frame(1, |_| {})]),
        ),
        (11, "a checksum that is never right", begun((0..5).map(damaged))),
        (12, "FIN before the first token", begun(right().chain([fin(3, 0)]))),
        (11, "FIN of another digest", begun([first()].into_iter().chain(right()).chain([fin(3, 7)]))),
        (
            12,
            "FIN of fewer frames than came",
            begun([first()].into_iter().chain(right()).chain([Does::AwaitCredit, fin(1, 0)])),
        ),
        (12, "FIN of more frames than were allowed", begun([first(), fin(u32::MAX, 0)])),
        (12, "FIN of nothing", begun([first(), fin(0, 0)])),
        (12, "FIN of frames that never come", begun([first(), fin(2, 0)])),
        (6, "FIRST a thousand times and hang up", begun((0..1000).map(|_| first()).chain([Does::HangUp]))),
        (
            7,
            "frames that nobody asked for, and hang up",
            begun(
                (0..50)
                    .map(|leg| frame(0, |header| header.handoff = handoff_id(leg + 5)))
                    .chain([Does::HangUp]),
            ),
        ),
        (
            7,
            "frames of an id of zeros, and hangs up",
            begun([frame(0, |header| header.handoff = ZEROS), Does::HangUp]),
        ),
        (
            8,
            "a box that overlaps another",
            begun([
                frame(0, |_| {}),
                frame(1, |header| {
                    header.span.layers = 0..2;
                    header.bytes *= 2;
                }),
            ]),
        ),
        (
            11,
            "the bytes of two frames in each other's place",
            begun([first(), swapped(0, 1), swapped(1, 0), frame(2, |_| {}), Does::Fin]),
        ),
        (22, "ABORT behind START", begun([abort("")])),
        (22, "ABORT behind a frame", begun([frame(0, |_| {}), abort("")])),
        (22, "ABORT, and frames behind it", begun([abort("")].into_iter().chain(right()))),
        (24, "a reason of three megabytes", vec![abort(&"x".repeat(3 << 20))]),
        (23, "hangs up when asked", vec![Does::HangUp]),
        (23, "hangs up after START", begun([Does::HangUp])),
        (23, "hangs up after a frame", begun([frame(0, |_| {}), Does::HangUp])),
        (23, "silence when asked", vec![Does::Silence]),
        (23, "silence after START", begun([Does::Silence])),
    ]
}

/// What is too late to do harm, or is allowed.
pub fn harmless() -> Vec<Case> {
    let whole = || begun([first()].into_iter().chain(right()).chain([Does::Fin]));
    let then = |does: Vec<Does>| whole().into_iter().chain(does).collect();
    let not_numbers = |seq| Does::Other(header(&SHAPE, seq, SHAPE.span(seq..seq + 1, 0..TOKENS)), None);
    let again = || [Does::AwaitCommit, frame(0, |_| {}), Does::HangUp];
    vec![
        (6, "a frame behind FIN", then(again().into())),
        (6, "FIN twice", then(vec![Does::Fin])),
        (
            7,
            "a frame of a handoff that is over, numbered on",
            then(vec![Does::AwaitCommit, frame(0, |header| header.seq = 3), Does::HangUp]),
        ),
        (
            14,
            "numbers that are none",
            begun([first(), not_numbers(0), not_numbers(1), not_numbers(2), Does::Fin]),
        ),
        (22, "ABORT behind COMMIT", then(vec![Does::AwaitCommit, abort("")])),
        (
            26,
            "frames in another order",
            begun([first(), frame(2, |_| {}), frame(0, |_| {}), frame(1, |_| {}), Does::Fin]),
        ),
    ]
}

/// Words in a ring that make no sense.
pub fn places() -> Vec<Case> {
    let beyond = shm::map::DATA_BYTES as u32 + 1;
    let case = |name, place| (15, name, begun([Does::Place(place), Does::Silence]));
    vec![
        case("a place beyond the ring", beyond),
        case("the largest place", u32::MAX),
        case("a place half the numbers on", 1 << 31),
    ]
}

/// What else a stream can carry.
pub fn bytes() -> Vec<Case> {
    let head = header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS));
    let changed = |change: fn(&mut FrameHeader)| {
        let mut head = head.clone();
        change(&mut head);
        head.encode().to_vec()
    };
    let good = head.encode().to_vec();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        bytes
    };
    let case = |way, name, bytes| (way, name, begun([Does::Bytes(bytes), Does::Silence]));
    vec![
        case(2, "a megabyte of noise", vec![0xa5; 1 << 20]),
        case(
            2,
            "HTTP",
            b"GET / HTTP/1.1\r\nhost: x\r\nuser-agent: a peer that is no peer of this kind at all\r\n\r\n"
                .to_vec(),
        ),
        case(3, "another magic", flipped(0)),
        case(3, "a header with a flipped bit", flipped(50)),
        case(3, "a reserved byte", flipped(70)),
        case(4, "a frame of four gigabytes", changed(|header| header.bytes = u32::MAX)),
        case(
            4,
            "a frame over the limit",
            changed(|header| header.bytes = crate::transport::MAX_FRAME_BYTES + 1),
        ),
        case(
            9,
            "layers backwards",
            changed(|header| (header.span.layers.start, header.span.layers.end) = (2, 1)),
        ),
        case(9, "no heads", changed(|header| header.span.heads = 1..1)),
        case(4, "one byte of a header", good[..1].to_vec()),
        case(4, "half a header", good[..40].to_vec()),
        case(4, "a header and no payload", good.clone()),
        case(4, "a header and half a payload", [good.clone(), vec![1; 99]].concat()),
        case(4, "a payload and half a checksum", [good.clone(), vec![1; head.bytes as usize + 2]].concat()),
    ]
}

/// A prefill node that answers with a script.
struct Answerer {
    road: Road,
    local: LocalNode,
    welcome: fn(&mut Welcome),
    script: Mutex<Option<Vec<Does>>>,
    tasks: Mutex<JoinSet<()>>,
}

type Up = mpsc::Sender<Result<Control, Status>>;

#[tonic::async_trait]
impl Prefill for Answerer {
    type SessionStream = ReceiverStream<Result<Control, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<Control>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let hello = inbound.message().await?;
        assert!(matches!(hello.and_then(|control| control.message), Some(Message::Hello(_))));
        let mut welcome = Welcome {
            session: 77,
            protocol: *baton_protocol::PROTOCOL.end(),
            data_secret: vec![3; 32].into(),
            node: self.local.node.0.clone(),
            incarnation: self.local.incarnation.0,
            kv: Some((&self.local.kv).into()),
            paths: Vec::new(),
            transport: self.road.name().to_owned(),
            checksum: Checksum::Crc32c.as_str().to_owned(),
        };
        let (addr, waiting) = self.road.wait(&welcome).await;
        welcome.paths.push(wire::Path { kind: self.road.name().to_owned(), addr, failed: String::new() });
        (self.welcome)(&mut welcome);
        let (up, messages) = mpsc::channel(8);
        up.send(Ok(opening(Message::Welcome(welcome)))).await.unwrap();
        let script = self.script.lock().take().unwrap_or_default();
        self.tasks.lock().spawn(play(script, inbound, up, waiting));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Waits for a message of a kind; false when the other side has ended it.
async fn hears(inbound: &mut Streaming<Control>, kind: fn(&Message) -> bool) -> bool {
    while let Ok(Some(control)) = inbound.message().await {
        if control.message.is_some_and(|message| kind(&message)) {
            return true;
        }
    }
    false
}

fn is_right(header: &FrameHeader, source: &Memory) -> bool {
    SHAPE.span_bytes(&header.span) == header.bytes as usize
        && source.read(&header.span, &mut |_| Ok(())).is_ok()
}

async fn play(script: Vec<Does>, mut inbound: Streaming<Control>, up: Up, waiting: Waiting) {
    let Ok((mut link, mut raw)) = waiting.meet().await else { return };
    let (mut number, source) = (1, Memory::computed(&SHAPE, 0..TOKENS));
    let (mut frames, mut digest) = (0, Digest::default());
    for does in script {
        match does {
            Does::AwaitAsk => {
                hears(&mut inbound, |message| matches!(message, Message::Prefill(_))).await;
            }
            Does::Say(message) => {
                number += 1;
                let _ = up.send(Ok(Control { session: 77, number, message: Some(message) })).await;
            }
            Does::Control(control) => {
                let _ = up.send(Ok(Control { session: control.session ^ 77, ..control })).await;
            }
            Does::AwaitCredit => {
                hears(&mut inbound, |message| matches!(message, Message::Credit(_))).await;
            }
            Does::Frame(ref header) | Does::Damaged(ref header) | Does::Other(ref header, _) => {
                // Not one of the frames has this checksum.
                let (header, told) = (header.clone(), matches!(does, Does::Damaged(_)).then_some(0));
                let sent: Arc<dyn KvSource> = match does {
                    Does::Other(_, Some(layer)) => Arc::new(OtherLayer(source.clone(), layer)),
                    Does::Other(_, None) => Arc::new(NotNumbers),
                    _ if is_right(&header, &source) => source.clone(),
                    _ => probe::noise(header.bytes),
                };
                let named: &dyn KvSource =
                    if matches!(does, Does::Other(_, None)) { &NotNumbers } else { &*source };
                if let Ok(crc) = Checksum::Crc32c.of(named, &header.span) {
                    digest.add(header.seq, crc);
                    frames += 1;
                }
                let send = move || {
                    // The other side may have closed it already.
                    let _ = link.end.send(&header, &sent, told);
                    link
                };
                link = tokio::task::spawn_blocking(send).await.unwrap();
            }
            Does::Fin => {
                number += 1;
                let message = Some(Message::Fin(wire::Fin { id: id(), frames, digest: digest.0 }));
                let _ = up.send(Ok(Control { session: 77, number, message })).await;
            }
            Does::AwaitCommit => {
                hears(&mut inbound, |message| matches!(message, Message::Commit(_))).await;
            }
            Does::Place(place) => raw.as_ref().unwrap().place(place),
            Does::Bytes(bytes) => raw.as_mut().unwrap().write(&bytes),
            Does::HangUp => return,
            Does::Silence => while hears(&mut inbound, |_| false).await {},
        }
    }
    // Found out, it gives up; what it did not do is what the case is about.
    hears(&mut inbound, |message| matches!(message, Message::Abort(_))).await;
}

async fn answerer(
    road: Road,
    leg: u32,
    script: Vec<Does>,
    welcome: fn(&mut Welcome),
) -> (PrefillPeer, JoinSet<()>) {
    let local = node(&format!("bad-{leg}"), 1, 4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = PrefillPeer {
        node: local.node.clone(),
        control_addr: listener.local_addr().unwrap().to_string(),
        incarnation: local.incarnation,
    };
    let service =
        Answerer { road, local, welcome, script: Mutex::new(Some(script)), tasks: Mutex::default() };
    let mut server = JoinSet::new();
    let router = Server::builder().add_service(PrefillServer::new(service));
    server.spawn(async move { drop(router.serve_with_incoming(TcpListenerStream::new(listener)).await) });
    (peer, server)
}

/// The node is as good as new: a handoff with an honest peer works.
async fn is_well(sessions: &Sessions, honest: &Served, leg: u32) {
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&honest.peer, ask(leg, TOKENS, 0), landing(&sink)).await.unwrap();
    assert_eq!(finish(&mut handoff).await.0.last(), Some(&"ready"));
    assert!(sink.holds(0..TOKENS));
}

#[tokio::test]
pub async fn bad_answers_are_lost_and_nothing_is_kept() {
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, (way, name, script)) in (0..).zip(road.bad_answers()) {
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, mut server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            let (names, end) = finish(&mut handoff).await;
            assert_eq!(names.last(), Some(&"lost"), "{way}: {name} over {}", road.name());
            // Found out by what it did; only who does nothing is lost for want of pings.
            let HandoffEvent::Lost { reason, .. } = &end else { unreachable!() };
            assert_eq!(reason.message.contains("pings"), name.starts_with("silence"), "{name}: {reason}");
            drop((end, handoff));
            server.shutdown().await;
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

impl Road {
    /// What a bad prefill node can do over this transport.
    pub fn bad_answers(self) -> Vec<Case> {
        let streams = if self.is_stream { bytes() } else { Vec::new() };
        let ring = if self.kind == TransportKind::Shm { places() } else { Vec::new() };
        cases().into_iter().chain(streams).chain(ring).collect()
    }
}

#[tokio::test]
pub async fn what_is_late_or_allowed_does_no_harm() {
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, (way, name, script)) in (0..).zip(harmless()) {
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, mut server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            let (names, _) = finish(&mut handoff).await;
            sink.sealed.store(true, Ordering::SeqCst);
            assert_eq!(names.last(), Some(&"ready"), "{way}: {name} over {}", road.name());
            assert_eq!(sink.holds(0..TOKENS), way != 14, "{name}");
            drop(handoff);
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
            is_well(&sessions, &honest, leg).await;
            server.shutdown().await;
            assert_eq!(sink.violations.load(Ordering::SeqCst), 0, "{name} over {}", road.name());
        }
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn a_frame_may_be_cut_at_any_byte() {
    let good = header(&SHAPE, 0, SHAPE.span(0..1, 0..TOKENS));
    let whole = [&good.encode()[..], &vec![1; good.bytes as usize + 4]].concat();
    for &road in ROADS.iter().filter(|road| road.is_stream) {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        // Every byte of the header, and some behind it.
        let cuts = (0..=baton_protocol::frame::HEADER_BYTES).chain((81..whole.len()).step_by(97));
        for (leg, cut) in (0..).zip(cuts) {
            let script = begun([Does::Bytes(whole[..cut].to_vec()), Does::HangUp]);
            let script = [Does::AwaitAsk].into_iter().chain(script).collect();
            let (peer, _server) = answerer(road, leg, script, |_| {}).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let mut handoff = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await.unwrap();
            assert_eq!(finish(&mut handoff).await.0.last(), Some(&"lost"), "{cut} over {}", road.name());
            drop(handoff);
            until("pages are let go", || Arc::strong_count(&sink) == 1).await;
        }
        is_well(&sessions, &honest, 0).await;
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn frames_on_another_socket_are_lost() {
    let honest = serve(node("p", 1, 4), config(TransportKind::Tcp), engine(&SHAPE, false)).await;
    let sessions = Sessions::new(node("d", 2, 4), TransferConfig { tcp_sockets: 3, ..limits(TCP) }).unwrap();
    // The bad node knows of one socket: all frames come over the first.
    let script = [Does::AwaitAsk].into_iter().chain(begun(right().chain([Does::Silence]))).collect();
    let (peer, _server) = answerer(TCP, 0, script, |_| {}).await;
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let lost = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await;
    match lost {
        Ok(mut handoff) => assert_eq!(finish(&mut handoff).await.0.last(), Some(&"lost")),
        Err(error) => {
            assert!(matches!(error, HandoffError::Session(SessionError::Connect { .. })), "{error}");
        }
    }
    until("pages are let go", || Arc::strong_count(&sink) == 1).await;
    is_well(&sessions, &honest, 0).await;
}

#[tokio::test]
pub async fn a_bad_welcome_is_no_session() {
    let changes: [fn(&mut Welcome); 16] = [
        |welcome| welcome.node = "other".to_owned(),
        |welcome| welcome.incarnation = 5,
        |welcome| welcome.session = 0,
        |welcome| welcome.protocol = 0,
        |welcome| welcome.protocol = u32::MAX,
        |welcome| welcome.data_secret = vec![3; 31].into(),
        |welcome| welcome.checksum = "md5".to_owned(),
        |welcome| welcome.checksum = "none".to_owned(),
        |welcome| welcome.paths.clear(),
        |welcome| welcome.paths[0].kind = "carrier pigeon".to_owned(),
        |welcome| {
            let path = &mut welcome.paths[0];
            path.kind = if path.kind == "ucx" { "shm" } else { "ucx" }.to_owned();
        },
        |welcome| welcome.paths[0].failed = "no room".to_owned(),
        |welcome| welcome.kv = None,
        |welcome| welcome.kv.as_mut().unwrap().head_dim = 3,
        |welcome| welcome.paths[0].addr = "192.0.2.1:9".to_owned(),
        |welcome| welcome.paths[0].addr.clear(),
    ];
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let sessions = Sessions::new(node("d", 2, 4), limits(road)).unwrap();
        for (leg, change) in (0..).zip(changes) {
            let (peer, _server) = answerer(road, leg, Vec::new(), change).await;
            let sink = Memory::empty(&SHAPE, 0..TOKENS);
            let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), landing(&sink)).await;
            assert!(refused.is_err(), "change {leg} over {}", road.name());
            assert_eq!(Arc::strong_count(&sink), 1);
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

/// Frames that measure a path, but for the change.
fn probes(change: impl Fn(&mut FrameHeader)) -> Vec<Does> {
    let probe = |seq| {
        let span = KvSpan { layers: 0..1, tokens: 0..1, heads: 0..1 };
        let mut header = FrameHeader { handoff: PROBE, seq, span, bytes: PROBE_BYTES };
        change(&mut header);
        header
    };
    (0..4).map(probe).map(Does::Frame).chain([Does::Silence]).collect()
}

/// Right ones, but for what is told of the third.
fn damaged_probes() -> Vec<Does> {
    let damaged = |does| match does {
        Does::Frame(header) if header.seq == 2 => Does::Damaged(header),
        does => does,
    };
    probes(|_| {}).into_iter().map(damaged).collect()
}

#[tokio::test]
pub async fn a_bad_probe_is_no_session() {
    let cases = || {
        [
            ("another handoff", probes(|header| header.handoff = handoff_id(0))),
            ("another order", probes(|header| header.seq ^= 1)),
            ("one too short", probes(|header| header.bytes -= u32::from(header.seq == 3))),
            ("one too long", probes(|header| header.bytes += u32::from(header.seq == 3))),
            ("a wrong checksum", damaged_probes()),
            ("too few", probes(|_| {}).into_iter().skip(2).collect()),
            ("none", vec![Does::Silence]),
            ("hangs up", vec![Does::HangUp]),
        ]
    };
    for &road in ROADS {
        let honest = serve(node("p", 1, 4), config(road.kind), engine(&SHAPE, false)).await;
        let measuring = TransferConfig { probe_bytes: PROBE_BYTES, ..limits(road) };
        let sessions = Sessions::new(node("d", 2, 4), measuring).unwrap();
        for (leg, (name, script)) in (0..).zip(cases()) {
            let (peer, _server) = answerer(road, leg, script, |_| {}).await;
            let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await;
            assert!(refused.is_err(), "{name} over {}", road.name());
            is_well(&sessions, &honest, leg).await;
        }
        sessions.shutdown().await;
    }
}

#[tokio::test]
pub async fn who_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_addr = listener.local_addr().unwrap().to_string();
    let peer = PrefillPeer { node: "mute".into(), control_addr, incarnation: Incarnation(1) };
    let sessions = Sessions::new(node("d", 2, 4), limits(TCP)).unwrap();
    let refused = sessions.handoff(&peer, ask(0, TOKENS, 0), Box::new(Slot(None))).await.err();
    assert!(matches!(refused, Some(HandoffError::Session(SessionError::Connect { .. }))), "{refused:?}");
}
