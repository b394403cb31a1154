//! The lab: load on servers of the OpenAI API, and what came of it.
//!
//! - [`budgets`]: what requests should keep
//! - [`measure`]: asks a server and notes what comes
//! - [`plan`]: how many nodes of which role, by arithmetic
//! - [`report`]: tables and files of runs
//! - [`simulate`]: the coordinator's own code over nodes and a clock that are made up
//! - [`slo`]: searches for the highest rate that keeps budgets
//! - [`traffic`]: what is asked when, drawn from a seed or read from a trace
//!
//! Words are those of the field: time to first token (TTFT), time between
//! tokens (ITL), time per output token (TPOT), latency from end to end (E2E),
//! goodput and attainment.

pub mod budgets;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod measure;
pub mod plan;
pub mod report;
pub mod simulate;
pub mod slo;
pub mod traffic;
