//! Requests to the Hub, and who may see the token.

use std::{collections::BTreeSet, thread, time::Duration};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        RepoInfo,
        sync::{Api, ApiBuilder},
    },
};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri, header},
    tls::TlsConfig,
};

use super::{
    super::reference::{Reference, is_commit, is_inside},
    error::HubError,
    settings::Settings,
};

const CONNECT: Duration = Duration::from_secs(20);
/// A connection that brings nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
const MAX_LISTING_BYTES: u64 = 1 << 26;
const MAX_REDIRECTS: usize = 10;
const MAX_TAG: usize = 128;
/// Failures in a row that end a pull; one that brought something counts as the first.
const ATTEMPTS: u32 = 6;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One repository on the Hub.
pub struct Session<'a> {
    settings: &'a Settings,
    reference: &'a Reference,
    api: Api,
    agent: Agent,
}

/// A file on the Hub.
#[derive(Debug)]
pub struct Remote {
    /// Its path in the repository.
    pub file: String,
    /// Where it can be fetched.
    url: String,
    /// Its entity tag, which can be a file's name; see [`Kind`](super::digest::Kind).
    pub etag: String,
    /// Its length.
    pub bytes: u64,
}

/// How often is tried, and how long waited.
pub struct Patience {
    wait: Duration,
    failed: u32,
}

// === impl Session ===

impl<'a> Session<'a> {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(settings: &'a Settings, reference: &'a Reference) -> Result<Self, HubError> {
        let version = env!("CARGO_PKG_VERSION");
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_user_agent("baton", version)
            .with_progress(false)
            .build()
            .map_err(|error| HubError::Network {
                url: settings.endpoint.clone(),
                reason: error.to_string(),
            })?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .tls_config(tls(settings))
            .accept_encoding("identity")
            .user_agent(format!("baton/{version}"))
            .build();
        Ok(Self { settings, reference, api, agent: agent.into() })
    }

