//! The tokens that a grammar allows next, found off the engine's thread.
//!
//! When a sequence has got a token, its grammar takes it and finds the next
//! mask on one of a few [`Guides`] threads. A step waits a moment for masks on
//! their way; a sequence whose mask takes longer is left out of steps until it
//! is there, so that nobody else waits for it.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use baton_model::{GrammarError, GrammarState, ModelText};
use baton_protocol::{ErrorCode, Failure, Grammar};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that compile grammars and find masks. A job for each sequence at most.
pub(crate) struct Guides {
    text: Option<Arc<ModelText>>,
    threads: usize,
    /// Started for the first grammar.
    pool: Option<ThreadPool>,
}

/// Where one sequence stands in its grammar.
pub(crate) enum Guide {
    /// A mask for the token after this many of the answer.
    Ready(Ready),
    /// On its way; `is_late`: a step has waited for it in vain.
    Coming { result: Receiver<Result<Ready, Failure>>, is_late: bool },
}

/// See [`Guide::Ready`].
#[derive(Clone)]
pub(crate) struct Ready {
    state: GrammarState,
    pub(crate) answer_tokens: usize,
    pub(crate) mask: Arc<[u32]>,
}

/// How long a step waits for masks.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2);

// === impl Guides ===

impl Guides {
    pub(crate) fn new(text: Option<Arc<ModelText>>, threads: usize) -> Self {
        Self { text, threads: threads.max(1), pool: None }
    }

    /// Brings a guide to where the answer is; with none, begins the grammar.
    pub(crate) fn follow(&mut self, guide: Option<Ready>, grammar: &Arc<Grammar>, answer: &[u32]) -> Guide {
        let (sender, result) = sync_channel(1);
        let (text, grammar, answer) = (self.text.clone(), Arc::clone(grammar), answer.to_vec());
        let find = move || {
            let found = next(guide, text.as_deref(), &grammar, &answer);
            // Nobody waits for it if its sequence has gone.
            let _ = sender.send(found);
        };
        match self.pool() {
            Ok(pool) => pool.spawn(find),
            Err(error) => tracing::error!(%error, "no threads for grammars"),
        }
        Guide::Coming { result, is_late: false }
    }

    fn pool(&mut self) -> Result<&ThreadPool, rayon::ThreadPoolBuildError> {
        if self.pool.is_none() {
            let name = |index| format!("grammar-{index}");
            let pool = ThreadPoolBuilder::new().num_threads(self.threads).thread_name(name).build()?;
            self.pool = Some(pool);
        }
        Ok(self.pool.as_ref().expect("it was made just now"))
    }
}

// === impl Guide ===

impl Guide {
    /// The mask, if it is there.
    pub(crate) fn ready(&self) -> Option<&Ready> {
        match self {
            Self::Ready(ready) => Some(ready),
            Self::Coming { .. } => None,
        }
    }

    /// See [`Guide::Ready`].
    pub(crate) fn into_ready(self) -> Option<Ready> {
        match self {
            Self::Ready(ready) => Some(ready),
            Self::Coming { .. } => None,
        }
    }

    /// Takes what comes until then. For what is late already only the patient wait.
    ///
    /// # Errors
    /// Why there is no mask.
    pub(crate) fn look(&mut self, until: Instant, is_patient: bool) -> Result<(), Failure> {
        let Self::Coming { result, is_late } = self else { return Ok(()) };
        let waits = is_patient || !*is_late;
        let wait = if waits { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        match result.recv_timeout(wait) {
            Ok(found) => {
                *self = Self::Ready(found?);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => {
                *is_late = true;
                Ok(())
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::new(ErrorCode::Internal, "the request's grammar was given up"))
            }
        }
    }
}

fn next(
    guide: Option<Ready>,
    text: Option<&ModelText>,
    grammar: &Arc<Grammar>,
    answer: &[u32],
) -> Result<Ready, Failure> {
    let find = || {
        let (mut state, known) = match guide {
            Some(Ready { state, answer_tokens, .. }) => (state, answer_tokens),
            None => (text.ok_or(GrammarError::NoEnd)?.grammars()?.begin(grammar)?, 0),
        };
        state.advance(&answer[known..])?;
        let mask = state.mask()?;
        Ok(Ready { state, answer_tokens: answer.len(), mask })
    };
    find().map_err(|error: GrammarError| {
        let code = match error {
            GrammarError::Source { .. } | GrammarError::Stuck { .. } => ErrorCode::InvalidRequest,
            GrammarError::NoEnd | GrammarError::Vocabulary { .. } | GrammarError::Thread { .. } => {
                ErrorCode::Internal
            }
        };
        Failure::new(code, format!("the request's grammar: {error}"))
    })
}
