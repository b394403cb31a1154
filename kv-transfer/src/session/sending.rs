//! A session's state on the prefill node, under one mutex that is held for a
//! few lines: the control loop, the engine's progress and the data thread all
//! feed events to the machines through it.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{
    ErrorCode, Failure, FrameHeader, HandoffId, Incarnation, KvSource, NodeId, Role,
    wire::{self, Control, control::Message},
};
use parking_lot::{Condvar, Mutex};
use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
};

use super::{
    control::{Inbox, Outbox, handoff_of},
    running::SessionState,
};
use crate::{
    BusyReason, KvPeer, LocalNode, PathReport, PrefillGuard, PrefillJob, Prefiller, Progress, Returned,
    SessionError, TransferConfig, TransferMetrics,
    handoff::{
        plan::Cut,
        sender::{Sender, SenderAction, SenderEvent, SenderTerms},
    },
    transport::{FrameSender, PathError, offer::Terms},
};

/// So many times the handoffs that may be open, those that were refused included, end a session.
const REFUSED: usize = 16;

/// Longest time that a handoff is open, whatever its deadline.
const LONGEST: Duration = Duration::from_secs(3600);

/// News of one prompt that may wait for this session.
const MAX_PROGRESS: usize = 64;

/// What a decode node wants of this one.
pub enum Call {
    Prefill(Box<PrefillJob>),
    /// Nothing, but KV may be fetched there.
    Returned(Returned),
}

/// The decode node at the other end.
pub struct Receiver {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The runs of heads in which KV goes to it.
    pub heads: Vec<Range<u32>>,
}

/// A frame to be sent, and the guard of its pages.
type Frame = (FrameHeader, Arc<dyn KvSource>);

/// One session's sending end.
pub struct Sending {
    peer: Receiver,
    local: LocalNode,
    config: TransferConfig,
    path: PathReport,
    metrics: TransferMetrics,
    table: Mutex<Table>,
    /// Something waits in the outbox.
    wake: Notify,
    /// A frame was put in line, or the session ended.
    in_line: Condvar,
}

struct Table {
    outbox: Outbox,
    inbox: Inbox,
    handoffs: HashMap<HandoffId, Entry>,
    /// Frames for the data thread. Bounded by the receivers' credits.
    line: VecDeque<Frame>,
    heard: Instant,
    ended: Option<SessionError>,
}

struct Entry {
    machine: Sender,
    guard: Option<PrefillGuard>,
    listener: Option<AbortHandle>,
    asked: Instant,
    /// When its receiver must have ended it.
    until: Instant,
}

// === impl Sending ===

impl Sending {
    /// A session whose receiver has chosen a path; `inbox` has counted that message.
    pub fn new(
        terms: &Terms,
        (peer, local): (Receiver, LocalNode),
        path: PathReport,
        inbox: Inbox,
        metrics: TransferMetrics,
    ) -> Arc<Self> {
        let table = Table {
            outbox: Outbox::new(terms.session),
            inbox,
            handoffs: HashMap::new(),
            line: VecDeque::new(),
            heard: Instant::now(),
            ended: None,
        };
        metrics.session_opened(&peer.node, &path);
        let (wake, in_line) = (Notify::new(), Condvar::new());
        let config = terms.config.clone();
        let table = Mutex::new(table);
        Arc::new(Self { peer, local, config, path, metrics, table, wake, in_line })
    }

    /// Takes a control message. A new handoff comes back as a job for [`start`](Self::start).
    pub fn control(&self, control: Control, now: Instant) -> Result<Option<Call>, SessionError> {
        let mut table = self.table.lock();
        let message = table.inbox.take(control)?;
        table.heard = now;
        let mut call = None;
        match (handoff_of(&message)?, message) {
            (Some(id), Message::Prefill(ask)) => {
                call = self.prefill(&mut table, id, ask, now)?.map(|job| Call::Prefill(Box::new(job)));
            }
            (Some(id), message) => {
                if let Some(event) = event_of(&message)? {
                    self.feed(&mut table, id, event);
                } else {
                    return Err(SessionError::down("a message that only a prefill node sends"));
                }
            }
            (None, Message::Return(kv)) => call = Some(Call::Returned(self.returned(kv)?)),
            (None, Message::Ping(ping)) => self.ping(&mut table, &ping),
            (None, _) => return Err(SessionError::down("a message that only a prefill node sends")),
        }
        drop(table);
        self.wake.notify_one();
        Ok(call)
    }

    /// The decode node, which has yet to say where it is asked.
    fn asker(&self) -> KvPeer {
        let (node, incarnation) = (self.peer.node.clone(), self.peer.incarnation);
        KvPeer { node, incarnation, control_addr: String::new(), role: Role::Decode }
    }

