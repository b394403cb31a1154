//! Who fits whom: HELLO, WELCOME, REFUSE.

use std::ops::{Range, RangeInclusive};

use baton_protocol::{
    HeadShare, KvShape, PROTOCOL, SessionId,
    wire::{Hello, Refuse, Welcome},
};

use super::client::KvPeer;
use crate::{
    LocalNode, SessionError, TransferConfig, TransportKind,
    transport::{
        Checksum,
        offer::{Terms, Transports, in_words},
    },
};

/// What both sides speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub protocol: u32,
    pub checksum: Checksum,
    /// Transports that both have.
    pub transports: Vec<TransportKind>,
    /// The runs of heads in which KV goes to the decode node.
    pub heads: Vec<Range<u32>>,
}

/// The decode node's HELLO to a peer.
pub fn hello(local: &LocalNode, config: &TransferConfig, transports: &Transports, peer: &KvPeer) -> Hello {
    Hello {
        protocol_min: *PROTOCOL.start(),
        protocol_max: *PROTOCOL.end(),
        cluster: local.cluster.clone(),
        node: local.node.0.clone(),
        incarnation: local.incarnation.0,
        model_fingerprint: local.model_fingerprint.clone(),
        kv: Some((&local.kv).into()),
        tp: local.heads.tp,
        expect_incarnation: peer.incarnation.0,
        offers: transports.offers(),
        transport: transports.wanted().as_str().to_owned(),
        checksum: config.checksum.as_str().to_owned(),
        probe_bytes: config.probe_bytes(),
        heads_start: local.heads.held.start,
        heads_end: local.heads.held.end,
    }
}

/// Longest name of a node, which labels metrics: that of a host.
const MAX_NAME_BYTES: usize = 253;

/// The prefill node's answer to a HELLO.
pub fn check_hello(
    local: &LocalNode,
    config: &TransferConfig,
    ours: &Transports,
    hello: &Hello,
) -> Result<Agreed, Refuse> {
    let same = |field: &str, mine: &dyn ToString, yours: &dyn ToString| {
        let (mine, yours) = (mine.to_string(), yours.to_string());
        if mine == yours { Ok(()) } else { Err(Refuse { field: field.to_owned(), mine, yours }) }
    };
    let Some(protocol) = in_common(&PROTOCOL, &(hello.protocol_min..=hello.protocol_max)) else {
        let mine = format!("{} to {}", PROTOCOL.start(), PROTOCOL.end());
        let yours = format!("{} to {}", hello.protocol_min, hello.protocol_max);
        return Err(Refuse { field: "protocol".to_owned(), mine, yours });
    };
    same("cluster", &local.cluster, &hello.cluster)?;
    if hello.node.len() > MAX_NAME_BYTES {
        let (mine, yours) = (format!("{MAX_NAME_BYTES} bytes"), format!("{} bytes", hello.node.len()));
        return Err(Refuse { field: "length of the node's name".to_owned(), mine, yours });
    }
    same("incarnation", &local.incarnation.0, &hello.expect_incarnation)?;
    same("model fingerprint", &local.model_fingerprint, &hello.model_fingerprint)?;
    let theirs = hello.kv.as_ref().and_then(|kv| KvShape::try_from(kv).ok());
    let Some(theirs) = theirs else {
        let (mine, yours) = (describe(&local.kv), "none that is valid".to_owned());
        return Err(Refuse { field: "kv shape".to_owned(), mine, yours });
    };
    same("kv shape", &describe(&local.kv), &describe(&theirs))?;
    let heads = runs_to(local, hello)?;
    let transports = ours.in_common(&hello.offers);
    if transports.is_empty() {
        let (mine, yours) = (in_words(&ours.offers()), in_words(&hello.offers));
        return Err(Refuse { field: "transport".to_owned(), mine, yours });
    }
    Ok(Agreed { protocol, checksum: config.checksum.with(&hello.checksum), transports, heads })
}

/// The newest version of the protocol that both speak. What is only added to messages needs no new
/// one, since a field that is not known is passed over.
fn in_common(mine: &RangeInclusive<u32>, theirs: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *mine.end().min(theirs.end());
    (newest >= *mine.start().max(theirs.start())).then_some(newest)
}

/// The runs of heads in which KV goes to the decode node that said this HELLO.
pub fn runs_to(local: &LocalNode, hello: &Hello) -> Result<Vec<Range<u32>>, Refuse> {
    let kv_heads = local.kv.kv_heads;
    let theirs = match (hello.heads_start, hello.heads_end) {
        (0, 0) => HeadShare { held: 0..kv_heads, tp: hello.tp },
        (start, end) => HeadShare { held: start..end, tp: hello.tp },
    };
    let shares = local.heads.check(kv_heads).and_then(|()| theirs.check(kv_heads));
    shares.and_then(|()| local.heads.runs_to(&theirs)).map_err(|error| {
        let say = |share: &HeadShare| {
            format!("heads {} to {} on {} ranks", share.held.start, share.held.end, share.tp)
        };
        let (mine, yours) = (say(&local.heads), format!("{}: {error}", say(&theirs)));
        Refuse { field: "kv heads".to_owned(), mine, yours }
    })
}

/// What must be equal on both sides; page size need not be.
fn describe(kv: &KvShape) -> String {
    format!("{} layers of {} heads of {} {}", kv.layers, kv.kv_heads, kv.head_dim, kv.dtype)
}

/// The decode node's check of a WELCOME.
pub fn check_welcome(
    local: &LocalNode,
    config: &TransferConfig,
    peer: &KvPeer,
    welcome: &Welcome,
) -> Result<Terms, SessionError> {
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
    let secret = welcome.data_secret[..].try_into().map_err(|_| broken("secret of another size"))?;
    let checksum = config.checksum.with(&welcome.checksum);
    same("checksum", checksum.as_str().to_owned(), welcome.checksum.clone())?;
    Ok(Terms { session: SessionId(welcome.session), secret, checksum, config: config.clone() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_meet_in_the_older_ones_newest_and_strangers_do_not() {
        for (mine, theirs, version) in [
            (2..=2, 2..=2, Some(2)),
            (2..=3, 2..=2, Some(2)),
            (2..=3, 3..=4, Some(3)),
            (2..=3, 4..=5, None),
            (3..=3, 2..=2, None),
        ] {
            assert_eq!(in_common(&mine, &theirs), version, "{mine:?} {theirs:?}");
            assert_eq!(in_common(&theirs, &mine), version, "{theirs:?} {mine:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_agreed_on_is_the_newest_that_both_speak(a in 0u32..9, b in 0u32..9, c in 0u32..9, d in 0u32..9) {
            let (mine, theirs) = (a..=b, c..=d);
            let wanted = mine.clone().filter(|version| theirs.contains(version)).max();
            prop_assert_eq!(in_common(&mine, &theirs), wanted);
        }
    }
}
