//! Bad decode nodes.
//!
//! - [`opening`]: those that get no session

pub mod opening;

use baton_protocol::wire::{Hello, prefill_client::PrefillClient};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::{
    session::{control::opening, hello::hello},
    transport::{Closer, Placement},
};

/// A decode node that says what it likes.
struct Asker {
    session: u64,
    number: u64,
    up: mpsc::Sender<Control>,
    down: Streaming<Control>,
}

/// One thing that it says.
pub enum Said {
    /// Properly numbered.
    Message(Message),
    /// As it stands, but for the session's number added.
    Control(Control),
}

/// What must come of it.
pub enum Then {
    /// The session ends.
    CutOff,
    /// The session goes on, and this is among what is said next.
    Told(fn(&Message) -> bool),
}

/// Its way, a name, what is said once a path is chosen, what must come of it.
type Case = (Way, &'static str, Vec<Said>, Then);

fn says(messages: impl IntoIterator<Item = Message>) -> Vec<Said> {
    messages.into_iter().map(Said::Message).collect()
}

fn id(leg: u32) -> Option<wire::HandoffId> {
    Some(crate::testing::handoff_id(leg).into())
}

fn prefill(change: impl FnOnce(&mut wire::PrefillAsk)) -> Message {
    let mut prefill = wire::PrefillAsk::from(&ask(0, TOKENS, 0));
    change(&mut prefill);
    Message::Prefill(prefill)
}

fn request(change: impl FnOnce(&mut wire::Request)) -> Message {
    prefill(|ask| change(ask.request.as_mut().unwrap()))
}

fn credit(frames: u32) -> Message {
    Message::Credit(wire::Credit { id: id(0), frames })
}

fn chosen(kind: &str) -> Message {
    Message::Chosen(wire::Chosen { kind: kind.to_owned(), tried: Vec::new() })
}

fn numbered(number: u64, message: Option<Message>) -> Vec<Said> {
    vec![Said::Control(Control { session: 0, number, message })]
}

fn ping() -> Message {
    Message::Ping(wire::SessionPing::default())
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub fn cases() -> Vec<Case> {
    let aborted = Then::Told(|message| matches!(message, Message::Abort(_)));
    let quiesced = || Then::Told(|message| matches!(message, Message::Quiesced(_)));
    let pong = || Then::Told(|message| matches!(message, Message::Ping(_)));
    let (start, chatter) = (Message::Start(Default::default()), Message::Queued(Default::default()));
    let flood = (0..9).map(|leg| Message::Prefill((&ask(leg, TOKENS, 0)).into()));
    let commit = |drop| Message::Commit(wire::Commit { id: id(0), drop });
    let nack = |seq| Message::Nack(wire::Nack { id: id(0), seq });
    let aborts = |id| Message::Abort(wire::Abort { id, ..Default::default() });
    let lost = |leg| aborts(id(leg));
    let zeros = || Some(wire::HandoffId { request: vec![0; 16].into(), ..Default::default() });
    let largest = Message::Ping(wire::SessionPing { open: u32::MAX, xor: u64::MAX, reply: false });
    vec![
        (16, "a number again: a replay", numbered(1, Some(ping())), Then::CutOff),
        (6, "a number left out", numbered(9, Some(ping())), Then::CutOff),
        (9, "the largest number", numbered(u64::MAX, Some(ping())), Then::CutOff),
        (
            10,
            "another session",
            vec![Said::Control(Control { session: 5, number: 2, message: Some(ping()) })],
            Then::CutOff,
        ),
        (6, "a kind that nobody knows", numbered(2, None), Then::CutOff),
        (6, "HELLO again", says([Message::Hello(Hello::default())]), Then::CutOff),
        (6, "WELCOME from the wrong side", says([Message::Welcome(Welcome::default())]), Then::CutOff),
        (6, "CHOSEN again", says([chosen("tcp")]), Then::CutOff),
        (6, "START from the wrong side", says([start]), Then::CutOff),
        (7, "QUEUED without an id", says([chatter]), Then::CutOff),
        (19, "RECONCILE from the wrong side", says([Message::Reconcile(Default::default())]), Then::CutOff),
        (
            6,
            "FIN from the wrong side",
            says([Message::Fin(wire::Fin { id: id(0), ..Default::default() })]),
            Then::CutOff,
        ),
        (7, "PREFILL without an id", says([prefill(|ask| ask.id = None)]), Then::CutOff),
        (
            7,
            "an id of 15 bytes",
            says([prefill(|ask| ask.id.as_mut().unwrap().request = vec![0; 15].into())]),
            Then::CutOff,
        ),
        (13, "PREFILL without a request", says([prefill(|ask| ask.request = None)]), Then::CutOff),
        (13, "no tokens", says([request(|request| request.tokens.clear())]), Then::CutOff),
        (13, "no choices", says([request(|request| request.choices = 0)]), Then::CutOff),
        (13, "no sampling", says([request(|request| request.sampling = None)]), Then::CutOff),
        (13, "have is everything", says([prefill(|ask| ask.have = TOKENS)]), aborted),
        (
            9,
            "have is beyond",
            says([prefill(|ask| ask.have = u32::MAX)]),
            Then::Told(|m| matches!(m, Message::Abort(_))),
        ),
        (
            13,
            "prompt beyond the tokens",
            says([prefill(|ask| ask.prompt_tokens = TOKENS + 1)]),
            Then::Told(|m| matches!(m, Message::Abort(_))),
        ),
        (
            13,
            "a sample of no choice",
            says([prefill(|ask| ask.sample = vec![u32::MAX])]),
            Then::Told(|m| matches!(m, Message::Abort(_))),
        ),
        (
            18,
            "the same PREFILL twice",
            says([prefill(|_| {}), prefill(|_| {}), credit(1), lost(0)]),
            quiesced(),
        ),
        (17, "more handoffs than are allowed", says(flood), Then::Told(|m| matches!(m, Message::Busy(_)))),
        (
            24,
            "a message of six megabytes",
            says([request(|request| request.tokens = vec![u32::MAX; 1_200_000])]),
            Then::CutOff,
        ),
        (
            20,
            "a deadline after the end of time",
            says([prefill(|ask| ask.deadline_ms = u64::MAX), lost(0)]),
            quiesced(),
        ),
        (7, "CREDIT for nothing", says([credit(7), ping()]), pong()),
        (
            12,
            "CREDIT of everything, and nobody takes it",
            says([prefill(|_| {}), credit(u32::MAX), credit(u32::MAX), lost(0)]),
            quiesced(),
        ),
        (7, "COMMIT for nothing", says([commit(false), commit(true)]), quiesced()),
        (12, "COMMIT before FIN", says([prefill(|_| {}), commit(false), ping()]), pong()),
        (7, "NACK for what never was", says([prefill(|_| {}), nack(u32::MAX), nack(0), lost(0)]), quiesced()),
        (22, "ABORT for what never was", says([lost(3)]), quiesced()),
        (22, "ABORT twice", says([prefill(|_| {}), lost(0), lost(0)]), quiesced()),
        (
            19,
            "a digest of handoffs that never were",
            says([Message::Ping(wire::SessionPing { open: 9, xor: 1, reply: false })]),
            Then::Told(|m| matches!(m, Message::Reconcile(_))),
        ),
        (
            13,
            "KV handed back without tokens",
            says([Message::Return(wire::Return { id: id(0), ..Default::default() })]),
            Then::CutOff,
        ),
        (
            25,
            "KV handed back at an address beyond this machine",
            says([
                Message::Return(wire::Return {
                    id: id(0),
                    tokens: vec![1],
                    control_addr: "192.0.2.1:1".into(),
                    ..Default::default()
                }),
                ping(),
            ]),
            pong(),
        ),
        (7, "an id of zeros", says([prefill(|ask| ask.id = zeros()), aborts(zeros())]), quiesced()),
        (
            19,
            "the largest digest there is",
            says([largest]),
            Then::Told(|m| matches!(m, Message::Reconcile(_))),
        ),
        (19, "five thousand pings", says((0..5_000).map(|_| ping())), pong()),
        (22, "ABORT before its PREFILL", says([lost(0), prefill(|_| {}), lost(0)]), quiesced()),
        (22, "ABORT behind COMMIT", says([prefill(|_| {}), credit(9), commit(false), lost(0)]), quiesced()),
        (22, "ABORT behind giving up", says([prefill(|_| {}), commit(true), lost(0)]), quiesced()),
        (
            24,
            "a tenant of three megabytes",
            says([request(|request| request.tenant = "x".repeat(3 << 20)), lost(0)]),
            quiesced(),
        ),
        (23, "silence", Vec::new(), Then::CutOff),
    ]
}

/// A data path whose frames are read and dropped.
struct Reading(Closer);

impl Reading {
    fn new(mut link: Link<dyn FrameReceiver>) -> Self {
        let closer = link.closer.clone();
        std::thread::spawn(move || while link.end.recv(&mut |_| Placement::Discard).is_ok() {});
        Self(closer)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Asker {
    /// Opens a control stream and says HELLO; what is answered first.
    async fn greet(served: &Served, hello: Hello) -> (Option<Message>, Self) {
        let client = PrefillClient::connect(format!("http://{}", served.peer.control_addr)).await;
        let (up, messages) = mpsc::channel(64);
        up.send(opening(Message::Hello(hello))).await.unwrap();
        let down = client.unwrap().session(ReceiverStream::new(messages)).await.unwrap();
        let mut asker = Self { session: 0, number: 1, up, down: down.into_inner() };
        let first = asker.heard().await;
        if let Some(Message::Welcome(welcome)) = &first {
            asker.session = welcome.session;
        }
        (first, asker)
    }

    async fn welcomed(served: &Served, hello: Hello) -> (Welcome, Self) {
        match Self::greet(served, hello).await {
            (Some(Message::Welcome(welcome)), asker) => (welcome, asker),
            (other, _) => panic!("not welcome: {other:?}"),
        }
    }

    /// All the way to a session that runs.
    async fn opened(served: &Served, road: Road, hello: Hello) -> (Welcome, Self, Link<dyn FrameReceiver>) {
        let (welcome, mut asker) = Self::welcomed(served, hello).await;
        let path = road.take(&welcome).await.unwrap();
        asker.say(Said::Message(chosen(road.name()))).await;
        (welcome, asker, path)
    }

    async fn say(&mut self, said: Said) {
        let control = match said {
            Said::Message(message) => {
                self.number += 1;
                Control { session: self.session, number: self.number, message: Some(message) }
            }
            Said::Control(control) => Control { session: control.session ^ self.session, ..control },
        };
        // Fails when it was cut off already.
        let _ = self.up.send(control).await;
    }

    /// The next message; none after the end.
    async fn heard(&mut self) -> Option<Message> {
        timeout(PATIENT, self.down.message()).await.expect("neither a word nor an end").ok()??.message
    }

    async fn meets(&mut self, then: &Then) -> bool {
        loop {
            match (self.heard().await, then) {
                (None, then) => return matches!(then, Then::CutOff),
                (Some(message), Then::Told(expected)) if expected(&message) => return true,
                _ => {}
            }
        }
    }
}

/// The node is as good as new: nothing is held, and a handoff works.
async fn is_well(served: &Served, road: Road, leg: u32) {
    until("the engine is let go", || served.engine.running.load(Ordering::SeqCst) == 0).await;
    until("pages are let go", || Arc::strong_count(&served.engine.source) == 1).await;
    let sessions = Sessions::new(node("honest", 2, 4), config(road.kind)).unwrap();
    let sink = Memory::empty(&SHAPE, 0..TOKENS);
    let mut handoff = sessions.handoff(&served.peer, ask(leg, TOKENS, 0), landing(&sink)).await.unwrap();
    assert_eq!(finish(&mut handoff).await.0.last(), Some(&"ready"));
    assert!(sink.holds(0..TOKENS));
    sessions.shutdown().await;
    until("pages are let go", || Arc::strong_count(&served.engine.source) == 1).await;
}

async fn prefill_node(road: Road) -> (Served, Hello) {
    let served = serve(node("p", 1, 4), limits(road), engine(&SHAPE, false)).await;
    let hello = hello(&node("bad", 9, 4), &limits(road), &road.transports(), &served.peer);
    (served, hello)
}

#[tokio::test]
pub async fn bad_words_are_cut_off_or_answered() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        for (leg, (way, name, said, then)) in (0..).zip(cases()) {
            let (_, mut asker, path) = Asker::opened(&served, road, hello.clone()).await;
            let path = Reading::new(path);
            for said in said {
                asker.say(said).await;
            }
            assert!(asker.meets(&then).await, "{way}: {name} over {}", road.name());
            drop((asker, path));
            is_well(&served, road, leg).await;
        }
    }
}

#[tokio::test]
pub async fn a_peer_may_hang_up_at_any_step() {
    for &road in ROADS {
        let (served, hello) = prefill_node(road).await;
        for step in 0..7_usize {
            let (welcome, mut asker) = Asker::welcomed(&served, hello.clone()).await;
            let path = if step > 0 { Some(Reading::new(road.take(&welcome).await.unwrap())) } else { None };
            let words = [
                chosen(road.name()),
                prefill(|_| {}),
                credit(1),
                credit(9),
                Message::Commit(wire::Commit { id: id(0), drop: false }),
            ];
            for message in words.into_iter().take(step.saturating_sub(1)) {
                asker.say(Said::Message(message)).await;
            }
            drop((asker, path));
            is_well(&served, road, step as u32).await;
        }
    }
}

#[tokio::test]
pub async fn who_reads_no_words_is_cut_off() {
    for &road in ROADS {
        let served = serve(node("p", 1, 4), limits(road), engine(&SHAPE, true)).await;
        let hello = hello(&node("bad", 9, 4), &limits(road), &road.transports(), &served.peer);
        let (_, mut asker, path) = Asker::opened(&served, road, hello).await;
        let _path = Reading::new(path);
        asker.say(Said::Message(prefill(|_| {}))).await;
        until("it has begun", || served.engine.running.load(Ordering::SeqCst) == 1).await;
        // Answers pile up on the other side, as far as it lets them.
        let flood = async {
            loop {
                asker.say(Said::Message(ping())).await;
            }
        };
        tokio::select! {
            () = flood => {}
            () = until("it is cut off", || served.engine.running.load(Ordering::SeqCst) == 0) => {}
        }
    }
}

#[tokio::test]
pub async fn a_flood_of_asks_holds_no_more_than_is_allowed() {
    const ASKS: u32 = 10_000;
    for &road in ROADS {
        let served = serve(node("p", 1, 4), limits(road), engine(&SHAPE, true)).await;
        let hello = hello(&node("bad", 9, 4), &limits(road), &road.transports(), &served.peer);
        let (_, mut asker, path) = Asker::opened(&served, road, hello).await;
        let path = Reading::new(path);
        let allowed = limits(road).max_handoffs;
        let (up, session) = (asker.up.clone(), asker.session);
        let mut flood = JoinSet::new();
        flood.spawn(async move {
            for leg in 0..ASKS {
                let message = Some(Message::Prefill((&ask(leg, TOKENS, 0)).into()));
                let _ = up.send(Control { session, number: u64::from(leg) + 3, message }).await;
            }
        });
        // Who goes on asking without closing what was refused is cut off before long.
        let mut refused = 0;
        while let Some(message) = asker.heard().await {
            refused += usize::from(matches!(message, Message::Busy(_)));
            assert!(served.engine.running.load(Ordering::SeqCst) <= allowed, "over {}", road.name());
        }
        assert!(refused <= 16 * allowed, "{refused} refused over {}", road.name());
        drop((asker, path, flood));
        until("the engine is let go", || served.engine.running.load(Ordering::SeqCst) == 0).await;
        until("pages are let go", || Arc::strong_count(&served.engine.source) == 1).await;
    }
}

#[tokio::test]
pub async fn who_pings_on_and_takes_nothing_holds_no_pages() {
    // At once: each takes as long as a peer may take.
    let mut all = JoinSet::new();
    for &road in ROADS {
        all.spawn(async move {
            let (served, hello) = prefill_node(road).await;
            let (_, mut asker, path) = Asker::opened(&served, road, hello).await;
            let path = Reading::new(path);
            asker.say(Said::Message(prefill(|ask| ask.deadline_ms = 200))).await;
            let pings = async {
                until("it has begun", || Arc::strong_count(&served.engine.source) > 1).await;
                while Arc::strong_count(&served.engine.source) > 1 {
                    asker.say(Said::Message(ping())).await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENT, pings).await.expect("pages are held");
            drop((asker, path));
            is_well(&served, road, 0).await;
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
pub async fn who_reads_no_frames_is_cut_off() {
    // More than sockets hold: the sender stalls in the middle of a frame.
    let shape = KvShape { layers: 12, head_dim: 4096, ..SHAPE };
    for &road in ROADS {
        let config = TransferConfig { frame_bytes: 4 << 20, ..limits(road) };
        let local = LocalNode { kv: shape.clone(), ..node("p", 1, 4) };
        let served = serve(local, config.clone(), engine(&shape, false)).await;
        let bad = LocalNode { kv: shape.clone(), ..node("bad", 9, 4) };
        let hello = hello(&bad, &config, &road.transports(), &served.peer);
        let (_, mut asker, path) = Asker::opened(&served, road, hello).await;
        asker.say(Said::Message(prefill(|_| {}))).await;
        asker.say(Said::Message(credit(u32::MAX))).await;
        assert!(asker.meets(&Then::CutOff).await);
        until("pages are let go", || Arc::strong_count(&served.engine.source) == 1).await;
        drop(path);
    }
}
