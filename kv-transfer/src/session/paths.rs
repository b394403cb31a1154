//! Opening a session's data paths: every transport that both nodes have is
//! opened and measured once, one after the other; the receiver keeps the
//! fastest, or the one that was asked for, and says so.

use baton_protocol::wire::{self, Control, control::Message};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tonic::Streaming;

use super::control::Inbox;
use crate::{
    SessionError, TransportKind, Wanted,
    transport::{
        Closer, FrameReceiver, FrameSender, Link, PathError,
        offer::{Listening, Terms, Transports},
        probe,
    },
};

/// How a session's data travels, and how the choice was made.
#[derive(Clone, Debug, PartialEq)]
pub struct PathReport {
    /// The transport in use.
    pub transport: TransportKind,
    /// Every transport that was tried.
    pub tried: Vec<Tried>,
    /// Which one this node was told to use, and which the other.
    pub wanted: [Wanted; 2],
}

/// What became of one transport while a session was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// Which.
    pub transport: TransportKind,
    /// Its bandwidth in bytes a second; none where nothing was measured. Or why it cannot be used.
    pub outcome: Result<Option<f64>, String>,
}

/// Closes a path unless it is kept: wakes whoever works on it in another thread.
struct CloseUnlessKept(Option<Closer>);

/// Goes to every path of a WELCOME and keeps one. Times are limited by the caller.
///
/// # Errors
/// Why none can be used.
pub async fn connect(
    transports: &Transports,
    terms: &Terms,
    welcome: &wire::Welcome,
) -> Result<(Link<dyn FrameReceiver>, PathReport), String> {
    let mut tried = Vec::new();
    let mut open = Vec::new();
    for path in &welcome.paths {
        let kind = TransportKind::named(&path.kind).ok_or("a path of an unknown transport")?;
        let outcome = match attempt(transports, terms, path).await {
            Ok((link, measured)) => {
                open.push((kind, link));
                Ok(measured)
            }
            Err(error) => Err(error.to_string()),
        };
        tried.push(Tried { transport: kind, outcome });
    }
    let wanted = [transports.wanted(), told(&welcome.transport)];
    let kept = choose(&tried, wanted);
    let mut chosen = None;
    for (kind, link) in open {
        if kept == Some(kind) {
            chosen = Some((link, kind));
        } else {
            link.closer.close();
        }
    }
    let Some((link, transport)) = chosen else {
        let why = |tried: &Tried| {
            tried.outcome.clone().err().map(|why| format!("{}: {why}", tried.transport.as_str()))
        };
        return Err(tried.iter().filter_map(why).collect::<Vec<_>>().join("; "));
    };
    Ok((link, PathReport { transport, tried, wanted }))
}

async fn attempt(
    transports: &Transports,
    terms: &Terms,
    path: &wire::Path,
) -> Result<(Link<dyn FrameReceiver>, Option<f64>), PathError> {
    let mut link = transports.connect(path, terms).await?;
    let guard = CloseUnlessKept::new(&link.closer);
    let bytes = terms.config.probe_bytes();
    let mut rate = None;
    if bytes > 0 {
        let measured =
            spawn_blocking(move || probe::measure(&mut *link.end, bytes).map(|rate| (link, rate))).await;
        (link, rate) = measured.map_err(|_| PathError::Closed)??;
    }
    guard.keep();
    Ok((link, rate))
}

/// What a node says that it was told to use; a transport that is not known here is none that it gets.
pub fn told(name: &str) -> Wanted {
    TransportKind::named(name).map_or(Wanted::Auto, Wanted::Only)
}

