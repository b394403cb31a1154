//! Traffic, sent at its times.

use std::{sync::Arc, time::Duration};

use reqwest::Request;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Dialogue, Endpoint, MeasureError, Outcome, Record, Spread, dialogue::Speaker, kv_usage, pacer::Pacer,
};
use crate::{
    budgets::Wishes,
    traffic::{Class, Session, Traffic, Turn},
};

/// What came of traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// By when their sessions ended.
    pub records: Vec<Record>,
    /// From the first request to the last end.
    pub seconds: f64,
    /// What measuring took.
    pub overhead: Overhead,
    /// Share of KV pools in use, from 0 to 1, twice a second; empty: the server does not tell.
    pub kv_usage: Vec<f64>,
}

/// What measuring took itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Processor time of the thread that measured.
    pub cpu_seconds: f64,
    /// The time that it had.
    pub seconds: f64,
    /// Seconds from when requests were to be sent until they were.
    pub lag: Spread,
    /// Events with text that were read.
    pub events: usize,
}

/// A session that is going on.
struct Held {
    endpoint: Arc<Endpoint>,
    wishes: Wishes,
    number: usize,
    class: usize,
    dialogue: Dialogue,
    began: Instant,
    room: Option<Arc<Semaphore>>,
}

// === impl Run ===

impl Run {
    /// Seconds from the start, and the share of KV pages in use then.
    pub fn kv_points(&self) -> impl Iterator<Item = (f64, f64)> {
        let at = |index: usize| index as f64 * kv_usage::INTERVAL.as_secs_f64();
        self.kv_usage.iter().enumerate().map(move |(index, &usage)| (at(index), usage))
    }
}

// === impl Overhead ===

impl Overhead {
    /// Share of its core that the client used.
    pub fn cpu_share(&self) -> f64 {
        if self.seconds > 0.0 { self.cpu_seconds / self.seconds } else { 0.0 }
    }
}

/// Sends all of the traffic and waits for its end; `on_session` is told the
/// requests of every session that has ended. Meant for a runtime of one thread
/// that has nothing else to do.
///
/// # Errors
/// When the traffic cannot be spelled, or there is no timer.
pub async fn run(
    endpoint: &Arc<Endpoint>,
    traffic: Traffic,
    classes: &[Class],
    mut on_session: impl FnMut(&[Record]),
) -> Result<Run, MeasureError> {
    let mut kv_usage = Vec::new();
    let cpu_before = thread_cpu_seconds();
    let began = Instant::now();
    let mut records = Vec::with_capacity(traffic.requests());
    let mut note = |of_session: Vec<Record>| {
        on_session(&of_session);
        records.extend(of_session);
    };
    tokio::select! {
        done = send(endpoint, traffic, classes, began, &mut note) => done?,
        never = kv_usage::watch(endpoint, &mut kv_usage) => match never {},
    }
    let overhead = Overhead {
        cpu_seconds: thread_cpu_seconds() - cpu_before,
        seconds: began.elapsed().as_secs_f64(),
        lag: Spread::of(records.iter().map(|record| record.sent - record.intended)),
        events: records.iter().map(Record::events).sum(),
    };
    let first = records.iter().map(|record| record.intended).min_by(f64::total_cmp).unwrap_or(0.0);
    let last = records.iter().map(|record| record.end).max_by(f64::total_cmp).unwrap_or(0.0);
    Ok(Run { records, seconds: last - first, overhead, kv_usage })
}

