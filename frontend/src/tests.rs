//! The whole room over real sockets, with a script instead of a cluster.

mod answers;
mod anthropic;
mod bodies;
mod connections;
pub mod embeddings;
mod grammars;
mod patience;
mod refusals;
mod responses;
pub mod script;
mod sglang;
mod streams;
mod tgi;
mod tools;
mod vllm;