/// The one that somebody was told to use, this node first; else the fastest;
/// else the first.
fn choose(tried: &[Tried], wanted: [Wanted; 2]) -> Option<TransportKind> {
    let usable = || tried.iter().filter(|tried| tried.outcome.is_ok());
    let rate = |tried: &&Tried| tried.outcome.as_ref().ok().copied().flatten().unwrap_or(0.0);
    let asked = wanted.iter().find_map(|told| usable().find(|tried| *told == Wanted::Only(tried.transport)));
    // `max_by` takes the last of equals; the first is the nearest.
    let fastest = usable().rev().max_by(|a, b| rate(a).total_cmp(&rate(b)));
    asked.or(fastest).map(|tried| tried.transport)
}

/// Waits until the receiver has chosen a path; the others close. Gives back the
/// stream's count of messages.
///
/// # Errors
/// When the receiver does not choose in time, or something that is not open.
pub async fn accept(
    listening: Vec<Listening>,
    terms: &Terms,
    probe_bytes: u32,
    wanted: [Wanted; 2],
    inbound: &mut Streaming<Control>,
) -> Result<(Link<dyn FrameSender>, PathReport, Inbox), SessionError> {
    let mut opening = JoinSet::new();
    for Listening { kind, rendezvous } in listening {
        opening.spawn(async move {
            let mut link = rendezvous.accept().await?;
            let guard = CloseUnlessKept::new(&link.closer);
            if probe_bytes > 0 {
                let sent = spawn_blocking(move || probe::send(&mut *link.end, probe_bytes).map(|()| link));
                link = sent.await.map_err(|_| PathError::Closed)??;
            }
            guard.keep();
            Ok::<_, PathError>((kind, link))
        });
    }
    let limit = terms.config.handshake_timeout();
    let mut inbox = Inbox::new(terms.session);
    let chosen =
        timeout(limit, inbound.message()).await.map_err(|_| SessionError::down("no path was chosen"))?;
    let control = chosen.map_err(|status| SessionError::down(status.message()))?;
    let control = control.ok_or_else(|| SessionError::down("the decode node closed it"))?;
    let Message::Chosen(chosen) = inbox.take(control)? else {
        return Err(SessionError::down("no path was chosen"));
    };
    let report = PathReport::of(&chosen, wanted)?;
    let kept = async {
        let mut kept = None;
        while kept.is_none()
            && let Some(opened) = opening.join_next().await
        {
            kept = opened.ok().and_then(Result::ok).filter(|(kind, _)| *kind == report.transport);
        }
        kept
    };
    // The receiver has seen its last probe; at most the word of it is still on its way here.
    let kept = timeout(limit, kept).await.ok().flatten();
    let (_, link) = kept.ok_or_else(|| SessionError::down("the chosen path is not open"))?;
    Ok((link, report, inbox))
}

// === impl PathReport ===

impl PathReport {
    /// What the receiver says.
    pub(super) fn of(chosen: &wire::Chosen, wanted: [Wanted; 2]) -> Result<Self, SessionError> {
        let named = |name| {
            TransportKind::named(name).ok_or_else(|| SessionError::down("a path of an unknown transport"))
        };
        let tried = chosen.tried.iter().take(TransportKind::ALL.len()).map(|tried| {
            let measured = (tried.bytes_per_second > 0.0).then_some(tried.bytes_per_second);
            let outcome = if tried.failed.is_empty() { Ok(measured) } else { Err(tried.failed.clone()) };
            Ok(Tried { transport: named(&tried.kind)?, outcome })
        });
        let tried = tried.collect::<Result<_, SessionError>>()?;
        Ok(Self { transport: named(&chosen.kind)?, tried, wanted })
    }

    /// For the sender.
    pub fn chosen(&self) -> wire::Chosen {
        let tried = self.tried.iter().map(|tried| wire::Tried {
            kind: tried.transport.as_str().to_owned(),
            bytes_per_second: tried.outcome.as_ref().ok().copied().flatten().unwrap_or(0.0),
            failed: tried.outcome.clone().err().unwrap_or_default(),
        });
        wire::Chosen { kind: self.transport.as_str().to_owned(), tried: tried.collect() }
    }

