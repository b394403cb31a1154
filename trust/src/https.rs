//! TLS between the API and its clients, who are asked for no certificate: they show API keys.

use std::{
    convert::Infallible,
    error::Error,
    io, iter,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        CertificateError, ClientConfig, Error as TlsError, RootCertStore, ServerConfig, version::TLS13,
    },
    server::TlsStream,
};

use crate::{
    TrustError,
    followed::Followed,
    load::{pair, provider, roots, useless},
};

/// PEM files of a certificate that clients will take, with those between it and their authority
/// behind it, and of its private key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpsConfig {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The serving end of HTTPS. Clones are the same. Every new connection is shown the newest
/// certificate that [`follow`](Self::follow) has found.
#[derive(Clone)]
pub struct Https(Arc<Followed<ServerConfig>>);

/// What is spoken inside.
const HTTP1: &[u8] = b"http/1.1";

/// The calling end of HTTPS: takes certificates of the authorities in the PEM file `ca`, or,
/// without, of those that browsers know, for the name or address that is called. Servers may be
/// others than ours, so TLS 1.2 is spoken too.
///
/// # Errors
/// When the file is missing or of no use.
pub fn https_to(ca: Option<&Path>) -> Result<ClientConfig, TrustError> {
    let roots = match ca {
        Some(ca) => roots(ca)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let calling = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let calling = calling.map_err(useless(ca.unwrap_or(Path::new("webpki-roots"))))?;
    Ok(calling.with_root_certificates(roots).with_no_client_auth())
}

/// Whether a call failed, somewhere below, since the server's certificate is of no authority that
/// is taken.
pub fn is_of_unknown_authority(error: &(dyn Error + 'static)) -> bool {
    // The signature is wrong where another authority has the same name, as those of one cluster do.
    let unknown = [CertificateError::UnknownIssuer, CertificateError::BadSignature];
    let unknown = unknown.map(TlsError::InvalidCertificate);
    iter::successors(Some(error), |&error| below(error))
        .any(|error| error.downcast_ref::<TlsError>().is_some_and(|error| unknown.contains(error)))
}

/// The error that another one is about. What an I/O error holds it passes over as its source.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref().map(|held| held as &(dyn Error + 'static)),
        None => error.source(),
    }
}

// === impl Https ===

impl Https {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing or of no use, or the key is another certificate's.
    pub fn load(config: &HttpsConfig) -> Result<Self, TrustError> {
        let (files, config) = ([config.cert.clone(), config.key.clone()], config.clone());
        Ok(Self(Arc::new(Followed::new(files, move || serving(&config))?)))
    }

    /// Reads the files again whenever they change. What is of no use changes nothing.
    pub async fn follow(&self) -> Infallible {
        self.0.clone().follow().await
    }

    /// Shows the certificate to who has come. The caller limits the time.
    ///
    /// # Errors
    /// When the client speaks no TLS 1.3, does not take the certificate, or leaves.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.0.newest()).accept(stream).await
    }
}

fn serving(config: &HttpsConfig) -> Result<ServerConfig, TrustError> {
    let (chain, key) = pair(&config.cert, &config.key)?;
    let mut serving = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(useless(&config.cert))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(useless(&config.key))?;
    serving.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(serving)
}
