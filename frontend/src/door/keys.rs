//! The file of keys. It holds digests: whoever reads it can call nobody.
//!
//! ```toml
//! [tenants.acme]
//! requests_per_minute = 600
//! tokens_per_minute = 200000
//!
//! [[keys]]
//! id = "0123456789abcdef"
//! tenant = "acme"
//! sha256 = "…"
//! ```
//!
//! Operators' keys, in a file of their own, may have a rank (`rank = "viewer"`).

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use baton_trust::Rank;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::tenant::{Limits, Tenant};

/// Keys that are good, by their public part.
#[derive(Clone, Default)]
pub struct KeyRing {
    keys: HashMap<String, Known>,
    tenants: BTreeMap<String, Arc<Tenant>>,
}

#[derive(Clone)]
struct Known {
    sha256: String,
    tenant: Arc<Tenant>,
    rank: Option<Rank>,
}

/// A key that was just made.
pub struct NewKey {
    /// What the client sends; it is nowhere else.
    pub key: String,
    /// What is added to the file.
    pub entry: String,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("the file of API keys cannot be read: {reason}")]
    Unreadable {
        /// What the system said.
        reason: String,
    },
    /// The file is not TOML of the right shape.
    #[error("the file of API keys is wrong: {reason}")]
    Malformed {
        /// Where and why.
        reason: String,
    },
    /// A key cannot be used.
    #[error("the file of API keys is wrong: key {id:?} {problem}")]
    Key {
        /// Its public part.
        id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A limit of nothing.
    #[error("the file of API keys is wrong: limits of tenant {tenant:?} must be positive")]
    NoLimit {
        /// Whose it is.
        tenant: String,
    },
    /// A name that cannot be one.
    #[error("tenant {tenant:?} must have 1 to 64 letters, digits, dots, dashes or underscores")]
    Tenant {
        /// As it was given.
        tenant: String,
    },
    /// No randomness.
    #[error("the system has no randomness")]
    Randomness,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct File {
    tenants: BTreeMap<String, Limits>,
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    tenant: String,
    sha256: String,
    /// Of an operator's key.
    rank: Option<Rank>,
}

const PREFIX: &str = "sk-baton-";

/// Hexadecimal digits of a digest.
const DIGEST_DIGITS: usize = 64;

/// What an unknown key is compared with, so that it takes the same time. Nothing has this digest.
const NOBODY: &str = "----------------------------------------------------------------";

// === impl KeyRing ===

impl KeyRing {
    /// Reads a file. Tenants of `before` whose limits are the same keep what they have used.
    ///
    /// # Errors
    /// When it cannot be read or anything in it is wrong.
    pub fn read(file: &Path, before: &Self) -> Result<Self, KeysError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| KeysError::Unreadable { reason: format!("{}: {error}", file.display()) })?;
        Self::parse(&text, before)
    }

    /// As [`read`](Self::read), of the file's text.
    ///
    /// # Errors
    /// When anything in it is wrong.
    pub fn parse(text: &str, before: &Self) -> Result<Self, KeysError> {
        let File { tenants: limits, keys: entries } =
            toml::from_str(text).map_err(|error| KeysError::Malformed { reason: error.to_string() })?;
        let mut ring = Self::default();
        for (name, limits) in &limits {
            ring.add_tenant(name, *limits, before)?;
        }
        for entry in entries {
            let Entry { id, tenant, sha256, rank } = entry;
            let wrong = |problem| Err(KeysError::Key { id: id.clone(), problem });
            if sha256.len() != DIGEST_DIGITS
                || !sha256.bytes().all(|digit| b"0123456789abcdef".contains(&digit))
            {
                return wrong("needs a sha256 of 64 lowercase hexadecimal digits");
            }
            if id.is_empty() || !id.bytes().all(|letter| letter.is_ascii_alphanumeric()) {
                return wrong("needs an id of letters and digits");
            }
            let tenant =
                ring.add_tenant(&tenant, limits.get(&tenant).copied().unwrap_or_default(), before)?;
            if ring.keys.insert(id.clone(), Known { sha256, tenant, rank }).is_some() {
                return wrong("is there twice");
            }
        }
        Ok(ring)
    }

    /// Keys in it.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// The first key that has a rank, which users' keys have not.
    pub(super) fn ranked(&self) -> Option<&str> {
        let ranked = self.keys.iter().filter(|(_, known)| known.rank.is_some());
        ranked.map(|(id, _)| id.as_str()).min()
    }

    /// Whose key it is. Takes the same time for every wrong one of the same length.
    pub fn tenant_of(&self, key: &str) -> Option<&Arc<Tenant>> {
        self.known(key).map(|known| &known.tenant)
    }

    /// Whose key it is, and what it may do: everything, if the file does not say.
    pub fn operator_of(&self, key: &str) -> Option<(&str, Rank)> {
        self.known(key).map(|known| (known.tenant.name.as_str(), known.rank.unwrap_or(Rank::Admin)))
    }

    fn known(&self, key: &str) -> Option<&Known> {
        let id = key.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).unwrap_or_default();
        let known = self.keys.get(id);
        let expected = known.map_or(NOBODY, |known| &known.sha256);
        let right = bool::from(digest(key).as_bytes().ct_eq(expected.as_bytes()));
        known.filter(|_| right)
    }

    /// The tenant of this name, if they have a key.
    pub fn tenant_named(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.keys.values().map(|known| &known.tenant).find(|tenant| tenant.name == name)
    }

    fn add_tenant(&mut self, name: &str, limits: Limits, before: &Self) -> Result<Arc<Tenant>, KeysError> {
        if let Some(tenant) = self.tenants.get(name) {
            return Ok(Arc::clone(tenant));
        }
        check_tenant(name)?;
        if [limits.requests_per_minute, limits.tokens_per_minute].contains(&Some(0)) {
            return Err(KeysError::NoLimit { tenant: name.to_owned() });
        }
        let kept = before.tenants.get(name).filter(|tenant| tenant.limits == limits);
        let tenant = kept.cloned().unwrap_or_else(|| Arc::new(Tenant::new(name, limits)));
        self.tenants.insert(name.to_owned(), Arc::clone(&tenant));
        Ok(tenant)
    }
}

// === impl NewKey ===

impl NewKey {
    /// Of 256 random bits, for a tenant, or for an operator of a rank.
    ///
    /// # Errors
    /// When the tenant's name cannot be one, or the system has no randomness.
    pub fn make(tenant: &str, rank: Option<Rank>) -> Result<Self, KeysError> {
        check_tenant(tenant)?;
        let (id, secret) = (random_hex::<8>()?, random_hex::<32>()?);
        let key = format!("{PREFIX}{id}-{secret}");
        let sha256 = digest(&key);
        let rank = rank.map(|rank| format!("rank = \"{rank}\"\n")).unwrap_or_default();
        let entry =
            format!("\n[[keys]]\nid = \"{id}\"\ntenant = \"{tenant}\"\nsha256 = \"{sha256}\"\n{rank}");
        Ok(Self { key, entry })
    }
}

fn check_tenant(name: &str) -> Result<(), KeysError> {
    let good = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
    if (1..=64).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(KeysError::Tenant { tenant: name.to_owned() })
}

/// SHA-256 in lowercase hexadecimal. Fast is enough: nobody guesses 256 random bits.
fn digest(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

fn random_hex<const BYTES: usize>() -> Result<String, KeysError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|_| KeysError::Randomness)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