    fn returned(&self, kv: wire::Return) -> Result<Returned, SessionError> {
        Returned::from_wire(kv, self.asker()).map_err(|error| SessionError::down(error.to_string()))
    }

    fn prefill(
        &self,
        table: &mut Table,
        id: HandoffId,
        ask: wire::PrefillAsk,
        now: Instant,
    ) -> Result<Option<PrefillJob>, SessionError> {
        let job = PrefillJob::from_wire(ask, self.asker());
        let job = job.map_err(|error| SessionError::down(error.to_string()))?;
        if table.handoffs.contains_key(&id) {
            self.metrics.late(1);
            return Ok(None);
        }
        let allowed = self.config.max_handoffs;
        let full = table.handoffs.len() >= allowed;
        // Those that were refused stay until the peer has closed them.
        if table.handoffs.len() >= REFUSED * allowed.max(1) {
            return Err(SessionError::down("too many handoffs were refused and not closed"));
        }
        // An empty range does no harm to a job that is refused below.
        let tokens = job.have.min(job.tokens())..job.tokens();
        let terms = SenderTerms {
            id,
            cut: Cut {
                shape: self.local.kv.clone(),
                heads: self.peer.heads.clone(),
                frame_bytes: self.config.frame_bytes(),
            },
            max_repeats: self.config.max_repeats(),
            tokens,
        };
        let until = now + job.deadline.min(LONGEST) + self.config.quiet_limit();
        let entry = Entry { machine: Sender::new(terms), guard: None, listener: None, asked: now, until };
        table.handoffs.insert(id, entry);
        if let Err(error) = job.check() {
            let failure = Failure::new(ErrorCode::InvalidRequest, error.to_string());
            self.feed(table, id, SenderEvent::Progress(Progress::Failed(failure)));
            return Ok(None);
        }
        if full {
            let busy =
                BusyReason { eta: self.config.ping_interval(), reason: "too many open handoffs".to_owned() };
            self.feed(table, id, SenderEvent::Refused(busy));
            return Ok(None);
        }
        Ok(Some(job))
    }

    /// Gives a job to the engine and listens to its news in a task of `tasks`.
    pub fn start(self: &Arc<Self>, job: PrefillJob, prefiller: &dyn Prefiller, tasks: &mut JoinSet<()>) {
        let (id, queue) = (job.id, prefiller.queue());
        let (news, mut progress) = mpsc::channel(MAX_PROGRESS);
        let started = prefiller.start(job, news);
        let mut table = self.table.lock();
        match started {
            Err(busy) => self.feed(&mut table, id, SenderEvent::Refused(busy)),
            Ok(guard) => {
                // QUEUED goes out before anything the engine has to say.
                self.feed(&mut table, id, SenderEvent::Accepted(queue));
                if let Some(entry) = table.handoffs.get_mut(&id) {
                    let session = self.clone();
                    entry.guard = Some(guard);
                    entry.listener = Some(tasks.spawn(async move {
                        while let Some(news) = progress.recv().await {
                            session.event(id, SenderEvent::Progress(news));
                        }
                        session.event(id, SenderEvent::ProgressEnded);
                    }));
                }
            }
        }
        drop(table);
        self.wake.notify_one();
    }

    /// The stream is ordered, so both sides' open handoffs must agree exactly here.
    fn ping(&self, table: &mut Table, ping: &wire::SessionPing) {
        let open = table.handoffs.iter().filter(|(_, entry)| entry.machine.is_open());
        let (count, xor) = open.fold((0, 0), |(count, xor), (id, _)| (count + 1, xor ^ id.fold()));
        if (count, xor) != (ping.open, ping.xor) {
            tracing::warn!(peer = %self.peer.node, here = count, there = ping.open, "open handoffs differ");
            let open = table.handoffs.iter().filter(|(_, entry)| entry.machine.is_open());
            let ids = open.map(|(id, _)| (*id).into()).collect();
            let up_to_number = table.inbox.number();
            table.outbox.push(Message::Reconcile(wire::Reconcile { ids, up_to_number }));
        }
        table.outbox.push(Message::Ping(wire::SessionPing { open: count, xor, reply: true }));
    }

