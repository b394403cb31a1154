//! The API for users from a page of the console, without another origin and without CORS: the calls
//! are made inside this process, over the routes that users call, with the keys that they need.

use axum::{
    Router,
    body::Body,
    extract::{Request as Call, State},
    http::{
        HeaderName, Request, Uri,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower::ServiceExt;

use crate::{desk::Desk, error::AdminError};

/// What stands before the API's own paths.
const PREFIX: &str = "/console/api";

/// What goes on to the API. An operator's own key is not among it.
const PASSED: [HeaderName; 3] = [ACCEPT, CONTENT_TYPE, HeaderName::from_static("x-api-key")];

/// What a playground needs, and nothing else of the API.
pub(crate) fn router() -> Router<Desk> {
    Router::new()
        .route("/console/api/v1/models", get(pass))
        .route("/console/api/v1/chat/completions", post(pass))
}

async fn pass(State(desk): State<Desk>, call: Call) -> Response {
    let path = call.uri().path().strip_prefix(PREFIX).map(str::to_owned);
    let (Some(api), Some(Ok(uri))) = (desk.api, path.map(|path| path.parse::<Uri>())) else {
        return AdminError::NoPlayground.into_response();
    };
    let (parts, body) = call.into_parts();
    let mut inner: Request<Body> = Request::new(body);
    *inner.method_mut() = parts.method;
    *inner.uri_mut() = uri;
    for name in PASSED {
        inner.headers_mut().extend(parts.headers.get(&name).map(|value| (name, value.clone())));
    }
    api.oneshot(inner).await.into_response()
}
