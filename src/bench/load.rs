//! The lab's load on the servers of benches.

use std::sync::Arc;

use anyhow::Result;
use baton_lab::{
    measure::{self, Api, Endpoint, Manner, Outcome, Record, Run},
    traffic::{Arrivals, Class, Length, Shape, Vocabulary, Workload},
};
use tokio::runtime::Runtime;

/// Tokens that every vocabulary of some size has, control tokens left out.
pub(super) const COMMON: Vocabulary = Vocabulary::Ids { low: 100, high: 30_000 };
/// Tokens of the mock backend, which are bytes.
pub(super) const BYTES: Vocabulary = Vocabulary::Ids { low: 32, high: 127 };
/// The same as text: five bytes a word.
pub(super) const WORDS_OF_BYTES: Vocabulary = Vocabulary::Words { tokens_of_word: 5.0, tokens_around: 0.0 };

/// One thread: the servers need the others.
pub(super) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A server asked for streamed completions, of its first model; it is told of budgets.
pub(super) async fn completions(url: &str, vocabulary: Vocabulary) -> Result<Arc<Endpoint>> {
    let manner = Manner {
        api: Api::Completions,
        vocabulary: Some(vocabulary),
        tells_budgets: true,
        ..Manner::default()
    };
    Ok(Arc::new(Endpoint::connect(url, manner).await?))
}

/// So many clients that ask, read, and ask again, each time what nobody asked before.
pub(super) fn closed(clients: usize, requests: usize, tokens: (usize, usize)) -> Workload {
    let shape = Shape { input: Length::fixed(tokens.0), output: Length::fixed(tokens.1), ..Shape::default() };
    Workload {
        seed: fastrand::u64(..),
        sessions: requests,
        arrivals: Arrivals::Closed { clients },
        classes: vec![Class { shape, ..Class::default() }],
        ..Workload::default()
    }
}

/// Measures a workload.
pub(super) async fn run(endpoint: &Arc<Endpoint>, workload: &Workload) -> Result<Run> {
    Ok(measure::run(endpoint, workload.traffic()?, &workload.classes, |_| {}).await?)
}

/// Several runs as one, the seconds of each added up.
pub(super) fn together(runs: &[Run]) -> Run {
    Run {
        records: runs.iter().flat_map(|run| run.records.iter().cloned()).collect(),
        seconds: runs.iter().map(|run| run.seconds).sum(),
        ..Run::default()
    }
}

/// Why a request is not the work that was asked for: its figures would be those of other work.
pub(super) fn fault(record: &Record, prompt_tokens: usize) -> Option<String> {
    match &record.outcome {
        Outcome::Refused { status, body, .. } => return Some(format!("{status}: {body}")),
        Outcome::Failed { why } => return Some(why.clone()),
        Outcome::Answered => {}
    }
    let counted = record.prompt_tokens.unwrap_or(prompt_tokens);
    if counted != prompt_tokens {
        return Some(format!("{counted} prompt tokens counted, {prompt_tokens} sent"));
    }
    record
        .has_other_length()
        .then(|| format!("{} tokens came, {} were asked for", record.output_tokens, record.wanted_tokens))
}
