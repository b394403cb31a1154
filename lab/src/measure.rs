//! Asks a server and notes what comes.
//!
//! - [`Endpoint`]: a server and how it is asked; [`Events`]: its streams
//! - [`run`]: traffic, sent at its times; [`Run`]: what came of it, [`Record`] by [`Record`]
//! - [`Summary`], [`Spread`]: the figures of a run
//! - [`Overhead`]: what measuring took itself

mod answer;
mod dialogue;
mod endpoint;
mod events;
mod kv_usage;
mod pacer;
mod record;
mod run;
mod spread;
mod summary;

pub use self::{
    answer::Answer,
    dialogue::Dialogue,
    endpoint::{Api, Endpoint, Manner},
    events::Events,
    record::{Outcome, Phases, Record},
    run::{Overhead, Run, run},
    spread::{Spread, quantile},
    summary::{Figures, Summary},
};

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The server does not do what every server of the API does.
    #[error("{url} does not answer as a server of the OpenAI API: {what}")]
    NoServer {
        /// Where it was asked.
        url: String,
        /// What is missing.
        what: String,
    },
    /// No HTTP.
    #[error("{url} cannot be asked")]
    Http {
        /// Where it was asked.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// No authority to check certificates by.
    #[error(transparent)]
    Trust(#[from] baton_trust::TrustError),
    /// Token ids where they mean nothing.
    #[error("{what} cannot be told in token ids")]
    NoIds {
        /// What was to be said.
        what: &'static str,
    },
    /// A session in which nothing is asked.
    #[error("a session has no turn")]
    NoTurn,
    /// Nobody keeps time.
    #[error("the system gives no thread to keep time")]
    NoTimer(#[source] std::io::Error),
    /// A bug in here.
    #[error("a session broke off")]
    Session(#[source] tokio::task::JoinError),
}

#[cfg(test)]
mod tests;
