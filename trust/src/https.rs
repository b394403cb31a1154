//! TLS for the API's clients, who are asked for no certificate: they show API keys.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, version::TLS13},
    server::TlsStream,
};

use crate::{
    TrustError,
    followed::Followed,
    load::{pair, provider, useless},
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
