//! What a person may set, and who the local node is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use baton_protocol::{Incarnation, KvShape, NodeId};
use baton_trust::Trust;
use serde::Deserialize;

use crate::transport::MAX_FRAME_BYTES;

/// The node on this side of every session.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Nodes of different clusters refuse each other.
    pub cluster: String,
    /// Its name.
    pub node: NodeId,
    /// Random at process start.
    pub incarnation: Incarnation,
    /// Weights and shape in one hash.
    pub model_fingerprint: String,
    /// Shape of its KV cache.
    pub kv: KvShape,
    /// Its certificates, or none.
    pub trust: Trust,
}

/// Ways for frames to travel, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Both nodes live in one process: frames are copied from page to page.
    Inproc,
    /// A socket of its own beside the control stream.
    Tcp,
}

/// Section `[transfer]`: sessions, frames and transports.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferConfig {
    /// Transports this node uses, best first.
    pub transports: Vec<TransportKind>,
    /// Where the sending side listens for data sockets. On a node that itself listens beyond
    /// loopback, a loopback address means the node's own address, with this port.
    pub data_listen: SocketAddr,
    /// Whether data sockets are encrypted; needs certificates, and the same on both sides. Otherwise
    /// a secret ties them to the session, told over the control stream, which is.
    pub tls: bool,
    /// Frames are whole layers up to this size, at least one row of one layer.
    pub frame_bytes: usize,
    /// Frames of one handoff that may be under way at once.
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
    /// Size of the frame that measures a new session's bandwidth; 0 measures nothing.
    pub probe_bytes: u32,
    /// Disturbs the frames that this node sends, for tests of whole clusters.
    pub faults: Option<FaultsConfig>,
}

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
    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inproc => "inproc",
            Self::Tcp => "tcp",
        }
    }
}

// === impl TransferConfig ===

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            transports: vec![TransportKind::Inproc, TransportKind::Tcp],
            data_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: false,
            frame_bytes: 2 << 20,
            window_frames: 4,
            repair_timeout_ms: 500,
            max_nacks: 3,
            max_handoffs: 1024,
            ping_interval_ms: 1_000,
            missed_pings: 3,
            connect_timeout_ms: 3_000,
            handshake_timeout_ms: 5_000,
            stall_timeout_ms: 10_000,
            probe_bytes: 1 << 20,
            faults: None,
        }
    }
}

impl TransferConfig {
    /// What data sockets are encrypted with, if they are.
    pub(crate) fn data_tls<'a>(&self, trust: &'a Trust) -> Option<&'a Trust> {
        self.tls.then_some(trust)
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        self.frame_bytes.clamp(1, MAX_FRAME_BYTES as usize)
    }

    pub(crate) fn window_frames(&self) -> u32 {
        self.window_frames.clamp(1, 1024)
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
            toml::from_str("transports = ['tcp']\nwindow_frames = 0\n[faults]\ndrop_probability = 0.5")
                .unwrap();
        assert_eq!((config.transports.as_slice(), config.window_frames()), (&[TransportKind::Tcp][..], 1));
        assert_eq!(config.faults.map(|faults| faults.drop_probability), Some(0.5));
        assert!(toml::from_str::<TransferConfig>("windows = 3").is_err());
    }
}
