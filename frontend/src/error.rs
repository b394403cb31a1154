//! Every way to refuse or fail a call, mapped once to HTTP in OpenAI's form.

use std::{fmt, time::Duration};

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use baton_coordinator::ServedModel;
use baton_protocol::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::Serialize;

/// Why a call is not answered. Messages hold no path, address or secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not what we call JSON.
    #[error("invalid JSON body: {message}")]
    Json {
        /// What is wrong and where.
        message: String,
    },
    /// A required parameter is not there.
    #[error("missing required parameter `{param}`")]
    Missing {
        /// Its name.
        param: String,
    },
    /// A parameter is of the wrong type or out of range.
    #[error("invalid `{param}`: {message}")]
    Invalid {
        /// Its name.
        param: String,
        /// What would do.
        message: String,
    },
    /// A parameter, or this value of it, is not supported (or does not exist).
    #[error("unsupported parameter `{param}`")]
    Unsupported {
        /// Its name.
        param: String,
    },
    /// The prompt, or prompt and answer together, are longer than may be.
    #[error("{asked} exceed {limit}")]
    ContextLength {
        /// Parameter that holds the text, or the maximum.
        param: String,
        /// What was asked for, with numbers.
        asked: String,
        /// What they may have.
        limit: TokenLimit,
    },
    /// No node serves this model.
    #[error("model `{model}` does not exist")]
    UnknownModel {
        /// Its name.
        model: String,
    },
    /// It is for no host, for two, or for something that is none.
    #[error("a call names one host, once")]
    Host,
    /// No such route.
    #[error("no such route")]
    NoRoute,
    /// The route exists, not with this method.
    #[error("method not allowed")]
    Method,
    /// Keys are needed, and the call has none.
    #[error("no API key: send one as `Authorization: Bearer` or `x-api-key`")]
    NoKey,
    /// A key that is not known.
    #[error("the API key is not valid")]
    WrongKey,
    /// It would concern the other tenants too.
    #[error("this concerns every tenant, so that it is an operator's: `{command}`")]
    OperatorsOnly {
        /// How they do it.
        command: &'static str,
    },
    /// The tenant has used up what it may.
    #[error("the limit of {limit} {rate} per minute is reached: try again in {} s", whole_seconds(*wait))]
    RateLimit {
        /// Of what.
        rate: Rate,
        /// How many.
        limit: u32,
        /// Until there is something left.
        wait: Duration,
    },
    /// The call's Idempotency-Key belongs to a call with another body.
    #[error("this Idempotency-Key was used with another body, or on another path")]
    KeyReused {
        /// Whether that one is not answered yet.
        running: bool,
    },
    /// The coordinator that keeps the call's answer, if there is one, cannot be asked.
    #[error("the coordinator that keeps this Idempotency-Key is out of reach: try again")]
    KeeperLost,
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} ms", limit.as_millis())]
    BodyTimeout {
        /// Time it had.
        limit: Duration,
    },
    /// The body is too large.
    #[error("the body is larger than {limit} bytes (frontend.{setting})")]
    BodySize {
        /// Bytes it may have.
        limit: usize,
        /// Who says so.
        setting: &'static str,
    },
    /// The tenant keeps as much as they may.
    #[error("{limit} {what} are kept already (frontend.batches.{setting}): delete some")]
    Full {
        /// How many.
        limit: u64,
        /// Of what.
        what: &'static str,
        /// Who says so.
        setting: &'static str,
    },
    /// There is no such thing, or it is not the caller's.
    #[error("no such {what}: `{id}`")]
    Absent {
        /// What it would be.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// It cannot be done as things are.
    #[error("{message}")]
    Conflict {
        /// Why.
        message: String,
    },
    /// The body is no form.
    #[error("invalid form: {message}")]
    Form {
        /// What is wrong.
        message: String,
    },
    /// The body broke off.
    #[error("the body could not be read to its end")]
    BodyBroken,
    /// The body is not declared as what it must be.
    #[error("the body must be {wanted} without content encoding")]
    MediaType {
        /// What would do.
        wanted: &'static str,
    },
    /// What the cluster said.
    #[error("{0}")]
    Failed(#[from] Failure),
}

/// What a tenant may have only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Calls for answers.
    Requests,
    /// Tokens of prompts and answers.
    Tokens,
}

/// Most tokens, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLimit {
    /// How many.
    pub tokens: u32,
    /// A setting; none: the model's context.
    setting: Option<&'static str>,
}

/// `{"error": …}`, as OpenAI writes it.
#[derive(Serialize, JsonSchema)]
pub struct ErrorBody<'a> {
    error: ErrorWords<'a>,
}

#[derive(Serialize, JsonSchema)]
struct ErrorWords<'a> {
    message: String,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// What to say when a failure asks for patience without saying how much.
const RETRY: Duration = Duration::from_secs(1);

// === impl ApiError ===

