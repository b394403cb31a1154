//! What operators stand at: the coordinator, who may come, and the record of what they did.

use std::sync::Arc;

use axum::{Router, http::HeaderMap};
use baton_coordinator::Coordinator;
use baton_trust::Rank;

use crate::{audit::Audit, error::AdminError, ledger::Ledger};

/// Whose a key is, and what it may do; none: nobody's.
pub type Owner = Arc<dyn Fn(&str) -> Option<(String, Rank)> + Send + Sync>;

/// Shared by the routes and the service; clones are the same desk.
#[derive(Clone)]
pub struct Desk {
    pub(crate) coordinator: Coordinator,
    pub(crate) audit: Arc<Audit>,
    owner: Option<Owner>,
    /// The API for users, inside this process, for the console's playground.
    pub(crate) api: Option<Router>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operator {
    pub(crate) name: String,
    pub(crate) rank: Rank,
    /// The id of this call: the caller's own, or one that was made.
    pub(crate) call: String,
}

/// Who calls where there are no keys.
const ANYONE: &str = "anyone";
/// Longest id of a call that is taken from a caller.
const MAX_CALL_BYTES: usize = 128;

// === impl Desk ===

impl Desk {
    /// Over a coordinator, for everyone who reaches it.
    pub fn new(coordinator: Coordinator) -> Self {
        Self { coordinator, audit: Arc::default(), owner: None, api: None }
    }

    /// The same for holders of keys alone.
    #[must_use]
    pub fn for_owners(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// The same with a playground over the routes of the API for users, which asks for its own keys.
    #[must_use]
    pub fn with_playground(self, api: Router) -> Self {
        Self { api: Some(api), ..self }
    }

    /// The same with every act in a file before it is done, and none done that cannot be written.
    #[must_use]
    pub fn with_ledger(self, ledger: Ledger) -> Self {
        Self { audit: Arc::new(Audit::in_file(ledger)), ..self }
    }

    /// Who calls with this `Authorization` and this `X-Request-Id`.
    ///
    /// # Errors
    /// When there are keys, and this is none of them.
    pub(crate) fn operator(
        &self,
        authorization: Option<&str>,
        call: Option<&str>,
    ) -> Result<Operator, AdminError> {
        let is_plain = |id: &&str| {
            (1..=MAX_CALL_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let call = call.filter(is_plain).map_or_else(|| format!("{:016x}", fastrand::u64(..)), str::to_owned);
        let Some(owner) = &self.owner else {
            return Ok(Operator { name: ANYONE.to_owned(), rank: Rank::Admin, call });
        };
        let (scheme, key) = authorization.and_then(|said| said.split_once(' ')).ok_or(AdminError::NoKey)?;
        let known = owner(key.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"));
        known.map(|(name, rank)| Operator { name, rank, call }).ok_or(AdminError::NoKey)
    }
}

// === impl Operator ===

impl Operator {
    /// Whether this may be done by them.
    ///
    /// # Errors
    /// When it takes a higher rank.
    pub(crate) fn may(&self, needed: Rank) -> Result<(), AdminError> {
        if self.rank >= needed { Ok(()) } else { Err(AdminError::Rank { needed, has: self.rank }) }
    }
}

/// The one value of `Authorization`.
pub(crate) fn authorization(headers: &HeaderMap) -> Option<&str> {
    let mut said = headers.get_all(axum::http::header::AUTHORIZATION).iter();
    let first = said.next()?.to_str().ok();
    if said.next().is_some() { None } else { first }
}
