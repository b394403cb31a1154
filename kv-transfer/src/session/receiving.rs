//! A session's state on the decode node, under one mutex that is held for a few
//! lines: the control loop, the data thread and the callers' handles all feed
//! events to the machines through it, so that order is the same for everybody.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{
    ErrorCode, FrameHeader, HandoffId, NodeId, SessionId,
    wire::{self, Control, control::Message},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::{
    control::{Inbox, Outbox, handoff_of},
    offers::Offer,
    running::SessionState,
};
use crate::{
    HandoffAsk, HandoffEvent, Landing, LocalNode, PathReport, SessionError, TransferConfig, TransferMetrics,
    handoff::receiver::{Receiver, ReceiverAction, ReceiverEvent, ReceiverTerms},
    transport::{FrameReceiver, PathError, Placement, Received},
};

/// Events of one handoff: QUEUED, START, FIRST and the end; a machine makes no more.
const MAX_EVENTS: usize = 8;

/// One session's receiving end.
pub struct Receiving {
    peer: NodeId,
    local: LocalNode,
    config: TransferConfig,
    path: PathReport,
    metrics: TransferMetrics,
    table: Mutex<Table>,
    /// Something waits in the outbox.
    wake: Notify,
}

struct Table {
    outbox: Outbox,
    inbox: Inbox,
    handoffs: HashMap<HandoffId, Entry>,
    heard: Instant,
    pinged: Instant,
    /// When the data path last moved; now, while frames are being read.
    moved: Instant,
    /// Until when each frame that is being read must be in, oldest first.
    reading: VecDeque<Instant>,
    /// Handoffs whose KV came whole.
    whole: u64,
    /// A handoff was given up for frames that did not come, and nothing else came either: the
    /// data path hangs, though control messages go through.
    hangs: bool,
    ended: Option<SessionError>,
}

struct Entry {
    machine: Receiver,
    events: mpsc::Sender<HandoffEvent>,
    asked: Instant,
    /// Since when the sender is to fall silent.
    closing: Option<Instant>,
    /// The number of its PREFILL.
    number: u64,
}

/// Handoffs of one session that are told of.
const MAX_TOLD: usize = 64;

/// A handoff that is not closed, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// Which.
    pub id: HandoffId,
    /// `waiting` for the prompt's first frame, `receiving`, or `closing` until the sender is quiet.
    pub state: &'static str,
    /// Since it was asked for.
    pub age: Duration,
    /// Tokens of which KV comes.
    pub tokens: Range<u32>,
    /// Bytes that have come.
    pub bytes: u64,
}

/// A handoff that was asked for. Dropping it cancels it; its pages are let go
/// when the sender has fallen silent.
pub struct Handoff {
    id: HandoffId,
    session: Arc<Receiving>,
    events: mpsc::Receiver<HandoffEvent>,
    /// The prefill node may fetch what is here already.
    pub(super) offer: Option<Offer>,
}

// === impl Handoff ===

impl Handoff {
    /// Which handoff.
    pub fn id(&self) -> HandoffId {
        self.id
    }

    /// What happens next; none after the end.
    pub async fn next(&mut self) -> Option<HandoffEvent> {
        self.events.recv().await
    }

    /// The first tokens ended every choice: the KV is not needed, and nothing
    /// went wrong.
    pub fn decline(self) {
        self.session.event(self.id, ReceiverEvent::Decline, Instant::now());
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        self.session.event(self.id, ReceiverEvent::Cancel, Instant::now());
    }
}

// === impl Receiving ===

impl Receiving {
    /// A session whose path has been chosen, which is the first thing it tells its peer.
    pub fn new(
        session: SessionId,
        (peer, local): (NodeId, LocalNode),
        config: TransferConfig,
        path: PathReport,
        metrics: TransferMetrics,
    ) -> Arc<Self> {
        let now = Instant::now();
        let mut outbox = Outbox::new(session);
        outbox.push(Message::Chosen(path.chosen()));
        let table = Table {
            outbox,
            inbox: Inbox::new(session),
            handoffs: HashMap::new(),
            heard: now,
            pinged: now,
            moved: now,
            reading: VecDeque::new(),
            whole: 0,
            hangs: false,
            ended: None,
        };
        metrics.session_opened(&peer, &path);
        let wake = Notify::new();
        wake.notify_one();
        Arc::new(Self { peer, local, config, path, metrics, table: Mutex::new(table), wake })
    }

    /// Asks for a handoff.
    pub fn open(
        self: &Arc<Self>,
        ask: &HandoffAsk,
        landing: Box<dyn Landing>,
    ) -> Result<Handoff, SessionError> {
        let terms = ReceiverTerms {
            id: ask.id,
            shape: self.local.kv.clone(),
            heads: self.local.heads.held.clone(),
            tokens: ask.have..ask.tokens(),
            wants_first: !ask.sample.is_empty(),
            window_frames: self.config.window_frames(),
            repair_timeout: self.config.repair_timeout(),
            max_nacks: self.config.max_nacks,
        };
        let machine = Receiver::new(terms, landing);
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let mut table = self.table.lock();
        if let Some(error) = &table.ended {
            return Err(error.clone());
        }
        if table.handoffs.contains_key(&ask.id) {
            return Err(SessionError::down(format!("handoff {} was asked for twice", ask.id)));
        }
        let number = table.outbox.push(Message::Prefill(ask.into()));
        table
            .handoffs
            .insert(ask.id, Entry { machine, events: sender, asked: Instant::now(), closing: None, number });
        drop(table);
        self.wake.notify_one();
        Ok(Handoff { id: ask.id, session: self.clone(), events, offer: None })
    }

