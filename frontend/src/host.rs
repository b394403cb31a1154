//! Whom a call says it is for: one host, the same wherever it is said.
//!
//! Two that differ are how a call gets past what stands before this server by one of them and is
//! answered by the other (RFC 9112, section 3.2).

use axum::{
    extract::Request,
    http::{HeaderMap, Uri, Version, header::HOST, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::ApiError;

/// Lets through what is for one host.
pub async fn one_host(request: Request, next: Next) -> Response {
    if is_one(request.version(), request.uri(), request.headers()) {
        next.run(request).await
    } else {
        ApiError::Host.into_response()
    }
}

fn is_one(version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut said = headers.get_all(HOST).iter();
    let (first, second) = (said.next(), said.next());
    let Some(host) = first else { return version < Version::HTTP_11 };
    let plain = |host: &Authority| !host.as_str().contains('@');
    let host = Authority::try_from(host.as_bytes()).ok().filter(plain);
    second.is_none() && host.is_some_and(|host| uri.authority().is_none_or(|named| *named == host))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(target: &'static str, hosts: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        is_one(Version::HTTP_11, &Uri::from_static(target), &headers)
    }

    #[test]
    fn one_host_is_said_once_or_twice_the_same() {
        for host in ["a", "a:80", "127.0.0.1:8000", "[::1]:8000", "A.example"] {
            assert!(of("/v1/models", &[host]), "{host}");
        }
        assert!(of("http://a.example/v1/models", &["A.example"]));
        assert!(!of("http://b.example/v1/models", &["a.example"]));
        assert!(!of("/v1/models", &[]));
        assert!(!of("/v1/models", &["a", "a"]));
        for host in ["", "a/v1?", "a@b", "a b", "http://a", "a?b", "a#b"] {
            assert!(!of("/v1/models", &[host]), "{host}");
        }
    }

    #[test]
    fn before_1_1_nobody_has_to_say_it() {
        assert!(is_one(Version::HTTP_10, &Uri::from_static("/"), &HeaderMap::new()));
    }
}
