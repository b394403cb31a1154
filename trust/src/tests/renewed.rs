//! Certificates that change while connections are made with them.

use tonic::transport::Channel;

use super::{
    peers::{describe, meet, serve},
    *,
};

const WORKER: Role = Role::Decode;

fn expired(authority: &Authority, role: Role) -> Files {
    Files::new(authority, &authority.issue(&nodes(&[role]), &here(), past()).unwrap())
}

fn channel(trust: &Trust, addr: std::net::SocketAddr) -> Channel {
    trust.callee(&addr.to_string(), &[WORKER].into()).unwrap().connect_lazy()
}

#[tokio::test]
async fn whoever_had_expired_shows_the_new_one_from_then_on() {
    let authority = authority();
    let (server, caller) = (expired(&authority, WORKER), expired(&authority, Role::Coordinator));
    let (serving, calling) = (server.trusted_blindly(), caller.trusted_blindly());
    let (addr, _server) = serve(&serving);
    // Both ends make connections anew, on the channel that they had.
    let channel = channel(&calling, addr);
    describe(channel.clone()).await.unwrap_err();
    server.put(&authority.issue(&nodes(&[WORKER]), &here(), now()).unwrap());
    serving.renew().unwrap();
    describe(channel.clone()).await.unwrap_err();
    caller.put(&authority.issue(&nodes(&[Role::Coordinator]), &here(), now()).unwrap());
    calling.renew().unwrap();
    assert_eq!(describe(channel).await.unwrap(), "me");

    let (prefill, decode) = (expired(&authority, Role::Prefill), expired(&authority, Role::Decode));
    let (one, other) = (prefill.trusted_blindly(), decode.trusted_blindly());
    assert!(!meet(&one, &other).await);
    prefill.put(&authority.issue(&nodes(&[Role::Prefill]), &here(), now()).unwrap());
    one.renew().unwrap();
    assert!(!meet(&one, &other).await);
    decode.put(&authority.issue(&nodes(&[Role::Decode]), &here(), now()).unwrap());
    other.renew().unwrap();
    assert!(meet(&one, &other).await);
}

#[tokio::test]
async fn what_is_no_good_changes_nothing() {
    let authority = authority();
    let files = Files::of(&authority, &nodes(&[WORKER]));
    let trust = Trust::load(&files.config, CLUSTER, &[WORKER].into()).unwrap();
    let (addr, _server) = serve(&trust);
    let caller = Files::of(&authority, &nodes(&[Role::Coordinator])).trusted_blindly();
    let issue = |roles: &[Role], valid| authority.issue(&nodes(roles), &here(), valid).unwrap();
    let good = issue(&[WORKER], now());
    let other_key = Issued { cert: good.cert.clone(), key: issue(&[WORKER], now()).key };
    let stranger = self::authority().issue(&nodes(&[WORKER]), &here(), now()).unwrap();
    let half = Issued { cert: good.cert[..good.cert.len() / 2].to_owned(), key: good.key.clone() };
    let bad = [issue(&[WORKER], past()), issue(&[Role::Prefill], now()), other_key, stranger, half];
    for issued in &bad {
        files.put(issued);
        trust.renew().unwrap_err();
        assert_eq!(describe(channel(&caller, addr)).await.unwrap(), "me");
    }
    fs::remove_file(&files.config.cert).unwrap();
    assert!(matches!(trust.renew(), Err(TrustError::Read { .. })));
    assert_eq!(describe(channel(&caller, addr)).await.unwrap(), "me");
    files.put(&good);
    trust.renew().unwrap();
    assert_eq!(describe(channel(&caller, addr)).await.unwrap(), "me");
}

#[tokio::test]
async fn another_authority_takes_over_and_what_stands_goes_on() {
    let (old, new) = (authority(), authority());
    let (server, caller) =
        (Files::of(&old, &nodes(&[WORKER])), Files::of(&old, &nodes(&[Role::Coordinator])));
    let (serving, calling) = (server.trusted_blindly(), caller.trusted_blindly());
    let (addr, _server) = serve(&serving);
    let standing = channel(&calling, addr);
    assert_eq!(describe(standing.clone()).await.unwrap(), "me");
    let followers = [(&server, &serving, WORKER), (&caller, &calling, Role::Coordinator)];
    let both = old.itself().cert + &new.itself().cert;
    for (files, trust, _) in followers {
        fs::write(&files.config.ca, &both).unwrap();
        trust.renew().unwrap();
    }
    for (files, trust, role) in followers {
        files.put(&new.issue(&nodes(&[role]), &here(), now()).unwrap());
        trust.renew().unwrap();
        assert_eq!(describe(channel(&calling, addr)).await.unwrap(), "me");
    }
    for (files, trust, _) in followers {
        fs::write(&files.config.ca, new.itself().cert).unwrap();
        trust.renew().unwrap();
    }
    assert_eq!(describe(channel(&calling, addr)).await.unwrap(), "me");
    assert_eq!(describe(standing).await.unwrap(), "me");
    let of_old = Files::of(&old, &nodes(&[Role::Coordinator])).trusted_blindly();
    describe(channel(&of_old, addr)).await.unwrap_err();
}

#[tokio::test]
async fn files_are_looked_at_again_and_again() {
    let authority = authority();
    let files = expired(&authority, WORKER);
    let trust = files.trusted_blindly();
    let (addr, _server) = serve(&trust);
    let channel = channel(&Files::of(&authority, &nodes(&[Role::Coordinator])).trusted_blindly(), addr);
    let answered = async {
        while describe(channel.clone()).await.is_err() {
            files.put(&authority.issue(&nodes(&[WORKER]), &here(), now()).unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        never = trust.follow() => match never {},
        answered = tokio::time::timeout(Duration::from_secs(60), answered) => answered.unwrap(),
    }
}