    /// Tries until it works or patience ends.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut patience = self.patience();
        loop {
            match attempt() {
                Err(error) => patience.bear(error)?,
                done => return done,
            }
        }
    }

    /// Full patience.
    pub fn patience(&self) -> Patience {
        Patience { wait: self.settings.first_wait, failed: 0 }
    }

    /// The commit that the revision is now, and its files.
    ///
    /// # Errors
    /// When the Hub does not say, or one of the files has no place in a directory.
    pub fn list(&self) -> Result<(String, BTreeSet<String>), HubError> {
        let info = self.patiently(|| self.info())?;
        let repository = &self.reference.repository;
        if !is_commit(&info.sha) {
            let url = self.page();
            return Err(HubError::Answer { url, reason: format!("`{}` for a commit", info.sha) });
        }
        let names: BTreeSet<_> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        match names.iter().find(|name| !is_inside(name)) {
            Some(name) => Err(HubError::Hostile { repository: repository.clone(), name: name.clone() }),
            None => Ok((info.sha, names)),
        }
    }

    fn info(&self) -> Result<RepoInfo, HubError> {
        let Reference { repository, revision, .. } = self.reference;
        let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.clone());
        let request = self.api.repo(repo).info_request().config();
        let request = request
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .tls_config(tls(self.settings))
            .build();
        let mut response = request.call().map_err(|error| unreachable_at(&self.settings.endpoint, &error))?;
        if !response.status().is_success() {
            return Err(self.refusal(&response, &self.page()));
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let body = body.map_err(|error| unreachable_at(&self.settings.endpoint, &error))?;
        let wrong =
            |error: serde_json::Error| HubError::Answer { url: self.page(), reason: error.to_string() };
        serde_json::from_slice(&body).map_err(wrong)
    }

    /// What the Hub says of a file at a commit.
    ///
    /// # Errors
    /// When it does not say enough.
    pub fn remote(&self, commit: &str, file: &str) -> Result<Remote, HubError> {
        let repo = Repo::with_revision(self.reference.repository.clone(), RepoType::Model, commit.to_owned());
        let url = self.api.repo(repo).url(&encoded(file));
        let response = self.patiently(|| self.head(&url))?;
        let lacking = |reason: &str| HubError::Answer { url: url.clone(), reason: reason.to_owned() };
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.ok_or_else(|| lacking("no entity tag"))?.trim_start_matches("W/").trim_matches('"');
        let nameable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if etag.is_empty() || etag.len() > MAX_TAG || etag.starts_with('.') || !etag.bytes().all(nameable) {
            return Err(lacking("an entity tag that is no name"));
        }
        let bytes = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let bytes = bytes.and_then(|bytes| bytes.parse().ok()).ok_or_else(|| lacking("no length"))?;
        Ok(Remote { file: file.to_owned(), etag: etag.to_owned(), bytes, url })
    }

    /// Follows redirects until someone says what the file is.
    fn head(&self, url: &str) -> Result<Response<Body>, HubError> {
        self.follow(
            url,
            |response| text(response.headers(), "x-linked-etag").is_some(),
            |agent, url| agent.head(url),
        )
    }

    /// A file's bytes, from `start` on if the server will.
    ///
    /// # Errors
    /// When there is no answer, or no good one.
    pub fn get(&self, remote: &Remote, start: u64) -> Result<Response<Body>, HubError> {
        self.follow(
            &remote.url,
            |_| false,
            |agent, url| agent.get(url).header(header::RANGE, format!("bytes={start}-")),
        )
    }

    /// Sends requests, along redirects until `enough`. Only the endpoint itself gets the token.
    fn follow(
        &self,
        url: &str,
        enough: impl Fn(&Response<Body>) -> bool,
        request: impl Fn(&Agent, &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    ) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = request(&self.agent, &url);
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_endpoint(&url)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| unreachable_at(&url, &error))?;
            if !response.status().is_redirection() {
                return if response.status().is_success() {
                    Ok(response)
                } else {
                    Err(self.refusal(&response, &url))
                };
            }
            if enough(&response) {
                return Ok(response);
            }
            let location = text(response.headers(), header::LOCATION.as_str()).unwrap_or_default();
            let next = target(&url, location).filter(|next| !is_https(&url) || is_https(next));
            url = next.ok_or_else(|| HubError::Answer {
                reason: format!("a redirect to `{location}`"),
                url: url.clone(),
            })?;
        }
        Err(HubError::Answer { url, reason: "too many redirects".to_owned() })
    }

    fn is_endpoint(&self, url: &str) -> bool {
        let origin = |url: &str| {
            let uri: Uri = url.parse().ok()?;
            Some((uri.scheme()?.clone(), uri.authority()?.clone()))
        };
        origin(url).is_some_and(|found| Some(found) == origin(&self.settings.endpoint))
    }

    /// The repository's page, for people.
    fn page(&self) -> String {
        format!("{}/{}", self.settings.endpoint, self.reference.repository)
    }

    fn refusal(&self, response: &Response<Body>, url: &str) -> HubError {
        let status = response.status().as_u16();
        let page = self.page();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        match (status, code) {
            (404, "RevisionNotFound") => {
                HubError::NoRevision { page, revision: self.reference.revision.clone() }
            }
            (401 | 404, "RepoNotFound") | (404, "") => HubError::NotFound { page },
            (401 | 403, _) if self.settings.token.is_some() => HubError::Refused { page },
            (401 | 403, _) => HubError::Gated { page },
            _ => {
                let wait = text(response.headers(), header::RETRY_AFTER.as_str());
                let wait = wait.and_then(|wait| wait.parse().ok()).map(Duration::from_secs);
                HubError::Status { url: url.to_owned(), status, wait }
            }
        }
    }
}

fn tls(settings: &Settings) -> TlsConfig {
    TlsConfig::builder().root_certs(settings.roots.clone()).build()
}

fn unreachable_at(url: &str, error: &ureq::Error) -> HubError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match error {
        // How the TLS library's errors arrive.
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            HubError::Untrusted { url, reason }
        }
        _ => HubError::Network { url, reason },
    }
}

/// A header that is plain text.
pub fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"))
}

/// Where a redirect from `url` leads.
fn target(url: &str, location: &str) -> Option<String> {
    if is_https(location) || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let on_this_host = location.starts_with('/') && !location.starts_with("//");
    on_this_host.then(|| format!("{scheme}://{authority}{location}"))
}

/// A path as it stands in a URL.
fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

// === impl Patience ===

impl Patience {
    /// Something came: the next failure counts as the first.
    pub fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// With `error`, when there should be none.
    pub fn bear(&mut self, error: HubError) -> Result<(), HubError> {
        self.failed += 1;
        if !error.may_pass() || self.failed == ATTEMPTS {
            return Err(error);
        }
        let asked = if let HubError::Status { wait, .. } = &error { *wait } else { None };
        let own = self.wait * (1 << (self.failed - 1));
        thread::sleep(asked.unwrap_or(own).min(LONGEST_WAIT));
        Ok(())
    }
}
