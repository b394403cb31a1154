//! What is asked when: sessions of turns, each session at its time. The same
//! workload and seed give the same traffic.
//!
//! - [`Arrivals`]: when sessions begin
//! - [`Length`], [`Shape`]: how long prompts and answers are, what they share
//! - [`Piece`], [`Vocabulary`]: prompts by the number of their tokens, and how they are spelled
//! - [`Trace`]: sessions from a file

mod arrivals;
mod length;
mod prompt;
mod shape;
mod trace;

use std::{path::PathBuf, time::Duration};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use self::{
    arrivals::Arrivals,
    length::Length,
    prompt::{Piece, Vocabulary},
    shape::{Prefixes, Shape},
    trace::{Trace, TraceFormat},
};
use crate::budgets::{Budgets, Wishes};

/// Everything that decides on traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workload {
    /// Same seed, same traffic.
    pub seed: u64,
    /// Sessions; of a trace, at most.
    pub sessions: usize,
    /// After which no session begins.
    pub seconds: Option<f64>,
    /// When sessions begin.
    pub arrivals: Arrivals,
    /// Requests under way at once, at most; those beyond wait, and their wait counts.
    pub max_in_flight: Option<usize>,
    /// Kinds of sessions; each session is of one of them.
    #[serde(rename = "class")]
    pub classes: Vec<Class>,
    /// Sessions from a file instead of those of the classes' shapes.
    pub trace: Option<Trace>,
}

/// A kind of session, with budgets of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Class {
    /// Its name in reports.
    pub name: String,
    /// Its part of all sessions, relative to the other classes'.
    pub share: f64,
    /// What its sessions look like.
    pub shape: Shape,
    /// What its requests should keep.
    pub budgets: Budgets,
    /// After which nobody waits for one of its requests any more (`x-baton-deadline-ms`).
    pub deadline_ms: Option<f64>,
    /// Its requests' place in line (`x-baton-priority`): higher goes first.
    pub priority: i32,
}

/// What is asked when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// By when they begin.
    pub sessions: Vec<Session>,
    /// Clients that begin the next session when one ends, in place of the sessions' times.
    pub clients: Option<usize>,
    /// Requests under way at once, at most.
    pub max_in_flight: Option<usize>,
    /// After which no session begins.
    pub until: Option<Duration>,
}

/// Turns of one user, each after the answer to the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// When it begins, from the start of the run.
    pub at: Duration,
    /// Index of its class.
    pub class: usize,
    /// What stands before everything, and others may share; a system message in chats.
    pub prefix: Option<Piece>,
    /// At least one.
    pub turns: Vec<Turn>,
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// From the answer before to this.
    pub pause: Duration,
    /// What is said, behind all that was said and answered.
    pub said: Vec<Piece>,
    /// Tokens of the answer.
    pub output_tokens: usize,
}

/// Why there is no traffic.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// A number that means nothing.
    #[error("{what} must be {wanted}, not {found}")]
    Unusable {
        /// The setting.
        what: &'static str,
        /// What it may be.
        wanted: &'static str,
        /// What it is.
        found: f64,
    },
    /// No classes.
    #[error("a workload needs a class")]
    NoClass,
    /// Times of a trace that is not there, or has none.
    #[error("replay needs a trace with times")]
    NoTimes,
    /// A trace that cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A trace of another form.
    #[error("{path}, entry {entry}: not {format}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1; a line, where entries are lines.
        entry: usize,
        /// What it should be.
        format: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
}

// === impl Workload ===

impl Default for Workload {
    /// A hundred requests, one a second.
    fn default() -> Self {
        Self {
            seed: 1,
            sessions: 100,
            seconds: None,
            arrivals: Arrivals::default(),
            max_in_flight: None,
            classes: vec![Class::default()],
            trace: None,
        }
    }
}

impl Workload {
    /// The traffic that it describes.
    ///
    /// # Errors
    /// When a number means nothing, or a trace cannot be read.
    pub fn traffic(&self) -> Result<Traffic, TrafficError> {
        self.check()?;
        // A generator for each concern: another rate leaves the prompts alone.
        let [mut when, mut who, mut what] = [1, 2, 3].map(|stream| seeded(self.seed, stream));
        let mut sessions = match &self.trace {
            Some(trace) => trace.sessions(self.sessions)?,
            None => Vec::with_capacity(self.sessions),
        };
        match &self.trace {
            Some(_) => sessions.iter_mut().for_each(|session| session.class = self.draw_class(&mut who)),
            None => sessions.extend((0..self.sessions).map(|_| {
                let class = self.draw_class(&mut who);
                self.classes[class].shape.session(class, self.seed, &mut what)
            })),
        }
        self.arrivals.set_times(&mut sessions, &mut when)?;
        Ok(Traffic {
            sessions,
            clients: self.arrivals.clients(),
            max_in_flight: self.max_in_flight,
            until: self.seconds.map(Duration::from_secs_f64),
        })
    }

