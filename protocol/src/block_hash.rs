//! The chained hash of page-sized token runs. Engine, coordinator and tests
//! call this one; two nodes agree on a prefix exactly when they agree on it.

use std::fmt;

/// Names the first `page_tokens * (i + 1)` tokens of a prompt for one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 16]);

/// Hashes of the full pages of `tokens`, in order. Each covers everything
/// before it; `tenant` keys the chain, so that tenants never share a hash.
pub fn chain(tenant: &str, page_tokens: usize, tokens: &[u32]) -> Vec<BlockHash> {
    let (mut parent, mut bytes) = (root(tenant), Vec::new());
    tokens
        .chunks_exact(page_tokens)
        .map(|block| {
            parent = hashed(&parent, block, &mut bytes);
            parent
        })
        .collect()
}

/// The chain's start for a tenant.
pub fn root(tenant: &str) -> BlockHash {
    truncate(&blake3::Hasher::new_derive_key("baton 2026 block chain").update(tenant.as_bytes()).finalize())
}

/// The hash of `block` after everything that `parent` names.
pub fn next(parent: &BlockHash, block: &[u32]) -> BlockHash {
    hashed(parent, block, &mut Vec::new())
}

/// In one call over `bytes` in a row: a hasher that is given them one by one takes twice as long.
fn hashed(parent: &BlockHash, block: &[u32], bytes: &mut Vec<u8>) -> BlockHash {
    bytes.clear();
    bytes.extend_from_slice(&parent.0);
    for token in block {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    truncate(&blake3::hash(bytes))
}

fn truncate(hash: &blake3::Hash) -> BlockHash {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    BlockHash(short)
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_names_the_whole_prefix_and_the_tenant() {
        let tokens: Vec<u32> = (0..40).collect();
        let hashes = chain("a", 16, &tokens);
        assert_eq!(hashes.len(), 2);
        assert_eq!(hashes, chain("a", 16, &tokens[..33]));
        assert_ne!(hashes, chain("b", 16, &tokens));
        let mut other = tokens;
        other[0] = 99;
        assert_ne!(hashes[1], chain("a", 16, &other)[1]);
    }
}
