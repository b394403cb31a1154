//! Makes certificates: a cluster's private authority, and what it signs.

use std::{collections::BTreeSet, ops::Range, time::SystemTime};

use baton_protocol::Role;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

pub use crate::config::file_name;
use crate::roles;

/// A cluster's authority. Whoever has its key makes members of the cluster.
pub struct Authority {
    pub(crate) cluster: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Who is to have a certificate.
#[derive(Clone, Debug)]
pub enum Bearer {
    /// A process whose nodes have these roles.
    Nodes(BTreeSet<Role>),
    /// The cluster's etcd, which has no role and is let in nowhere.
    Etcd,
}

/// A certificate and its key, in PEM.
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// The private key.
    pub key: String,
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Names are parts of URIs and of etcd's keys.
    #[error("cluster name {name:?} is empty or holds a character other than a-z, A-Z, 0-9, '-', '_' and '.'")]
    BadCluster {
        /// As it was given.
        name: String,
    },
    /// A name that no certificate can have, or no random numbers.
    #[error("no certificate can be made of it")]
    Make(#[from] rcgen::Error),
}

// === impl Authority ===

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When the cluster's name cannot be part of a URI.
    pub fn new(cluster: &str, valid: Range<SystemTime>) -> Result<Self, AuthorityError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if cluster.is_empty() || !cluster.chars().all(allowed) {
            return Err(AuthorityError::BadCluster { name: cluster.to_owned() });
        }
        let mut params = params(&format!("baton cluster {cluster}"), &[], valid)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { cluster: cluster.to_owned(), issuer })
    }

    /// Its own certificate and key.
    pub fn itself(&self) -> Issued {
        Issued { cert: self.issuer.pem(), key: self.issuer.key().serialize_pem() }
    }

    /// Signs a certificate for a bearer that is reached under `names`, DNS names and addresses.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(
        &self,
        bearer: &Bearer,
        names: &[String],
        valid: Range<SystemTime>,
    ) -> Result<Issued, AuthorityError> {
        let (name, roles) = match bearer {
            Bearer::Nodes(roles) => (file_name(roles), roles.clone()),
            Bearer::Etcd => ("etcd".to_owned(), BTreeSet::new()),
        };
        let mut params = params(&format!("{} {name}", self.cluster), names, valid)?;
        for role in &roles {
            let uri = roles::uri(&self.cluster, *role);
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every node calls, and is called.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        Ok(Issued { cert: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

fn params(name: &str, names: &[String], valid: Range<SystemTime>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(valid.start);
    params.not_after = OffsetDateTime::from(valid.end);
    Ok(params)
}