impl ApiError {
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ErrorCode::Overloaded, message))
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ErrorCode::Internal, message))
    }

    /// HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Json { .. }
            | Self::Missing { .. }
            | Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::ContextLength { .. }
            | Self::Form { .. }
            | Self::Host
            | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::UnknownModel { .. } | Self::Absent { .. } | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::KeyReused { running: true } | Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::KeyReused { running: false } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::OperatorsOnly { .. } => StatusCode::FORBIDDEN,
            Self::RateLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodySize { .. } | Self::Full { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::KeeperLost => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(failure) => failure_status(failure.code),
        }
    }

    /// The body that explains it.
    pub(crate) fn body(&self) -> ErrorBody<'_> {
        let kind = match self.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            504 => "timeout_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let (param, code) = self.param_and_code();
        ErrorBody { error: ErrorWords { message: self.to_string(), r#type: kind, param, code } }
    }

    pub(crate) fn param_and_code(&self) -> (Option<&str>, &'static str) {
        match self {
            Self::Json { .. } => (None, "invalid_json"),
            Self::Missing { param } => (Some(param), "missing_parameter"),
            Self::Invalid { param, .. } => (Some(param), "invalid_value"),
            Self::Unsupported { param } => (Some(param), "unsupported_parameter"),
            Self::ContextLength { param, .. } => (Some(param), "context_length_exceeded"),
            Self::UnknownModel { .. } => (Some("model"), "model_not_found"),
            Self::Host => (None, "invalid_host"),
            Self::NoRoute => (None, "not_found"),
            Self::Method => (None, "method_not_allowed"),
            Self::KeyReused { running: true } => (None, "idempotency_key_in_use"),
            Self::KeyReused { running: false } => (None, "idempotency_key_reused"),
            Self::NoKey => (None, "missing_api_key"),
            Self::WrongKey => (None, "invalid_api_key"),
            Self::OperatorsOnly { .. } => (None, "operators_only"),
            Self::RateLimit { .. } => (None, "rate_limit_exceeded"),
            Self::KeeperLost => (None, "idempotency_keeper_lost"),
            Self::BodyTimeout { .. } => (None, "body_timeout"),
            Self::BodySize { .. } => (None, "body_too_large"),
            Self::BodyBroken => (None, "body_incomplete"),
            Self::MediaType { .. } => (None, "unsupported_media_type"),
            Self::Form { .. } => (None, "invalid_form"),
            Self::Full { .. } => (None, "storage_full"),
            Self::Absent { .. } => (None, "not_found"),
            Self::Conflict { .. } => (None, "conflict"),
            Self::Failed(failure) if failure.code == ErrorCode::UnknownModel => {
                (Some("model"), "model_not_found")
            }
            Self::Failed(failure) => (None, failure.code.as_str()),
        }
    }

    /// The response that explains it with `body`.
    pub(crate) fn respond(&self, body: impl IntoResponse) -> Response {
        let mut response = body.into_response();
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        // OpenAI's and Anthropic's clients believe this before they judge by the status.
        let retry = HeaderValue::from_static(if self.is_retryable() { "true" } else { "false" });
        headers.insert("x-should-retry", retry);
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, whole_seconds(wait).into());
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// Whether the same call can be answered another time.
    fn is_retryable(&self) -> bool {
        let status = self.status();
        let is_passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        is_passing || status.is_server_error()
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimit { wait, .. } => Some(*wait),
            Self::KeeperLost => Some(RETRY),
            Self::Failed(failure) => {
                let wait = if failure.code.is_retryable() { Some(RETRY) } else { None };
                failure.retry_after.or(wait)
            }
            _ => None,
        }
    }
}

// === impl TokenLimit ===

impl TokenLimit {
    /// Of a model, and of what its nodes can hold.
    pub(crate) fn of(model: &ServedModel) -> Self {
        Self { tokens: model.context_tokens, setting: None }.or_lower("engine.pages", model.pool_tokens)
    }

    /// That of a setting, if it is lower. 0 sets none.
    pub(crate) fn or_lower(self, setting: &'static str, tokens: u32) -> Self {
        if tokens == 0 || tokens >= self.tokens { self } else { Self { tokens, setting: Some(setting) } }
    }

    pub(crate) fn exceeded(self, param: &str, asked: String) -> ApiError {
        ApiError::ContextLength { param: param.to_owned(), asked, limit: self }
    }
}

impl fmt::Display for TokenLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting {
            Some(setting) => write!(formatter, "the limit of {} tokens ({setting})", self.tokens),
            None => write!(formatter, "the model's context of {} tokens", self.tokens),
        }
    }
}

// === impl Rate ===

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        })
    }
}

/// At least one, and rounded up, so that nobody comes back too early.
fn whole_seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// 499 is nginx's word for a client that left; nobody reads it but logs.
fn failure_status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorCode::UnknownModel => StatusCode::NOT_FOUND,
        ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable | ErrorCode::Moved | ErrorCode::PeerLost => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(Json(self.body()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_status_of_its_kind() {
        for code in ErrorCode::ALL {
            let status = failure_status(code);
            let is_callers = matches!(
                code,
                ErrorCode::InvalidRequest
                    | ErrorCode::UnknownModel
                    | ErrorCode::Overloaded
                    | ErrorCode::Cancelled
            );
            assert_eq!(status.is_client_error(), is_callers, "{code}");
        }
    }

    #[test]
    fn waiting_times_are_rounded_up() {
        let retry_after = Some(Duration::from_millis(1001));
        let failure = Failure { code: ErrorCode::Overloaded, message: "full".into(), retry_after };
        let response = ApiError::from(failure).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn the_lowest_limit_is_the_one_that_is_named() {
        let model = |pool_tokens| ServedModel {
            name: String::new(),
            text_digest: String::new(),
            context_tokens: 100,
            pool_tokens,
            fingerprint: String::new(),
        };
        let said = |pool, most| TokenLimit::of(&model(pool)).or_lower("frontend.most", most).to_string();
        assert_eq!(said(100, 0), "the model's context of 100 tokens");
        assert_eq!(said(80, 90), "the limit of 80 tokens (engine.pages)");
        assert_eq!(said(80, 70), "the limit of 70 tokens (frontend.most)");
    }
}
