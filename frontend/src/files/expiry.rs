//! How long a file is kept.

use crate::{error::ApiError, fields::Fields, reply::unix_seconds};

/// `{"anchor": "created_at", "seconds": …}`, or what is usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(pub u64);

/// What OpenAI allows: an hour to thirty days.
const SECONDS: std::ops::RangeInclusive<u32> = 3600..=2_592_000;

impl Expiry {
    /// Reads the object; `usual` seconds if it is empty.
    ///
    /// # Errors
    /// When a field is wrong or missing.
    pub fn read(mut fields: Fields, usual: u64) -> Result<Self, ApiError> {
        let anchor = fields.string("anchor")?;
        let seconds = fields.integer("seconds", SECONDS)?;
        let expiry = match (anchor.as_deref(), seconds) {
            (None, None) => Self(usual),
            (Some("created_at"), Some(seconds)) => Self(seconds.into()),
            (Some("created_at"), None) => {
                return Err(ApiError::Missing { param: fields.name("seconds") });
            }
            (None, Some(_)) => return Err(ApiError::Missing { param: fields.name("anchor") }),
            (Some(_), _) => return Err(fields.invalid("anchor", "must be created_at")),
        };
        fields.finish()?;
        Ok(expiry)
    }

    /// Seconds since 1970, from now on.
    pub fn at(self) -> u64 {
        unix_seconds().saturating_add(self.0)
    }
}
