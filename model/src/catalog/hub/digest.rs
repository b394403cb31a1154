//! Whether a file is what the Hub announced.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The hash that an entity tag is, if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Large files: sha256 of the content.
    Sha256,
    /// Small files: what git calls them, sha1 of length and content.
    Git,
    /// Some other tag; only the length can be checked.
    Unknown,
}

/// A hash in the making.
pub enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
    Unknown,
}

// === impl Kind ===

impl Kind {
    /// Tells by a tag's form.
    pub fn of(etag: &str) -> Self {
        let hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Self::Sha256,
            40 if hex => Self::Git,
            _ => Self::Unknown,
        }
    }
}

// === impl Hasher ===

impl Hasher {
    /// For a file of `bytes` bytes.
    pub fn new(kind: Kind, bytes: u64) -> Self {
        match kind {
            Kind::Sha256 => Self::Sha256(Sha256::new()),
            Kind::Git => Self::Git(Sha1::new_with_prefix(format!("blob {bytes}\0"))),
            Kind::Unknown => Self::Unknown,
        }
    }

    /// The file goes on with `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
            Self::Unknown => {}
        }
    }

    /// The hash as hex, if the tag was one.
    pub fn finish(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => Some(hex(&hasher.finalize())),
            Self::Git(hasher) => Some(hex(&hasher.finalize())),
            Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let hash = |kind| {
            let mut hasher = Hasher::new(kind, 6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            hasher.finish()
        };
        // echo hello | git hash-object --stdin; echo hello | sha256sum
        assert_eq!(hash(Kind::Git).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(hash(Kind::Sha256).unwrap(), sha256);
        assert_eq!(hash(Kind::Unknown), None);
        assert_eq!(Kind::of(sha256), Kind::Sha256);
        assert_eq!(Kind::of("ce013625030ba8dba906f756967f9e9ca394464a"), Kind::Git);
        assert_eq!(Kind::of("some-tag"), Kind::Unknown);
    }
}
