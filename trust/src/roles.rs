//! What a certificate says of its bearer: a URI `baton://CLUSTER/ROLE` for each role.

use std::{collections::BTreeSet, fmt, sync::Arc};

use baton_protocol::Role;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use webpki::EndEntityCert;

/// As it stands in a certificate.
pub fn uri(cluster: &str, role: Role) -> String {
    format!("baton://{cluster}/{role}")
}

/// The bearer's roles in a cluster; none in any other one.
pub fn of(certificate: &CertificateDer<'_>, cluster: &str) -> BTreeSet<Role> {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else { return BTreeSet::new() };
    let uris: Vec<&str> = parsed.valid_uri_names().collect();
    Role::ALL.into_iter().filter(|role| uris.contains(&uri(cluster, *role).as_str())).collect()
}

/// The usual checks of a server's certificate (chain, time, address), and that
/// it has all the roles that the dialled node claims.
#[derive(Debug)]
pub struct ServerWithRoles {
    pub usual: Arc<WebPkiServerVerifier>,
    pub cluster: String,
    pub roles: BTreeSet<Role>,
}

/// A certificate of the right authority for something else.
#[derive(thiserror::Error)]
#[error("the peer's certificate is not for {wanted} in cluster {cluster:?}")]
struct OtherRoles {
    wanted: String,
    cluster: String,
}

// === impl OtherRoles ===

impl fmt::Debug for OtherRoles {
    /// All that rustls shows of an error that it does not know.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl ServerWithRoles ===

impl ServerCertVerifier for ServerWithRoles {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.usual.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)?;
        if of(end_entity, &self.cluster).is_superset(&self.roles) {
            return Ok(verified);
        }
        let wanted = self.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" and ");
        let other = OtherRoles { wanted, cluster: self.cluster.clone() };
        Err(CertificateError::Other(OtherError(Arc::new(other))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
