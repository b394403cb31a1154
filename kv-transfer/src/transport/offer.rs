//! The seam of transports: what each says of itself at HELLO and how its two
//! ends find each other. A new transport is one file and one row of [`ROWS`].

use std::sync::Arc;

use baton_protocol::{
    SessionId,
    wire::{Offer, Path},
};
use baton_trust::Trust;

#[cfg(feature = "ucx")]
use super::ucx;
use super::{Checksum, FrameReceiver, FrameSender, Link, PathError, inproc, shm, tcp};
use crate::{SessionError, TransferConfig, TransportKind, Wanted, config::StandIn, metrics::Side};

/// What the two ends of a path know of their session.
#[derive(Clone)]
pub struct Terms {
    /// Its number.
    pub session: SessionId,
    /// Told over the control stream only: who knows it may have the other end.
    pub secret: [u8; 32],
    /// What both sides agreed on.
    pub checksum: Checksum,
    /// This node's own.
    pub config: TransferConfig,
}

/// A way for frames to travel, as one node has it.
#[tonic::async_trait]
pub trait Transport: Send + Sync {
    /// What decides whether two nodes can meet: those whose places are equal
    /// can. Empty where any two can try.
    fn place(&self) -> String;

    /// The sending side: makes a path for one session; the address under which
    /// the receiver finds it.
    ///
    /// # Errors
    /// When the path cannot be had now.
    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError>;

    /// The receiving side: goes to the address. The caller limits the time.
    ///
    /// # Errors
    /// When nobody waits there, or for somebody else.
    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError>;
}

/// A path whose receiver has not come yet; dropping it gives the address up.
#[tonic::async_trait]
pub trait Rendezvous: Send {
    /// Waits for the receiver. The caller limits the time.
    ///
    /// # Errors
    /// When it cannot come any more.
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError>;
}

type Make = fn(&TransferConfig, &Trust, Side) -> Result<Arc<dyn Transport>, SessionError>;

/// Every transport of this build, the nearest first: without measurement the first that both have is taken.
const ROWS: &[(TransportKind, Make)] = &[
    (TransportKind::Inproc, inproc::transport),
    #[cfg(feature = "cuda")]
    (TransportKind::CudaIpc, super::cuda_ipc::transport),
    #[cfg(feature = "cuda")]
    (TransportKind::Nccl, super::nccl::transport),
    (TransportKind::Shm, shm::transport),
    #[cfg(feature = "ucx")]
    (TransportKind::Ucx, ucx::transport),
    (TransportKind::Tcp, tcp::transport),
];

/// How a build comes by a transport that this one has not.
fn remedy(kind: TransportKind) -> &'static str {
    match kind {
        TransportKind::Ucx => "build with `--features ucx`, which needs libibverbs-dev and make",
        TransportKind::CudaIpc | TransportKind::Nccl => "build with `--features cuda`",
        _ => "name another, or auto",
    }
}

/// The transports of this build, the nearest first.
pub fn built() -> impl Iterator<Item = TransportKind> {
    ROWS.iter().map(|(kind, _)| *kind)
}

/// The transports that one side of a node uses.
#[derive(Clone)]
pub struct Transports {
    wanted: Wanted,
    rows: Vec<(TransportKind, Arc<dyn Transport>)>,
}

// === impl Transports ===

impl Transports {
    /// What the config allows.
    ///
    /// # Errors
    /// When it names a transport that is not in this build, or one cannot be set up.
    pub fn new(config: &TransferConfig, trust: &Trust, side: Side) -> Result<Self, SessionError> {
        let wanted = config.transport;
        if let Some(StandIn(transport)) = &config.stand_in {
            return Ok(Self { wanted, rows: vec![(TransportKind::Tcp, transport.clone())] });
        }
        if let Wanted::Only(kind) = wanted
            && !built().any(|built| built == kind)
        {
            return Err(SessionError::NotBuilt { transport: kind.as_str(), remedy: remedy(kind) });
        }
        let allowed = |kind| config.fallback || wanted == Wanted::Auto || wanted == Wanted::Only(kind);
        let rows = ROWS.iter().filter(|(kind, _)| allowed(*kind));
        let mut made = Vec::new();
        for (kind, make) in rows {
            match make(config, trust, side) {
                Ok(transport) => made.push((*kind, transport)),
                Err(error @ SessionError::NotHere { .. })
                    if wanted != Wanted::Only(*kind) || config.fallback =>
                {
                    tracing::debug!(%error, "left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { wanted, rows: made })
    }

    /// Which one this node was told to use.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// What can be used, the nearest first.
    pub fn kinds(&self) -> impl Iterator<Item = TransportKind> {
        self.rows.iter().map(|(kind, _)| *kind)
    }

    /// For HELLO.
    pub fn offers(&self) -> Vec<Offer> {
        let offer = |(kind, transport): &(TransportKind, Arc<dyn Transport>)| Offer {
            kind: kind.as_str().to_owned(),
            place: transport.place(),
        };
        self.rows.iter().map(offer).collect()
    }

    /// The kinds that this node and one that offers `theirs` both have, at the same place.
    pub fn in_common(&self, theirs: &[Offer]) -> Vec<TransportKind> {
        let offers = self.offers();
        let common = self.rows.iter().zip(&offers).filter(|(_, offer)| theirs.contains(offer));
        common.map(|((kind, _), _)| *kind).collect()
    }

    /// Makes a path of each of these kinds: what WELCOME says of them, and those that are open.
    pub async fn listen(&self, kinds: &[TransportKind], terms: &Terms) -> (Vec<Path>, Vec<Listening>) {
        let (mut paths, mut open) = (Vec::new(), Vec::new());
        for (kind, transport) in self.rows.iter().filter(|(kind, _)| kinds.contains(kind)) {
            let mut path = Path { kind: kind.as_str().to_owned(), ..Path::default() };
            match transport.listen(terms).await {
                Ok((addr, rendezvous)) => {
                    path.addr = addr;
                    open.push(Listening { kind: *kind, rendezvous });
                }
                Err(error) => path.failed = error.to_string(),
            }
            paths.push(path);
        }
        (paths, open)
    }

    /// Goes to one path of a WELCOME.
    ///
    /// # Errors
    /// When this node did not offer it, or it does not open.
    pub async fn connect(&self, path: &Path, terms: &Terms) -> Result<Link<dyn FrameReceiver>, PathError> {
        if !path.failed.is_empty() {
            return Err(PathError::Unavailable { reason: path.failed.clone() });
        }
        let row = self.rows.iter().find(|(kind, _)| kind.as_str() == path.kind);
        let (_, transport) =
            row.ok_or_else(|| PathError::Unavailable { reason: "was not offered".to_owned() })?;
        transport.connect(terms, &path.addr).await
    }
}

/// A path that waits for its receiver.
pub struct Listening {
    /// Its transport.
    pub kind: TransportKind,
    /// Its other end.
    pub rendezvous: Box<dyn Rendezvous>,
}

/// Offers in words, for a refusal: places are long, their beginning tells them apart.
pub fn in_words(offers: &[Offer]) -> String {
    let word = |offer: &Offer| match offer.place.get(..8).unwrap_or(&offer.place) {
        "" => offer.kind.clone(),
        place => format!("{} at {place}", offer.kind),
    };
    offers.iter().map(word).collect::<Vec<_>>().join(", ")
}
