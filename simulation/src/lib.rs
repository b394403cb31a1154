//! The whole control plane in one process, on one thread, by one seed: the real
//! coordinator, prefill and decode nodes and handoff sessions, over a network,
//! clocks and a registry that are simulated.
//!
//! - [`run`]: one run, from the seed to what was found
//! - [`faults`]: what happens in it, drawn from the seed
//! - [`node`]: a prefill or decode node, put together as in production
//! - [`clients`]: requests to the coordinator, and whether their answers are right
//! - [`world`]: what is known of all of it from outside
//! - [`network`], [`frames`]: gRPC and KV frames over simulated sockets
//! - [`registry`]: members in a simulated store
//! - [`system`]: clocks and random bytes in place of the system's
//! - [`trace`]: all that happens, in one hash

pub mod clients;
pub mod faults;
pub mod frames;
pub mod network;
pub mod node;
pub mod registry;
pub mod run;
pub mod system;
pub mod trace;
pub mod world;
