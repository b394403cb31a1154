//! Every way of not being the right peer, against real listeners.

mod https;
mod peers;
mod renewed;

use std::{
    fs,
    ops::Range,
    time::{Duration, SystemTime},
};

use baton_protocol::Role;
use tempfile::TempDir;

use crate::{
    Gate, ReachError, TlsConfig, Trust, TrustError,
    authority::{Authority, Bearer, Issued},
};

const CLUSTER: &str = "c";
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Range<SystemTime> {
    SystemTime::now() - HOUR..SystemTime::now() + HOUR
}

fn past() -> Range<SystemTime> {
    SystemTime::now() - 2 * HOUR..SystemTime::now() - HOUR
}

/// It is good for longer than what it signs.
fn authority() -> Authority {
    let now = SystemTime::now();
    Authority::new(CLUSTER, now - HOUR..now + 2 * HOUR).unwrap()
}

fn nodes(roles: &[Role]) -> Bearer {
    Bearer::Nodes(roles.iter().copied().collect())
}

fn here() -> Vec<String> {
    vec!["127.0.0.1".to_owned()]
}

/// Files of a certificate, as long as it lives.
struct Files {
    config: TlsConfig,
    _dir: TempDir,
}

impl Files {
    fn new(authority: &Authority, issued: &Issued) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [ca, cert, key] = ["ca.crt", "node.crt", "node.key"].map(|name| dir.path().join(name));
        fs::write(&ca, authority.itself().cert).unwrap();
        let files = Self { config: TlsConfig { ca, cert, key, name: None }, _dir: dir };
        files.put(issued);
        files
    }

    /// In place of what was there.
    fn put(&self, issued: &Issued) {
        fs::write(&self.config.cert, &issued.cert).unwrap();
        fs::write(&self.config.key, &issued.key).unwrap();
    }

    fn of(authority: &Authority, bearer: &Bearer) -> Self {
        Self::new(authority, &authority.issue(bearer, &here(), now()).unwrap())
    }

    /// What a process has that does not look at its certificate first.
    fn trusted_blindly(&self) -> Trust {
        Trust::with(self.config.clone(), CLUSTER, |_| Ok(())).unwrap()
    }
}

fn useless(files: &Files, role: Role) -> String {
    match Trust::load(&files.config, CLUSTER, &[role].into()) {
        Err(TrustError::Useless { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_process_starts_with_certificates_that_peers_will_take() {
    let authority = authority();
    let both = Files::of(&authority, &nodes(&[Role::Prefill, Role::Decode]));
    let load = |files: &Files, cluster, roles: &[Role]| {
        Trust::load(&files.config, cluster, &roles.iter().copied().collect())
    };
    let trust = load(&both, CLUSTER, &[Role::Decode]).unwrap();
    assert!(trust.is_certified() && trust.gate() == Gate::Certificates);
    assert!(!format!("{trust:?}").contains("key"));
    load(&both, CLUSTER, &[Role::Decode, Role::Prefill]).unwrap();
    let allowed = |trust: &Trust| Role::ALL.map(|role| trust.allows(role));
    assert_eq!(allowed(&trust), [false, true, true]);
    assert_eq!(allowed(&Trust::none()), [true; 3]);

    for (cluster, role) in [(CLUSTER, Role::Coordinator), ("other", Role::Decode)] {
        let error = load(&both, cluster, &[role]).unwrap_err();
        assert!(matches!(error, TrustError::Role { role: missing, .. } if missing == role), "{error}");
    }
    let expired = authority.issue(&nodes(&[Role::Decode]), &here(), past()).unwrap();
    assert!(useless(&Files::new(&authority, &expired), Role::Decode).contains("Expired"));
    let stranger = Files::of(&self::authority(), &nodes(&[Role::Decode]));
    fs::write(&stranger.config.ca, authority.itself().cert).unwrap();
    useless(&stranger, Role::Decode);
    let mixed = Files::of(&authority, &nodes(&[Role::Decode]));
    fs::write(&mixed.config.key, authority.itself().key).unwrap();
    useless(&mixed, Role::Decode);
    let files_of = |config: &TlsConfig| [config.ca.clone(), config.cert.clone(), config.key.clone()];
    for which in 0..3 {
        let files = Files::of(&authority, &nodes(&[Role::Decode]));
        let path = &files_of(&files.config)[which];
        fs::write(path, "").unwrap();
        useless(&files, Role::Decode);
        fs::remove_file(path).unwrap();
        let error = load(&files, CLUSTER, &[Role::Decode]).unwrap_err();
        assert!(matches!(error, TrustError::Read { .. }), "{error}");
    }
}

#[test]
fn one_section_serves_every_node() {
    let config: TlsConfig =
        toml::from_str("ca = 'x/ca.crt'\ncert = 'x/{roles}.crt'\nkey = 'x/{roles}.key'").unwrap();
    let files = config.for_roles(&[Role::Decode, Role::Coordinator].into());
    assert_eq!(files.cert.to_str(), Some("x/coordinator-decode.crt"));
    assert_eq!(files.key.to_str(), Some("x/coordinator-decode.key"));
    assert_eq!((&files.ca, &files), (&config.ca, &files.for_roles(&[Role::Prefill].into())));
    assert!(toml::from_str::<TlsConfig>("ca = 'a'\ncert = 'b'").is_err());
    assert!(toml::from_str::<TlsConfig>("ca = 'a'\ncert = 'b'\nkey = 'c'\nkeys = 'd'").is_err());
}

#[tokio::test]
async fn nothing_beyond_loopback_is_listened_on_unchecked() {
    let addr = |text: &str| text.parse().unwrap();
    for gate in [Gate::Certificates, Gate::NoCertificates, Gate::NoKeys] {
        let listener = gate.listen(addr("127.0.0.1:0")).unwrap();
        let taken = gate.listen(listener.local_addr());
        assert!(matches!(taken, Err(ReachError::Listen { .. })), "{taken:?}");
        assert!(gate.check(addr("[::1]:1")).is_ok());
        assert!(matches!(gate.parse("host:80"), Err(ReachError::Malformed { .. })));
    }
    for beyond in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[2001:db8::1]:0"] {
        let error = Gate::NoCertificates.listen(addr(beyond)).unwrap_err();
        assert_eq!(error, ReachError::NoCertificates { addr: addr(beyond) });
        assert!(error.to_string().contains("baton certs init"), "{error}");
        assert_eq!(Gate::NoKeys.parse(beyond), Err(ReachError::NoKeys { addr: addr(beyond) }));
        assert_eq!(Gate::Certificates.parse(beyond), Ok(addr(beyond)));
    }
    Gate::Certificates.listen(addr("0.0.0.0:0")).unwrap();
}
