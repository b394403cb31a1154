//! Reads certificates and refuses at start what peers would refuse later.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use baton_protocol::Role;
use tokio_rustls::rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
};
use webpki::{EndEntityCert, KeyUsage};

use crate::{TlsConfig, roles};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that is not there, or not for us to read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file without what it should hold, or that does not fit the others.
    #[error("{path} is of no use: {reason}")]
    Useless {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No DNS name.
    #[error("tls.name = {name:?} is not a name that a certificate can have")]
    Name {
        /// As it was given.
        name: String,
    },
    /// A certificate for other nodes than those of this process.
    #[error("{path} is not for role {role} in cluster {cluster:?}, which a node of this process has")]
    Role {
        /// The certificate.
        path: PathBuf,
        /// What is missing.
        role: Role,
        /// The cluster of the configuration.
        cluster: String,
    },
}

/// What the files hold.
pub struct Loaded {
    pub roots: Arc<RootCertStore>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// A certificate, with those behind it, and its key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The one cryptographic library of the house.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the files.
pub fn load(config: &TlsConfig) -> Result<Loaded, TrustError> {
    let (roots, (chain, key)) = (roots(&config.ca)?, pair(&config.cert, &config.key)?);
    Ok(Loaded { roots: Arc::new(roots), chain, key })
}

/// Reads authorities.
pub fn roots(ca: &Path) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(useless(ca))?;
    }
    Ok(roots)
}

/// Reads a certificate, with those behind it, and its key.
pub fn pair(cert: &Path, key: &Path) -> Result<Pair, TrustError> {
    let chain = certificates(cert)?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&read(key)?).map_err(useless(key))?))
}

/// An error about a file.
pub fn useless<E: ToString>(path: &Path) -> impl Fn(E) -> TrustError {
    move |error| TrustError::Useless { path: path.to_owned(), reason: error.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|source| TrustError::Read { path: path.to_owned(), source })
}

/// All certificates of a file; at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let all = all.map_err(useless(path))?;
    if all.is_empty() { Err(useless(path)("no certificate in it")) } else { Ok(all) }
}

// === impl Loaded ===

impl Loaded {
    /// Whether peers will take `path`, this certificate, for nodes of these roles.
    pub fn check(&self, path: &Path, cluster: &str, roles: &BTreeSet<Role>) -> Result<(), TrustError> {
        check_chain(&self.chain, &self.roots).map_err(useless(path))?;
        let shown = roles::of(&self.chain[0], cluster);
        match roles.iter().find(|role| !shown.contains(role)) {
            None => Ok(()),
            Some(&role) => Err(TrustError::Role { path: path.to_owned(), role, cluster: cluster.to_owned() }),
        }
    }
}

/// Whether a peer with the same authority would take it now.
fn check_chain(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> Result<(), webpki::Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    let (now, usage) = (UnixTime::now(), KeyUsage::client_auth());
    EndEntityCert::try_from(&chain[0])?
        .verify_for_usage(algorithms, &roots.roots, &chain[1..], now, usage, None, None)
        .map(|_| ())
}
