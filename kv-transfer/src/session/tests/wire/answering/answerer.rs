//! A prefill node that does what a script says.

use std::io::IoSlice;

use baton_protocol::{Digest, KvSource, KvSpan, wire::prefill_server::Prefill};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{session::control::opening, transport::probe};

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

/// Answers pings to the end, and does something now and then.
async fn pongs((inbound, up, mut number): (&mut Streaming<Control>, &Up, u64), mut drip: impl FnMut()) {
    let mut now_and_then = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            heard = hears(inbound, |message| matches!(message, Message::Ping(_))) => {
                if !heard {
                    return;
                }
                number += 1;
                let message = Some(Message::Ping(wire::SessionPing { reply: true, ..Default::default() }));
                let _ = up.send(Ok(Control { session: 77, number, message })).await;
            }
            _ = now_and_then.tick() => drip(),
        }
    }
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
            Does::Pongs => pongs((&mut inbound, &up, number), || {}).await,
            Does::Drips(byte) => {
                pongs((&mut inbound, &up, number), || raw.as_mut().unwrap().write(&[byte])).await;
            }
            Does::Silence => while hears(&mut inbound, |_| false).await {},
        }
    }
    // Found out, it gives up; what it did not do is what the case is about.
    hears(&mut inbound, |message| matches!(message, Message::Abort(_))).await;
}

pub async fn answerer(
    road: Road,
    leg: u32,
    script: Vec<Does>,
    welcome: fn(&mut Welcome),
) -> (KvPeer, JoinSet<()>) {
    let local = node(&format!("bad-{leg}"), 1, 4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = KvPeer {
        node: local.node.clone(),
        control_addr: listener.local_addr().unwrap().to_string(),
        incarnation: local.incarnation,
        role: Role::Prefill,
    };
    let service =
        Answerer { road, local, welcome, script: Mutex::new(Some(script)), tasks: Mutex::default() };
    let mut server = JoinSet::new();
    let router = Server::builder().add_service(PrefillServer::new(service));
    server.spawn(async move { drop(router.serve_with_incoming(TcpListenerStream::new(listener)).await) });
    (peer, server)
}
