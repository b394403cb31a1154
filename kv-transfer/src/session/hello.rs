//! Who fits whom: HELLO, WELCOME, REFUSE.

use baton_protocol::{
    KvShape, PROTOCOL, SessionId,
    wire::{Hello, Refuse, Welcome},
};

use super::client::PrefillPeer;
use crate::{LocalNode, SessionError, TransferConfig, TransportKind, transport::inproc};

/// What both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub protocol: u32,
    pub transport: TransportKind,
}

/// The decode node's HELLO to a peer.
pub fn hello(local: &LocalNode, config: &TransferConfig, peer: &PrefillPeer) -> Hello {
    Hello {
        protocol_min: *PROTOCOL.start(),
        protocol_max: *PROTOCOL.end(),
        cluster: local.cluster.clone(),
        node: local.node.0.clone(),
        incarnation: local.incarnation.0,
        model_fingerprint: local.model_fingerprint.clone(),
        kv: Some((&local.kv).into()),
        tp: 1,
        transports: config.transports.iter().map(|&kind| offer(kind, config)).collect(),
        expect_incarnation: peer.incarnation.0,
    }
}

/// A transport as HELLO names it: in-process paths exist within one process only, and encrypted
/// sockets are another way than open ones.
fn offer(kind: TransportKind, config: &TransferConfig) -> String {
    match kind {
        TransportKind::Inproc => format!("inproc:{}", inproc::process_name()),
        TransportKind::Tcp if config.tls => "tcp+tls".to_owned(),
        TransportKind::Tcp => kind.as_str().to_owned(),
    }
}

/// The prefill node's answer to a HELLO.
pub fn check_hello(local: &LocalNode, config: &TransferConfig, hello: &Hello) -> Result<Chosen, Refuse> {
    let same = |field: &str, mine: &dyn ToString, yours: &dyn ToString| {
        let (mine, yours) = (mine.to_string(), yours.to_string());
        if mine == yours { Ok(()) } else { Err(Refuse { field: field.to_owned(), mine, yours }) }
    };
    let protocol = hello.protocol_max.min(*PROTOCOL.end());
    if protocol < hello.protocol_min.max(*PROTOCOL.start()) {
        let mine = format!("{} to {}", PROTOCOL.start(), PROTOCOL.end());
        let yours = format!("{} to {}", hello.protocol_min, hello.protocol_max);
        return Err(Refuse { field: "protocol".to_owned(), mine, yours });
    }
    same("cluster", &local.cluster, &hello.cluster)?;
    same("incarnation", &local.incarnation.0, &hello.expect_incarnation)?;
    same("model fingerprint", &local.model_fingerprint, &hello.model_fingerprint)?;
    let theirs = hello.kv.as_ref().and_then(|kv| KvShape::try_from(kv).ok());
    let Some(theirs) = theirs else {
        let (mine, yours) = (describe(&local.kv), "none that is valid".to_owned());
        return Err(Refuse { field: "kv shape".to_owned(), mine, yours });
    };
    same("kv shape", &describe(&local.kv), &describe(&theirs))?;
    same("tensor parallel size", &1, &hello.tp)?;
    // The asker's order of preference, among what this side has.
    let offered = |kind: &&TransportKind| hello.transports.contains(&offer(**kind, config));
    let rank =
        |kind: &&TransportKind| hello.transports.iter().position(|name| *name == offer(**kind, config));
    match config.transports.iter().filter(offered).min_by_key(rank) {
        Some(&transport) => Ok(Chosen { protocol, transport }),
        None => {
            let mine: Vec<_> = config.transports.iter().map(|&kind| offer(kind, config)).collect();
            let short =
                |names: &[String]| names.iter().map(|name| short(name)).collect::<Vec<_>>().join(", ");
            let (mine, yours) = (short(&mine), short(&hello.transports));
            Err(Refuse { field: "transports".to_owned(), mine, yours })
        }
    }
}

/// What must be equal on both sides; page size need not be.
fn describe(kv: &KvShape) -> String {
    format!("{} layers of {} heads of {} {}", kv.layers, kv.kv_heads, kv.head_dim, kv.dtype)
}

fn short(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// The decode node's check of a WELCOME.
pub fn check_welcome(
    local: &LocalNode,
    config: &TransferConfig,
    peer: &PrefillPeer,
    welcome: &Welcome,
) -> Result<(SessionId, Chosen), SessionError> {
    let same = |field: &str, mine: String, yours: String| {
        if mine == yours {
            Ok(())
        } else {
            Err(SessionError::Refused { field: field.to_owned(), mine, yours })
        }
    };
    same("node", peer.node.0.clone(), welcome.node.clone())?;
    same("incarnation", peer.incarnation.0.to_string(), welcome.incarnation.to_string())?;
    let theirs = welcome.kv.as_ref().and_then(|kv| KvShape::try_from(kv).ok());
    same("kv shape", describe(&local.kv), theirs.as_ref().map_or_else(|| "none".to_owned(), describe))?;
    let broken =
        |reason: &str| SessionError::Connect { node: peer.node.0.clone(), reason: reason.to_owned() };
    if welcome.session == 0 {
        return Err(broken("session without a number"));
    }
    if !PROTOCOL.contains(&welcome.protocol) {
        return Err(broken("chose a protocol that was not offered"));
    }
    let chosen = config.transports.iter().find(|kind| kind.as_str() == welcome.transport);
    let &transport = chosen.ok_or_else(|| broken("chose a transport that was not offered"))?;
    Ok((SessionId(welcome.session), Chosen { protocol: welcome.protocol, transport }))
}
