//! Paged KV cache.
//!
//! - [`KvMemory`]: the bytes, one lock a page and layer
//! - [`KvPool`]: who holds which page and how; promises; the prefix cache
//! - [`PageRef`], [`Promise`]: holds that let go when dropped
//! - [`PageSpan`]: pages of consecutive tokens as a handoff sees them

mod memory;
mod page;
mod pool;
mod prefix;
mod span;

pub use memory::{KvMemory, PageId, PageRead, PageWrite};
pub use page::{Hold, PageRef, Promise};
pub use pool::{IntegrityError, KvPool, PoolConfig};
pub use span::PageSpan;