    /// Says that KV may be fetched here. A session that has ended says nothing.
    pub fn hand_back(&self, kv: wire::Return) {
        let mut table = self.table.lock();
        if table.ended.is_none() {
            table.outbox.push(Message::Return(kv));
        }
        drop(table);
        self.wake.notify_one();
    }

    /// Why the session has ended, if it has.
    pub fn ended(&self) -> Option<SessionError> {
        self.table.lock().ended.clone()
    }

    /// Handoffs whose KV came whole over it.
    pub fn whole(&self) -> u64 {
        self.table.lock().whole
    }

    /// Handoffs that are not closed, the oldest first, within a bound.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let table = self.table.lock();
        let one = |(id, entry): (&HandoffId, &Entry)| {
            let (state, tokens, bytes) = entry.machine.progress();
            UnderWay { id: *id, state, age: entry.asked.elapsed(), tokens: tokens.clone(), bytes }
        };
        let mut all: Vec<_> = table.handoffs.iter().map(one).collect();
        drop(table);
        all.sort_by_key(|handoff| Reverse(handoff.age));
        all.truncate(MAX_TOLD);
        all
    }

    /// How its data travels.
    pub fn path(&self) -> &PathReport {
        &self.path
    }

    /// Takes a control message.
    pub fn control(&self, control: Control, now: Instant) -> Result<(), SessionError> {
        let mut table = self.table.lock();
        let message = table.inbox.take(control)?;
        table.heard = now;
        match handoff_of(&message)? {
            Some(_) if is_of_decode(&message) => {
                return Err(SessionError::down("a message that only a decode node sends"));
            }
            Some(id) => {
                self.feed(&mut table, id, ReceiverEvent::Control(message), now);
            }
            None => match message {
                Message::Ping(_) => {}
                Message::Reconcile(reconcile) => self.reconcile(&mut table, &reconcile, now)?,
                _ => return Err(SessionError::down("a message that only a decode node sends")),
            },
        }
        drop(table);
        self.wake.notify_one();
        Ok(())
    }

    /// Both sides' open handoffs differ: ends what only one side knows, and
    /// nothing younger than the ping that showed it.
    fn reconcile(
        &self,
        table: &mut Table,
        theirs: &wire::Reconcile,
        now: Instant,
    ) -> Result<(), SessionError> {
        let mut known = HashSet::new();
        for id in &theirs.ids {
            let id =
                HandoffId::try_from(id.clone()).map_err(|error| SessionError::down(error.to_string()))?;
            known.insert(id);
            if !table.handoffs.contains_key(&id) {
                self.metrics.orphan();
                let (code, reason) = (ErrorCode::Cancelled.as_str().to_owned(), "unknown handoff".to_owned());
                table.outbox.push(Message::Abort(wire::Abort { id: Some(id.into()), code, reason }));
            }
        }
        let old = |(id, entry): (&HandoffId, &Entry)| {
            let lost = entry.machine.is_open() && entry.number <= theirs.up_to_number && !known.contains(id);
            lost.then_some(*id)
        };
        let lost: Vec<_> = table.handoffs.iter().filter_map(old).collect();
        for id in lost {
            self.metrics.orphan();
            self.feed(table, id, ReceiverEvent::Orphaned, now);
        }
        Ok(())
    }

    /// The data thread's work: frame after frame until the path breaks.
    pub fn receive(&self, path: &mut (dyn FrameReceiver + 'static)) -> PathError {
        loop {
            match path.recv(&mut |header| self.place(header)) {
                Ok(received) => self.arrived(&received),
                Err(error) => return error,
            }
        }
    }

    /// A frame on its way in without a path.
    #[cfg(any(test, fuzzing))]
    pub fn frame(&self, received: &Received, see: &mut dyn FnMut(&Placement)) {
        let placement = self.place(&received.header);
        see(&placement);
        self.arrived(received);
    }

    fn place(&self, header: &FrameHeader) -> Placement {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.reading.push_back(now + self.config.frame_limit(header.bytes));
        table.moved = now;
        let placed = self.feed(&mut table, header.handoff, ReceiverEvent::Arriving(header), now);
        drop(table);
        self.wake.notify_one();
        placed.unwrap_or(Placement::Discard)
    }

    fn arrived(&self, received: &Received) {
        let now = Instant::now();
        if !received.intact {
            let FrameHeader { handoff, seq, bytes, .. } = received.header;
            tracing::debug!(peer = %self.peer, %handoff, seq, bytes, "a frame arrived damaged");
        }
        let mut table = self.table.lock();
        table.reading.pop_front();
        table.moved = now;
        self.feed(&mut table, received.header.handoff, ReceiverEvent::Arrived(received), now);
        drop(table);
        self.wake.notify_one();
    }

    fn event(&self, id: HandoffId, event: ReceiverEvent<'_>, now: Instant) {
        let mut table = self.table.lock();
        if table.handoffs.contains_key(&id) {
            self.feed(&mut table, id, event, now);
        }
        drop(table);
        self.wake.notify_one();
    }

    /// Gives an event to a machine and does what it wants.
    fn feed(
        &self,
        table: &mut Table,
        id: HandoffId,
        event: ReceiverEvent<'_>,
        now: Instant,
    ) -> Option<Placement> {
        let Some(entry) = table.handoffs.get_mut(&id) else {
            self.metrics.late(1);
            return None;
        };
        let mut placement = None;
        for action in entry.machine.on(event, now) {
            match action {
                ReceiverAction::Send(message) => {
                    if table.ended.is_none() {
                        table.outbox.push(message);
                    }
                }
                ReceiverAction::Emit(event) => {
                    let is_silent = table.reading.is_empty() && table.moved <= entry.asked;
                    table.hangs |= is_silent && entry.machine.is_in_vain();
                    if let HandoffEvent::Ready { stats, .. } = &event {
                        self.metrics.exposed(stats.exposed);
                        table.whole += 1;
                    }
                    // Fails only when the caller has gone; then so does what the event holds.
                    let _ = entry.events.try_send(event);
                }
                ReceiverAction::Land(sink) => placement = Some(Placement::Land(sink)),
                ReceiverAction::Close(outcome) => {
                    self.metrics.ended(outcome, now.saturating_duration_since(entry.asked));
                    self.metrics.repaired(u64::from(entry.machine.repaired()));
                    self.metrics.late(entry.machine.late());
                    table.handoffs.remove(&id);
                    break;
                }
            }
        }
        placement
    }

    fn feed_all(&self, table: &mut Table, event: &dyn Fn() -> ReceiverEvent<'static>) {
        let now = Instant::now();
        let ids: Vec<_> = table.handoffs.keys().copied().collect();
        for id in ids {
            self.feed(table, id, event(), now);
        }
    }
}

