//! The lab: load on servers of the OpenAI API, and what came of it.
//!
//! - [`budgets`]: what requests should keep
//! - [`traffic`]: what is asked when, drawn from a seed or read from a trace
//!
//! Words are those of the field: time to first token (TTFT), time between
//! tokens (ITL), time per output token (TPOT), latency from end to end (E2E),
//! goodput and attainment.

pub mod budgets;
pub mod traffic;
