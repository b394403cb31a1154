//! Who may speak in a cluster, and where its nodes may listen.
//!
//! A cluster has an authority of its own. It signs a certificate for each kind
//! of node, which names the cluster, the roles, and the addresses under which
//! such nodes are reached. Both ends of every connection show one and check
//! the other's. A process without certificates talks to its own machine only.
//! Files that change are read again, for connections from then on.
//!
//! - [`Trust`]: this process's certificates, loaded and checked; both ends of TLS
//! - [`TlsConfig`]: section `[tls]`
//! - [`Gate`], [`Listener`]: the one rule of what may be listened on and dialled
//! - [`Callee`], [`Caller`]: both ends of a gRPC connection
//! - `gathering`: what is said at once travels at once
//! - [`Guard`]: lets callers of one role through to a gRPC service
//! - `roles`: what a certificate says of its bearer; the server's, checked by whoever dials
//! - [`Https`], [`https_to`]: both ends of the API, whose clients show no certificate
//! - [`Rank`]: what the holder of an operator's key may do
//! - [`authority`]: makes certificates

pub mod authority;
mod callee;
mod callers;
mod certified;
mod config;
mod followed;
mod gate;
mod gathering;
mod guard;
mod https;
mod load;
mod rank;
mod roles;
#[cfg(test)]
mod tests;
mod trust;

pub use callee::{Callee, Dial, Wire};
pub use callers::Caller;
pub use config::{TlsConfig, for_roles};
pub use gate::{Gate, Listener, ReachError};
pub use guard::Guard;
pub use https::{Https, HttpsConfig, https_to, is_of_unknown_authority};
pub use load::TrustError;
pub use rank::{Rank, UnknownRank};
pub use trust::Trust;
