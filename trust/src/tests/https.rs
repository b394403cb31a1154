//! Clients of the API, and which of its certificates they take.

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{Https, HttpsConfig, https_to, is_of_unknown_authority};

/// What a client that takes `ca`'s certificates gets by calling a server of `files` by `name`.
async fn call(files: &Files, name: &'static str, ca: Option<&std::path::Path>) -> std::io::Result<()> {
    let TlsConfig { cert, key, .. } = files.config.clone();
    let https = Https::load(&HttpsConfig { cert, key }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = async { https.accept(listener.accept().await.unwrap().0).await };
    let calling = async {
        let config = std::sync::Arc::new(https_to(ca).unwrap());
        let socket = TcpStream::connect(addr).await?;
        TlsConnector::from(config).connect(name.try_into().unwrap(), socket).await
    };
    let (called, served) = tokio::join!(calling, serving);
    assert!(called.is_err() || served.is_ok());
    called.map(drop)
}

#[tokio::test]
async fn a_client_takes_its_authority_and_the_name_that_it_called_alone() {
    let (ours, theirs) = (authority(), authority());
    let [files, others] =
        [&ours, &theirs].map(|authority| Files::of(authority, &nodes(&[Role::Coordinator])));
    let [own, other] = [&files, &others].map(|files| Some(files.config.ca.as_path()));
    call(&files, "127.0.0.1", own).await.unwrap();
    for unknown in [other, None] {
        let error = call(&files, "127.0.0.1", unknown).await.unwrap_err();
        assert!(is_of_unknown_authority(&error), "{error}");
        // Also within what says so to people.
        assert!(is_of_unknown_authority(&std::io::Error::other(error)));
    }
    let error = call(&files, "localhost", own).await.unwrap_err();
    assert!(!is_of_unknown_authority(&error) && error.to_string().contains("not valid for name"), "{error}");
    let expired = ours.issue(&nodes(&[Role::Coordinator]), &here(), past()).unwrap();
    let error = call(&Files::new(&ours, &expired), "127.0.0.1", own).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[test]
fn an_authority_is_a_file_with_a_certificate() {
    let files = Files::of(&authority(), &nodes(&[Role::Coordinator]));
    let [none, key] = [files.config.ca.with_extension("none"), files.config.key.clone()];
    assert!(matches!(https_to(Some(&none)), Err(TrustError::Read { path, .. }) if path == none));
    assert!(matches!(https_to(Some(&key)), Err(TrustError::Useless { path, .. }) if path == key));
}
