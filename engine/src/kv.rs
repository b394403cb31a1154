//! Paged KV cache.
//!
//! - [`KvStore`]: where the bytes are; [`KvMemory`]: in the machine's memory, one lock a page and layer
//! - [`KvPool`]: who holds which page and how; promises; the prefix cache
//! - [`PageRef`], [`Promise`]: holds that let go when dropped
//! - [`PageSpan`]: pages of consecutive tokens as a handoff sees them

mod changes;
mod memory;
mod page;
mod pool;
mod prefix;
mod span;
mod store;

pub use memory::{KvMemory, PageRead, PageWrite};
pub use page::{Hold, PageRef, Promise};
#[cfg(any(test, fuzzing))]
pub use pool::model::page_pool;
pub use pool::{IntegrityError, KvPool, PoolConfig};
pub use span::PageSpan;
pub use store::{FillBytes, KvStore, PageId, Piece, UseBytes};
