//! Lists, a part at a time.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::error::ApiError;

/// Which part of a list is wanted.
pub struct Paging {
    /// What comes behind this.
    after: Option<String>,
    limit: usize,
    oldest_first: bool,
}

/// A part of a list.
#[derive(Serialize, JsonSchema)]
pub struct List<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

// === impl Paging ===

impl Paging {
    /// Of a query; `(usual, most)` entries.
    ///
    /// # Errors
    /// When a parameter is wrong or unknown.
    pub fn read(mut query: HashMap<String, String>, (usual, most): (usize, usize)) -> Result<Self, ApiError> {
        let limit = match query.remove("limit").map(|limit| limit.parse()) {
            None => usual,
            Some(Ok(limit)) if (1..=most).contains(&limit) => limit,
            Some(_) => {
                return Err(ApiError::invalid("limit", format!("must be an integer from 1 to {most}")));
            }
        };
        let oldest_first = match query.remove("order").as_deref() {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(ApiError::invalid("order", "must be asc or desc")),
        };
        let after = query.remove("after");
        match query.into_keys().next() {
            Some(param) => Err(ApiError::Unsupported { param }),
            None => Ok(Self { after, limit, oldest_first }),
        }
    }

    /// The part of all, of which the newest is first, and whether there is more.
    pub fn page<T>(&self, mut all: Vec<T>, is: impl Fn(&T, &str) -> bool) -> (Vec<T>, bool) {
        if self.oldest_first {
            all.reverse();
        }
        if let Some(after) = &self.after {
            let known = all.iter().position(|entry| is(entry, after));
            all.drain(..known.map_or(all.len(), |at| at + 1));
        }
        let has_more = all.len() > self.limit;
        all.truncate(self.limit);
        (all, has_more)
    }
}

// === impl List ===

impl<T> List<T> {
    /// With this data.
    pub fn of(data: Vec<T>, id: impl Fn(&T) -> String, has_more: bool) -> Self {
        Self {
            object: "list",
            first_id: data.first().map(&id),
            last_id: data.last().map(&id),
            data,
            has_more,
        }
    }
}