async fn send(
    endpoint: &Arc<Endpoint>,
    traffic: Traffic,
    classes: &[Class],
    began: Instant,
    note: &mut impl FnMut(Vec<Record>),
) -> Result<(), MeasureError> {
    let times = traffic.sessions.iter().map(|session| session.at).collect();
    let mut pacer = Pacer::start(began.into_std(), times).map_err(MeasureError::NoTimer)?;
    let clients = traffic.clients.map(|clients| Arc::new(Semaphore::new(clients)));
    let room = traffic.max_in_flight.map(|most| Arc::new(Semaphore::new(most)));
    let mut held = JoinSet::new();
    for (number, session) in traffic.sessions.into_iter().enumerate() {
        let wishes = classes.get(session.class).map(Class::wishes).unwrap_or_default();
        let (endpoint, room) = (Arc::clone(endpoint), room.clone());
        let dialogue = Dialogue::new(endpoint.vocabulary());
        let mut next = Held { endpoint, wishes, number, class: session.class, dialogue, began, room };
        // Spelled before its time, so that it can be sent then.
        let first = next.open(&session)?;
        let (at, mut is_time) = (began + session.at, false);
        let client = loop {
            tokio::select! {
                biased;
                () = pacer.next(), if !is_time => is_time = true,
                client = free(clients.as_ref()), if is_time => break client,
                Some(ended) = held.join_next() => note(ended.map_err(MeasureError::Session)??),
            }
        };
        if traffic.until.is_some_and(|until| began.elapsed() >= until) {
            break;
        }
        let intended = if client.is_some() { Instant::now() } else { at };
        held.spawn(async move {
            let _client = client;
            next.go_on(first, session.turns, intended).await
        });
    }
    while let Some(ended) = held.join_next().await {
        note(ended.map_err(MeasureError::Session)??);
    }
    Ok(())
}

/// Waits until one of the clients is free, if sessions wait for clients.
async fn free(clients: Option<&Arc<Semaphore>>) -> Option<OwnedSemaphorePermit> {
    // Nobody closes it.
    Arc::clone(clients?).acquire_owned().await.ok()
}

// === impl Held ===

impl Held {
    /// The first request.
    fn open(&mut self, session: &Session) -> Result<Request, MeasureError> {
        if let Some(prefix) = &session.prefix {
            self.say(Speaker::System, std::slice::from_ref(prefix))?;
        }
        match session.turns.first() {
            Some(turn) => self.turn(turn),
            None => Err(MeasureError::NoTurn),
        }
    }

    fn turn(&mut self, turn: &Turn) -> Result<Request, MeasureError> {
        self.say(Speaker::User, &turn.said)?;
        self.endpoint.request(&self.dialogue, turn.output_tokens, &self.wishes)
    }

    fn say(&mut self, speaker: Speaker, pieces: &[crate::traffic::Piece]) -> Result<(), MeasureError> {
        self.dialogue.say(speaker, pieces, self.endpoint.vocabulary())
    }

    /// Asks, and asks on while answers come.
    async fn go_on(
        mut self,
        first: Request,
        turns: Vec<Turn>,
        intended: Instant,
    ) -> Result<Vec<Record>, MeasureError> {
        let (mut request, mut intended) = (Some(first), intended);
        let mut records: Vec<Record> = Vec::with_capacity(turns.len());
        for (number, turn) in turns.iter().enumerate() {
            let request = match request.take() {
                Some(first) => first,
                None => self.turn(turn)?,
            };
            // What is over would still be slept for: until the timer's next millisecond.
            if intended > Instant::now() {
                sleep_until(intended).await;
            }
            let (record, text) = self.ask(request, intended).await;
            let (end, goes_on) = (record.end, record.is_answered() && number + 1 < turns.len());
            records.push(Record { turn: number, wanted_tokens: turn.output_tokens, ..record });
            if !goes_on {
                break;
            }
            self.dialogue.hear(text)?;
            intended = self.began + Duration::from_secs_f64(end) + turns[number + 1].pause;
        }
        Ok(records)
    }

    async fn ask(&self, request: Request, intended: Instant) -> (Record, String) {
        let _room = match &self.room {
            Some(room) => room.acquire().await.ok(),
            None => None,
        };
        let at = |time: Instant| time.saturating_duration_since(self.began).as_secs_f64();
        let sent = Instant::now();
        let answer = self.endpoint.ask(request).await;
        let mut record = Record {
            class: self.class,
            session: self.number,
            turn: 0,
            intended: at(intended),
            sent: at(sent),
            end: 0.0,
            outcome: Outcome::Answered,
            ttft: None,
            gaps: Vec::new(),
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: 0,
            wanted_tokens: 0,
            phases: None,
        };
        record.note(&answer, at);
        (record, answer.text)
    }
}

fn thread_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
