//! The web console: pages for people, over the admin API of the same listener.
//!
//! `build.rs` has npm build them from `web/` and embeds what comes of it. They carry no data and need
//! no key; what they show they ask the admin API for, with the key that their reader gives them.

use axum::{
    Router,
    extract::Path,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// What every page may do: load what comes from here, and talk to here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'";

/// Where files lie whose names change with what is in them.
const HASHED: &str = "assets/";

/// Why there are no pages in this binary; none: there are.
pub fn missing() -> Option<&'static str> {
    PAGES.is_empty().then_some(MISSING)
}

/// The pages at `/console/`.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/console", get(|| async { Redirect::permanent("/console/") }))
        .route("/console/", get(|| async { page("index.html") }))
        .route("/console/{*path}", get(|Path(path): Path<String>| async move { page(&path) }))
}

fn page(path: &str) -> Response {
    let found = PAGES.iter().find(|(name, _)| *name == path);
    let response = match found {
        Some((name, bytes)) => {
            let kept =
                if name.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
            ([(header::CONTENT_TYPE, kind(name)), (header::CACHE_CONTROL, kept)], *bytes).into_response()
        }
        None => match missing() {
            Some(why) => {
                let words = format!("the console was not built into this binary: {why}\n");
                (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
            }
            None => (StatusCode::NOT_FOUND, "there is no such page; the console is at /console/\n")
                .into_response(),
        },
    };
    guarded(response)
}

fn guarded(mut response: Response) -> Response {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use tower::ServiceExt;

    use super::*;

    async fn get(path: &str) -> (StatusCode, axum::http::HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router::<()>().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 22).await.unwrap();
        (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn pages_may_load_and_ask_only_what_is_here() {
        for path in ["/console/", "/console/nowhere", "/console/assets/nowhere.js"] {
            let (_, headers, _) = get(path).await;
            assert_eq!(headers["content-security-policy"], POLICY, "{path}");
            assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        }
        assert_eq!(get("/console").await.0, StatusCode::PERMANENT_REDIRECT);
    }

    #[tokio::test]
    async fn the_page_has_all_that_it_names_and_nothing_inline() {
        let (status, headers, html) = get("/console/").await;
        if let Some(why) = missing() {
            assert!(status == StatusCode::SERVICE_UNAVAILABLE && html.contains(why), "{html}");
            return;
        }
        assert_eq!(
            (status, &headers["cache-control"]),
            (StatusCode::OK, &HeaderValue::from_static("no-cache"))
        );
        let named: Vec<_> = html.split("\"./").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(
            named.iter().any(|name| name.ends_with(".js")) && named.iter().any(|name| name.ends_with(".css"))
        );
        for name in named {
            let (status, headers, _) = get(&format!("/console/{name}")).await;
            assert_eq!(status, StatusCode::OK, "{name}");
            let is_immutable = headers["cache-control"].to_str().unwrap().ends_with("immutable");
            assert_eq!(is_immutable, name.starts_with(HASHED), "{name}");
        }
        assert!(!html.contains("<style") && !html.contains("style=") && !html.contains("<script>"), "{html}");
        assert_eq!(get("/console/../index.html").await.0, StatusCode::NOT_FOUND);
    }
}
