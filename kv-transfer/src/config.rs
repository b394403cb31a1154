//! What a person may set, and who the local node is.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use baton_protocol::{HeadShare, Incarnation, KvShape, NodeId};
use baton_trust::Trust;
use serde::Deserialize;

use crate::transport::{Checksum, MAX_FRAME_BYTES, offer::Transport, tcp::MAX_SOCKETS};

/// The node on this side of every session.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Nodes of different clusters refuse each other.
    pub cluster: String,
    /// Its name.
    pub node: NodeId,
    /// Random at process start.
    pub incarnation: Incarnation,
    /// Its gRPC address, `host:port`, where peers fetch what it hands back.
    pub control_addr: String,
    /// Weights and shape in one hash.
    pub model_fingerprint: String,
    /// Shape of the KV cache, all heads of the model counted.
    pub kv: KvShape,
    /// Its certificates, or none.
    pub trust: Trust,
    /// The heads that it holds of them.
    pub heads: HeadShare,
}

/// Ways for frames to travel, by name, whether this build has them or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// Both nodes live in one process: frames are copied from page to page.
    Inproc,
    /// A ring of shared memory between processes of one host.
    Shm,
    /// Sockets of their own beside the control stream.
    Tcp,
    /// UCX, which knows InfiniBand and other fast networks.
    Ucx,
    /// NCCL between cards.
    Nccl,
    /// Memory of a card that another process of the host maps.
    CudaIpc,
}

/// Which transport a node was told to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Wanted {
    /// The fastest that both sides have, by measurement.
    #[default]
    Auto,
    /// This one.
    Only(TransportKind),
}

/// Frames of a handoff that may be under way into pages on a card: as many as the road with most slots has.
pub(crate) const CARD_FRAMES: u32 = 24;

/// Section `[transfer]`: sessions, frames and transports.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferConfig {
    /// `auto` takes the fastest transport that both sides have; a named one is the only one
    /// that is taken, unless `fallback` says otherwise.
    pub transport: Wanted,
    /// Whether a node may use another transport than the named one; metrics and a warning say so.
    pub fallback: bool,
    /// Checksum of payloads; none only where both sides say so.
    pub checksum: Checksum,
    /// Where the sending side listens for data sockets. On a node that itself listens beyond
    /// loopback, a loopback address means the node's own address, with this port.
    pub data_listen: SocketAddr,
    /// Whether data sockets are encrypted; needs certificates, and the same on both sides. Otherwise
    /// a secret ties them to the session, told over the control stream, which is.
    pub tls: bool,
    /// TCP sockets of a session, which frames use in turn; the receiving side decides.
    pub tcp_sockets: u8,
    /// Frames are whole layers up to this size, at least one row of one layer. 0 means 1 MiB, or
    /// 4 MiB from pages on a card, where a frame's own costs weigh more than its bytes.
    pub frame_bytes: usize,
    /// Frames of one handoff that may be under way at once. 0 means 4, or 24 into pages on a card:
    /// as many as a path of NCCL has slots.
    pub window_frames: u32,
    /// Silence on the data path after which a missing frame is asked for again.
    pub repair_timeout_ms: u64,
    /// How often one frame is asked for again before the handoff is lost.
    pub max_nacks: u32,
    /// Handoffs of one session that may be open at once; more are answered BUSY.
    pub max_handoffs: usize,
    /// Time between pings.
    pub ping_interval_ms: u64,
    /// Pings without an answer after which the peer is lost.
    pub missed_pings: u32,
    /// Time for a whole session to open.
    pub connect_timeout_ms: u64,
    /// Time for a data socket to say which session it belongs to.
    pub handshake_timeout_ms: u64,
    /// Time without progress inside one frame after which the data path is broken.
    pub stall_timeout_ms: u64,
    /// Size of the frames that measure each path of a new session; 0 measures nothing,
    /// and the first transport in the order of `TransportKind` is taken.
    pub probe_bytes: u32,
    /// KV of ended answers that this node hands back to prefill nodes, at most;
    /// 0 hands back none and takes none.
    pub return_bytes_per_second: u64,
    /// The card that this node's pages are on; none when they are in the machine's
    /// memory. Follows from the engine, not from the file.
    #[serde(skip)]
    pub device: Option<usize>,
    /// Disturbs the frames that this node sends, for tests of whole clusters.
    pub faults: Option<FaultsConfig>,
    /// Under TCP's name in place of all transports of this build, where the network is simulated.
    #[serde(skip)]
    pub stand_in: Option<StandIn>,
}

/// A transport from outside of this build's table.
#[derive(Clone)]
pub struct StandIn(pub Arc<dyn Transport>);

/// Section `[transfer.faults]`: a seeded schedule of disturbances on the sending side.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultsConfig {
    /// Seed of the schedule; equal seeds disturb equal frames.
    pub seed: u64,
    /// Share of frames that are delayed.
    pub delay_probability: f64,
    /// Longest delay.
    pub max_delay_ms: u64,
    /// Share of frames that never leave.
    pub drop_probability: f64,
    /// Share of frames of which one bit is flipped after the checksum was made.
    pub corrupt_probability: f64,
    /// Share of frames that change places with the next one.
    pub reorder_probability: f64,
    /// The path falls silent for `stall_ms` before this frame (counted from 1).
    pub stall_at_frame: Option<u64>,
    /// How long it then stays silent.
    pub stall_ms: u64,
    /// The path breaks after so many frames.
    pub cut_after_frames: Option<u64>,
}