/// Whether only receiving ends send such messages.
fn is_of_decode(message: &Message) -> bool {
    use Message::{Commit, Credit, Later, Nack, Prefill};
    matches!(message, Prefill(_) | Credit(_) | Later(_) | Commit(_) | Nack(_))
}

impl SessionState for Receiving {
    fn pop(&self) -> Option<Control> {
        self.table.lock().outbox.pop()
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Lets time pass: pings, repairs, and the end of a silent peer or a data path that hangs.
    fn tick(&self, now: Instant) -> Result<(), SessionError> {
        let mut table = self.table.lock();
        if now.saturating_duration_since(table.heard) >= self.config.silence_limit() {
            return Err(SessionError::down("pings unanswered"));
        }
        table.outbox.check()?;
        match table.reading.front() {
            Some(until) if *until <= now => return Err(SessionError::down("a frame comes too slowly")),
            Some(_) => table.moved = now,
            None => {}
        }
        let moved = table.moved;
        let ids: Vec<_> = table.handoffs.keys().copied().collect();
        for id in ids {
            self.feed(&mut table, id, ReceiverEvent::Tick { moved }, now);
        }
        let limit = self.config.quiet_limit();
        let closing = table.handoffs.values_mut().filter(|entry| !entry.machine.is_open());
        let is_late = |entry: &mut Entry| now - *entry.closing.get_or_insert(now) >= limit;
        // Pages wait for that in quarantine; they come free when nothing can land any more.
        if closing.map(is_late).fold(false, |one, other| one | other) {
            return Err(SessionError::down("no QUIESCED for a handoff that has ended"));
        }
        if table.hangs {
            return Err(SessionError::down("no frame comes through, though asked for again and again"));
        }
        if now.saturating_duration_since(table.pinged) >= self.config.ping_interval() {
            table.pinged = now;
            let open = table.handoffs.iter().filter(|(_, entry)| entry.machine.is_open());
            let (count, xor) = open.fold((0, 0), |(count, xor), (id, _)| (count + 1, xor ^ id.fold()));
            table.outbox.push(Message::Ping(wire::SessionPing { open: count, xor, reply: false }));
        }
        drop(table);
        self.wake.notify_one();
        Ok(())
    }

    fn end(&self, reason: SessionError) {
        let mut table = self.table.lock();
        if table.ended.is_none() {
            tracing::debug!(peer = %self.peer, %reason, "session ended");
            let failure = reason.to_failure();
            table.ended = Some(reason);
            self.metrics.session_ended(&self.peer, &self.path);
            self.feed_all(&mut table, &|| ReceiverEvent::SessionDown(failure.clone()));
        }
    }

    fn path_closed(&self) {
        self.feed_all(&mut self.table.lock(), &|| ReceiverEvent::PathClosed);
    }
}