    /// The data thread's work: frame after frame until the path breaks or the session ends.
    pub fn send(&self, path: &mut (dyn FrameSender + 'static)) -> PathError {
        let mut begun = VecDeque::new();
        loop {
            if let Err(error) = self.begin(path, &mut begun) {
                return error;
            }
            let Some((header, source)) = begun.pop_front() else { return PathError::Closed };
            let sent = path.send(&header, &source, None);
            // The machine must not hear of it before this guard is gone.
            drop(source);
            let event = match sent {
                Ok(crc) => SenderEvent::Sent { seq: header.seq, crc },
                Err(PathError::Unreadable(error)) => {
                    tracing::warn!(handoff = %header.handoff, %error, "computed pages could not be read");
                    SenderEvent::Unreadable
                }
                Err(error) => return error,
            };
            self.event(header.handoff, event);
        }
    }

    /// Has the path begin with a frame, waiting for one, and with as many more as are in
    /// line and worth it. None is begun when the session has ended.
    fn begin(&self, path: &mut dyn FrameSender, begun: &mut VecDeque<Frame>) -> Result<(), PathError> {
        while begun.len() <= path.ahead() {
            let waits = begun.is_empty() && path.asked_every().is_none();
            let next = if waits { self.next_frame() } else { self.table.lock().line.pop_front() };
            if next.is_none() && begun.is_empty() && self.table.lock().ended.is_none() {
                return Err(PathError::NotYet);
            }
            let Some((header, source)) = next else { break };
            path.begin(&header, &source)?;
            begun.push_back((header, source));
        }
        Ok(())
    }

    fn next_frame(&self) -> Option<Frame> {
        let mut table = self.table.lock();
        self.in_line.wait_while(&mut table, |table| table.ended.is_none() && table.line.is_empty());
        if table.ended.is_some() { None } else { table.line.pop_front() }
    }

    fn event(&self, id: HandoffId, event: SenderEvent) {
        let mut table = self.table.lock();
        if table.handoffs.contains_key(&id) {
            self.feed(&mut table, id, event);
        }
        drop(table);
        self.wake.notify_one();
    }

    /// Gives an event to a machine and does what it wants.
    fn feed(&self, table: &mut Table, id: HandoffId, event: SenderEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(entry) = table.handoffs.get_mut(&id) else {
                return self.unknown(table, id, &event);
            };
            for action in entry.machine.on(event) {
                match action {
                    SenderAction::Send(message) => {
                        if table.ended.is_none() {
                            table.outbox.push(message);
                        }
                    }
                    SenderAction::Frame(header, source) => {
                        table.line.push_back((header, source));
                        self.in_line.notify_one();
                    }
                    SenderAction::Unqueue => {
                        let before = table.line.len();
                        table.line.retain(|(header, _)| header.handoff != id);
                        events.extend((table.line.len()..before).map(|_| SenderEvent::Skipped));
                    }
                    SenderAction::Cancel => {
                        entry.guard = None;
                        entry.listener.take().inspect(AbortHandle::abort);
                    }
                    SenderAction::Close(outcome) => {
                        self.metrics.ended(outcome, entry.asked.elapsed());
                        self.metrics.repaired(entry.machine.repaired());
                        self.metrics.late(entry.machine.late());
                        table.handoffs.remove(&id);
                        return;
                    }
                }
            }
        }
    }

    /// ABORT is valid in every state, that of being forgotten included.
    fn unknown(&self, table: &mut Table, id: HandoffId, event: &SenderEvent) {
        self.metrics.late(1);
        if matches!(event, SenderEvent::Abort | SenderEvent::Commit { drop: true }) && table.ended.is_none() {
            table.outbox.push(Message::Quiesced(wire::Quiesced { id: Some(id.into()), frames: 0 }));
        }
    }
}

fn event_of(message: &Message) -> Result<Option<SenderEvent>, SessionError> {
    Ok(Some(match message {
        Message::Credit(credit) => SenderEvent::Credit(credit.frames),
        Message::Later(_) => SenderEvent::Later,
        Message::Commit(commit) => SenderEvent::Commit { drop: commit.drop },
        Message::Nack(nack) => SenderEvent::Nack(nack.seq),
        Message::Abort(_) => SenderEvent::Abort,
        _ => return Ok(None),
    }))
}

impl SessionState for Sending {
    fn pop(&self) -> Option<Control> {
        self.table.lock().outbox.pop()
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Ends the session of a silent peer.
    fn tick(&self, now: Instant) -> Result<(), SessionError> {
        let table = self.table.lock();
        if now.saturating_duration_since(table.heard) >= self.config.silence_limit() {
            return Err(SessionError::down("no pings"));
        }
        // Whoever asked has given it up by then, and closes it: pages are not held for one who only pings.
        if table.handoffs.values().any(|entry| entry.until <= now) {
            return Err(SessionError::down("a handoff is open long after its deadline"));
        }
        table.outbox.check()
    }

    fn end(&self, reason: SessionError) {
        let mut table = self.table.lock();
        if table.ended.is_none() {
            tracing::debug!(peer = %self.peer.node, %reason, "session ended");
            table.ended = Some(reason);
            self.metrics.session_ended(&self.peer.node, &self.path);
            let ids: Vec<_> = table.handoffs.keys().copied().collect();
            for id in ids {
                self.feed(&mut table, id, SenderEvent::SessionDown);
            }
            table.line.clear();
        }
        drop(table);
        self.in_line.notify_all();
    }

    /// Pages being sent were let go when the session ended; the thread has dropped its own guard.
    fn path_closed(&self) {}
}
