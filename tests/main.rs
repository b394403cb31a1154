//! Whole-cluster tests: one binary, so that it links once.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "tests")]

mod arrows;
mod bench_serve;
mod certs;
mod chaos;
mod configs;
mod coordinators;
mod counts;
mod documents;
mod exposure;
mod golden;
mod hostile;
mod https;
mod hub;
mod load;
mod losses;
mod malformed;
mod matrix;
mod models;
mod once;
mod openapi;
mod operators;
mod overload;
mod page;
mod parity;
mod paths;
mod probes;
mod promises;
mod reference;
mod roles;
mod routing;
mod sandbox;
mod sense;
mod simulate;
mod structured;
mod traces;