// === impl TransportKind ===

impl TransportKind {
    /// Every kind, the nearest first.
    pub const ALL: [Self; 6] = [Self::Inproc, Self::CudaIpc, Self::Nccl, Self::Shm, Self::Ucx, Self::Tcp];

    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inproc => "inproc",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Ucx => "ucx",
            Self::Nccl => "nccl",
            Self::CudaIpc => "cuda_ipc",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

// === impl Wanted ===

impl Wanted {
    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(kind) => kind.as_str(),
        }
    }
}

impl TryFrom<String> for Wanted {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == Self::Auto.as_str() {
            return Ok(Self::Auto);
        }
        let known = || TransportKind::ALL.map(TransportKind::as_str).join(", ");
        TransportKind::named(&name)
            .map(Self::Only)
            .ok_or_else(|| format!("unknown transport {name:?}: auto, {}", known()))
    }
}

// === impl StandIn ===

impl PartialEq for StandIn {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandIn")
    }
}

// === impl TransferConfig ===

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            transport: Wanted::Auto,
            fallback: false,
            checksum: Checksum::Crc32c,
            data_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: false,
            tcp_sockets: 1,
            frame_bytes: 0,
            window_frames: 0,
            repair_timeout_ms: 500,
            max_nacks: 3,
            max_handoffs: 1024,
            ping_interval_ms: 1_000,
            missed_pings: 3,
            connect_timeout_ms: 3_000,
            handshake_timeout_ms: 5_000,
            stall_timeout_ms: 10_000,
            probe_bytes: 1 << 20,
            return_bytes_per_second: 0,
            device: None,
            faults: None,
            stand_in: None,
        }
    }
}

impl TransferConfig {
    /// What data sockets are encrypted with, if they are.
    pub(crate) fn data_tls<'a>(&self, trust: &'a Trust) -> Option<&'a Trust> {
        self.tls.then_some(trust)
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        let bytes = match (self.frame_bytes, self.device) {
            (0, None) => 1 << 20,
            (0, Some(_)) => 4 << 20,
            (bytes, _) => bytes,
        };
        bytes.min(MAX_FRAME_BYTES as usize)
    }

    pub(crate) fn tcp_sockets(&self) -> u8 {
        self.tcp_sockets.clamp(1, MAX_SOCKETS)
    }

    pub(crate) fn window_frames(&self) -> u32 {
        match (self.window_frames, self.device) {
            (0, None) => 4,
            (0, Some(_)) => CARD_FRAMES,
            (frames, _) => frames.min(1024),
        }
    }

    /// The receiver asks `max_nacks` times for what it knows to be missing, and
    /// may have inquired as often before it knew.
    pub(crate) fn max_repeats(&self) -> u32 {
        self.max_nacks.saturating_mul(2).saturating_add(2)
    }

    pub(crate) fn probe_bytes(&self) -> u32 {
        self.probe_bytes.min(MAX_FRAME_BYTES)
    }

    pub(crate) fn repair_timeout(&self) -> Duration {
        Duration::from_millis(self.repair_timeout_ms.max(1))
    }

    pub(crate) fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.ping_interval_ms.max(10))
    }

    /// Silence of the control stream after which the peer is lost.
    pub(crate) fn silence_limit(&self) -> Duration {
        self.ping_interval() * self.missed_pings.max(1)
    }

    /// How long a peer may take to end what it was told to end, its data thread busy with a frame.
    pub(crate) fn quiet_limit(&self) -> Duration {
        self.stall_timeout() + self.silence_limit()
    }

    /// How long a frame may be on its way in, however it comes: ends of paths see only whether something does.
    pub(crate) fn frame_limit(&self, bytes: u32) -> Duration {
        2 * self.stall_timeout() * (1 + (bytes >> 20))
    }

    /// How often timers are looked at.
    pub(crate) fn tick(&self) -> Duration {
        (self.repair_timeout() / 4).min(self.ping_interval() / 4).max(Duration::from_millis(2))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.max(1))
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms.max(1))
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_names_only_what_differs() {
        let config: TransferConfig =
            toml::from_str("transport = 'cuda_ipc'\nwindow_frames = 1\n[faults]\ndrop_probability = 0.5")
                .unwrap();
        assert_eq!((config.transport, config.window_frames()), (Wanted::Only(TransportKind::CudaIpc), 1));
        assert_eq!(config.faults.map(|faults| faults.drop_probability), Some(0.5));
        let auto: TransferConfig = toml::from_str("transport = 'auto'\nchecksum = 'none'").unwrap();
        assert_eq!((auto.transport, auto.checksum), (Wanted::Auto, Checksum::None));
        assert_eq!((auto.window_frames(), auto.frame_bytes()), (4, 1 << 20));
        let card = TransferConfig { device: Some(0), ..auto };
        assert_eq!((card.window_frames(), card.frame_bytes()), (24, 4 << 20), "what a card's slots hold");
        for wrong in ["windows = 3", "transport = 'rdma'", "checksum = 'md5'"] {
            assert!(toml::from_str::<TransferConfig>(wrong).is_err());
        }
    }
}