    fn check(&self) -> Result<(), TrafficError> {
        if self.classes.is_empty() {
            return Err(TrafficError::NoClass);
        }
        for class in &self.classes {
            positive("share", class.share)?;
            positive("deadline_ms", class.deadline_ms.unwrap_or(1.0))?;
        }
        positive("max_in_flight", self.max_in_flight.unwrap_or(1) as f64)?;
        positive("seconds", self.seconds.unwrap_or(1.0))?;
        self.arrivals.check(self.trace.is_some())
    }

    /// That traffic, with other shares of the classes from given seconds on, in their order.
    pub(crate) fn mixed(&self, mut traffic: Traffic, shares: &[(f64, usize, f64)]) -> Traffic {
        let [mut who, mut what] = [4, 5].map(|stream| seeded(self.seed, stream));
        let (mut now, mut next) = (self.clone(), shares.iter().peekable());
        for session in &mut traffic.sessions {
            while let Some((_, class, share)) = next.next_if(|(at, ..)| *at <= session.at.as_secs_f64()) {
                now.classes[*class].share = *share;
            }
            if next.len() < shares.len() {
                let class = now.draw_class(&mut who);
                let drawn = now.classes[class].shape.session(class, self.seed, &mut what);
                *session = Session { at: session.at, ..drawn };
            }
        }
        traffic
    }

    fn draw_class(&self, random: &mut ChaCha8Rng) -> usize {
        let total: f64 = self.classes.iter().map(|class| class.share).sum();
        let mut left = random.random::<f64>() * total;
        let found = self.classes.iter().position(|class| {
            left -= class.share;
            left < 0.0
        });
        found.unwrap_or(self.classes.len() - 1)
    }
}

// === impl Class ===

impl Default for Class {
    fn default() -> Self {
        Self {
            name: "all".to_owned(),
            share: 1.0,
            shape: Shape::default(),
            budgets: Budgets::default(),
            deadline_ms: None,
            priority: 0,
        }
    }
}

impl Class {
    /// What a server is told of its requests.
    pub fn wishes(&self) -> Wishes {
        let Self { budgets, deadline_ms, priority, .. } = *self;
        Wishes { budgets, deadline_ms, priority }
    }
}

// === impl Traffic ===

impl Traffic {
    /// Requests of all sessions.
    pub fn requests(&self) -> usize {
        self.sessions.iter().map(|session| session.turns.len()).sum()
    }

    /// Whether any prompt begins as another one does, as far as can be told from its pieces.
    pub(crate) fn shares(&self) -> bool {
        let mut seen = std::collections::HashSet::new();
        self.sessions.iter().any(|session| {
            let mut is_known = |piece: &Piece| match piece {
                Piece::Drawn { seed, .. } => !seen.insert(*seed),
                Piece::Text(_) => true,
            };
            let mut pieces = session.prefix.iter().chain(session.turns.iter().flat_map(|turn| &turn.said));
            session.turns.len() > 1 || pieces.any(&mut is_known)
        })
    }

    /// The same, with so many times as many sessions a second from given seconds on.
    #[must_use]
    pub fn faster(mut self, rates: &[(f64, f64)]) -> Self {
        for session in &mut self.sessions {
            let mut left = session.at.as_secs_f64();
            let (mut at, mut times) = (0.0, 1.0);
            for &(from, next) in rates {
                if left < (from - at) * times {
                    break;
                }
                left -= (from - at) * times;
                (at, times) = (from, next);
            }
            session.at = Duration::from_secs_f64(at + left / times);
        }
        self
    }
}

// === impl Session ===

impl Session {
    /// One request, at a time of its own.
    pub fn single(at: Duration, class: usize, said: Piece, output_tokens: usize) -> Self {
        let turn = Turn { pause: Duration::ZERO, said: vec![said], output_tokens };
        Self { at, class, prefix: None, turns: vec![turn] }
    }
}

/// Numbers of one concern.
fn seeded(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

fn positive(what: &'static str, found: f64) -> Result<(), TrafficError> {
    let is_good = found > 0.0 && found.is_finite();
    is_good.then_some(()).ok_or(TrafficError::Unusable { what, wanted: "above 0", found })
}

#[cfg(test)]
mod tests;
