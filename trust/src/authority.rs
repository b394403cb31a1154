//! Makes certificates: a cluster's private authority, and what it signs.

use std::{collections::BTreeSet, net::IpAddr, ops::Range, time::SystemTime};

use baton_protocol::Role;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem};

pub use crate::config::file_name;
use crate::roles;

/// Begins the name of an authority.
const CLUSTER: &str = "baton cluster ";

/// A cluster's authority. Whoever has its key makes members of the cluster.
pub struct Authority {
    pub(crate) cluster: String,
    itself: Issued,
    issuer: Issuer<'static, KeyPair>,
    /// What it signs is good no longer than it is.
    end: SystemTime,
}

/// Who is to have a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// A process whose nodes have these roles.
    Nodes(BTreeSet<Role>),
    /// The cluster's etcd, which has no role and is let in nowhere.
    Etcd,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
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
    /// Bytes that are no certificate, or one of somebody else.
    #[error("{reason}")]
    Other {
        /// What is wrong.
        reason: &'static str,
    },
    /// It would outlive whoever signs it.
    #[error("the authority is good until {end} only")]
    TooLong {
        /// Its last moment.
        end: OffsetDateTime,
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
        let (params, key) = (own(cluster, valid.clone())?, KeyPair::generate()?);
        let itself = Issued { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok(Self { cluster: cluster.to_owned(), itself, issuer: Issuer::new(params, key), end: valid.end })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// When it is none, or the key is not its own.
    pub fn open(itself: Issued) -> Result<Self, AuthorityError> {
        let (key, other) = (KeyPair::from_pem(&itself.key)?, |reason| AuthorityError::Other { reason });
        let (cluster, valid) = parsed(&itself.cert, |certificate| {
            let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            let cluster = name.and_then(|name| name.strip_prefix(CLUSTER));
            let cluster = cluster.ok_or(other("not the certificate of a cluster's authority"))?;
            if certificate.public_key().raw != key.subject_public_key_info() {
                return Err(other("the key is not the authority's"));
            }
            let valid = certificate.validity();
            Ok((
                cluster.to_owned(),
                valid.not_before.to_datetime().into()..valid.not_after.to_datetime().into(),
            ))
        })?;
        let end = valid.end;
        Ok(Self { issuer: Issuer::new(own(&cluster, valid)?, key), cluster, itself, end })
    }

    /// Its own certificate and key.
    pub fn itself(&self) -> Issued {
        self.itself.clone()
    }

    /// Who bears a certificate of this authority, and under which names.
    ///
    /// # Errors
    /// When it is of another one, or none at all.
    pub fn bearer(&self, cert: &str) -> Result<(Bearer, Vec<String>), AuthorityError> {
        let other = |reason| AuthorityError::Other { reason };
        parsed(cert, |certificate| {
            let signer = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
            if signer.and_then(|name| name.strip_prefix(CLUSTER)) != Some(&self.cluster) {
                return Err(other("a certificate of another authority"));
            }
            let names = certificate.subject_alternative_name().ok().flatten();
            let (mut roles, mut reached) = (BTreeSet::new(), Vec::new());
            for name in names.map_or(&[][..], |names| &names.value.general_names) {
                match name {
                    GeneralName::DNSName(name) => reached.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => reached.extend(address(bytes)),
                    GeneralName::URI(uri) => {
                        roles.extend(
                            Role::ALL.into_iter().filter(|role| roles::uri(&self.cluster, *role) == *uri),
                        );
                    }
                    _ => {}
                }
            }
            Ok((if roles.is_empty() { Bearer::Etcd } else { Bearer::Nodes(roles) }, reached))
        })
    }

    /// Signs a certificate for a bearer that is reached under `names`, DNS names and addresses.
    ///
    /// # Errors
    /// When a name is none, or the certificate would outlive the authority.
    pub fn issue(
        &self,
        bearer: &Bearer,
        names: &[String],
        valid: Range<SystemTime>,
    ) -> Result<Issued, AuthorityError> {
        if valid.end > self.end {
            return Err(AuthorityError::TooLong { end: self.end.into() });
        }
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

/// What an authority's own certificate says.
fn own(cluster: &str, valid: Range<SystemTime>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(&format!("{CLUSTER}{cluster}"), &[], valid)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What `read` finds in a certificate.
fn parsed<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>) -> Result<T, AuthorityError>,
) -> Result<T, AuthorityError> {
    let none = AuthorityError::Other { reason: "not a certificate" };
    let Ok((_, pem)) = parse_x509_pem(pem.as_bytes()) else { return Err(none) };
    pem.parse_x509().map_or(Err(none), |certificate| read(&certificate))
}

fn address(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok().map(|address| address.to_string())
}

fn params(name: &str, names: &[String], valid: Range<SystemTime>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(valid.start);
    params.not_after = OffsetDateTime::from(valid.end);
    Ok(params)
}