    /// What the path in use was measured to do, in bytes a second.
    pub fn bandwidth(&self) -> Option<f64> {
        self.tried.iter().find(|tried| tried.transport == self.transport)?.outcome.clone().ok().flatten()
    }

    /// If this node was told to use another transport: which, and why it is not in use.
    pub fn fallback(&self) -> Option<String> {
        self.instead_of(self.wanted[0])
    }

    /// The same of the other node.
    pub fn others_fallback(&self) -> Option<String> {
        self.instead_of(self.wanted[1])
    }

    fn instead_of(&self, wanted: Wanted) -> Option<String> {
        let Wanted::Only(wanted) = wanted else { return None };
        if wanted == self.transport {
            return None;
        }
        let tried = self.tried.iter().find(|tried| tried.transport == wanted);
        let why = match tried.map(|tried| &tried.outcome) {
            None => "the other node does not have it, or not at the same place",
            Some(Err(why)) => why,
            Some(Ok(_)) => "the other node was told otherwise",
        };
        Some(format!("told to use {}, uses {}: {why}", wanted.as_str(), self.transport.as_str()))
    }
}

// === impl CloseUnlessKept ===

impl CloseUnlessKept {
    fn new(closer: &Closer) -> Self {
        Self(Some(closer.clone()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseUnlessKept {
    fn drop(&mut self) {
        self.0.take().inspect(Closer::close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransportKind::{Inproc, Shm, Tcp};

    const AUTO: [Wanted; 2] = [Wanted::Auto; 2];

    fn tried(outcomes: &[(TransportKind, Result<f64, &str>)]) -> Vec<Tried> {
        let tried = |&(transport, outcome): &(_, Result<f64, &str>)| Tried {
            transport,
            outcome: outcome.map(|rate| (rate > 0.0).then_some(rate)).map_err(str::to_owned),
        };
        outcomes.iter().map(tried).collect()
    }

    #[test]
    fn the_fastest_that_works_unless_somebody_asked() {
        let all = tried(&[(Inproc, Err("gone")), (Shm, Ok(7.0)), (Tcp, Ok(9.0))]);
        for (names, expected) in [
            (["auto", "auto"], Tcp),
            (["shm", "auto"], Shm),
            (["auto", "shm"], Shm),
            (["tcp", "shm"], Tcp),
            (["inproc", "shm"], Shm),
            (["inproc", "of a later version"], Tcp),
        ] {
            assert_eq!(choose(&all, names.map(told)), Some(expected), "{names:?}");
        }
        let unmeasured = tried(&[(Shm, Ok(0.0)), (Tcp, Ok(0.0))]);
        assert_eq!(choose(&unmeasured, AUTO), Some(Shm), "the nearest");
        assert_eq!(choose(&tried(&[(Tcp, Err("no"))]), ["auto", "tcp"].map(told)), None);
    }

    #[test]
    fn whoever_got_another_transport_than_told_says_why() {
        let tried = tried(&[(Shm, Err("no room")), (Tcp, Ok(2.0))]);
        let report = |wanted| PathReport { transport: Tcp, tried: tried.clone(), wanted };
        let both =
            |wanted| [report([wanted, AUTO[1]]).fallback(), report([AUTO[0], wanted]).others_fallback()];
        assert_eq!([both(Wanted::Auto), both(Wanted::Only(Tcp))], [[None, None], [None, None]]);
        for (kind, why) in [
            (Shm, "told to use shm, uses tcp: no room"),
            (
                Inproc,
                "told to use inproc, uses tcp: the other node does not have it, or not at the same place",
            ),
        ] {
            let why = Some(why.to_owned());
            assert_eq!(both(Wanted::Only(kind)), [why.clone(), why]);
            assert_eq!(report([Wanted::Only(kind), AUTO[1]]).others_fallback(), None);
        }
        let survives = PathReport::of(&report(AUTO).chosen(), AUTO).unwrap();
        assert_eq!(survives, report(AUTO));
        assert_eq!(survives.bandwidth(), Some(2.0));
    }
}
