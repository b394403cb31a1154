//! Tokenizers by digest, and the bounded pool of threads that runs them.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use baton_coordinator::ServedModel;
use baton_model::ModelText;
use baton_protocol::{ErrorCode, Failure};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tracing::warn;

use crate::{Config, Dispatch, error::ApiError};

/// What is needed to turn text into tokens and back, for every served model.
pub struct Texts {
    dispatch: Arc<dyn Dispatch>,
    /// By digest. The mutex is held for a lookup, never while a text is fetched.
    known: Mutex<HashMap<String, Arc<OnceCell<Arc<ModelText>>>>>,
    /// Calls that run or wait; beyond it they are refused.
    admitted: Arc<Semaphore>,
    /// Calls that run.
    running: Arc<Semaphore>,
}

// === impl Texts ===

impl Texts {
    /// Knows `texts` from the start.
    pub fn new(dispatch: Arc<dyn Dispatch>, config: &Config, texts: Vec<Arc<ModelText>>) -> Self {
        let known = |text: Arc<ModelText>| (text.digest(), Arc::new(OnceCell::new_with(Some(text))));
        Self {
            dispatch,
            known: Mutex::new(texts.into_iter().map(known).collect()),
            admitted: Arc::new(Semaphore::new(config.text_threads + config.text_queue)),
            running: Arc::new(Semaphore::new(config.text_threads)),
        }
    }

    /// The model of this name, or the one that is meant where none is named, and its text.
    ///
    /// # Errors
    /// When nobody serves it, several could be meant, or its text cannot be had.
    pub async fn of_model(&self, name: Option<&str>) -> Result<(ServedModel, Arc<ModelText>), ApiError> {
        let (served, expected) = (self.dispatch.models(), self.dispatch.expected());
        let name = match (name, expected, served.as_slice()) {
            (Some(name), ..) => name,
            (None, [first, ..], _) => first,
            (None, [], [only]) => &only.name,
            (None, [], []) => return Err(unavailable("no model is served".to_owned())),
            (None, [], _) => return Err(ApiError::Missing { param: "model".to_owned() }),
        };
        let Some(model) = served.iter().find(|model| model.name == name).cloned() else {
            return Err(if expected.iter().any(|expected| expected == name) {
                unavailable(format!("no node of model `{name}` is there yet"))
            } else {
                ApiError::UnknownModel { model: name.to_owned() }
            });
        };
        let cell = {
            let mut known = self.known.lock();
            if !known.contains_key(&model.text_digest) {
                known.retain(|digest, _| served.iter().any(|model| model.text_digest == *digest));
            }
            Arc::clone(known.entry(model.text_digest.clone()).or_default())
        };
        let text = cell.get_or_try_init(|| self.fetch(&model)).await?;
        Ok((model, Arc::clone(text)))
    }

    /// Fetches the texts of the models that are served now, so that no call has to wait for it.
    pub async fn prefetch(&self) {
        if self.dispatch.ready().is_err() {
            return;
        }
        for model in self.dispatch.models() {
            // Logged where it fails; the first call tries again.
            let _ = self.of_model(Some(&model.name)).await;
        }
    }

    async fn fetch(&self, model: &ServedModel) -> Result<Arc<ModelText>, ApiError> {
        let bytes = self.dispatch.model_text(&model.name).await?;
        let name = model.name.clone();
        self.run(move || {
            ModelText::from_bytes(&bytes).map(Arc::new).map_err(|error| {
                warn!(model = name, %error, "cannot use the text of a model");
                ApiError::internal("the model's tokenizer cannot be used")
            })
        })
        .await
    }

    /// Runs work that takes longer than an async thread may be kept.
    ///
    /// # Errors
    /// What the work returns; overloaded when too many calls wait.
    pub async fn run<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let closed = |_| ApiError::internal("the tokenizer pool is closed");
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(|_| Failure::new(ErrorCode::Overloaded, "too many calls wait for the tokenizer"))?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(closed)?;
        // The permits go along: work goes on when its caller has left.
        let done = tokio::task::spawn_blocking(move || {
            let _permits = (admitted, running);
            work()
        });
        done.await.unwrap_or_else(|error| {
            warn!(%error, "tokenizing panicked");
            Err(ApiError::internal("tokenizing failed"))
        })
    }

    /// Runs short work where its call is.
    ///
    /// # Errors
    /// What the work returns.
    pub fn run_here<T>(&self, work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        // Whatever text makes a tokenizer panic shall cost its own call alone.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            warn!("tokenizing panicked");
            Err(ApiError::internal("tokenizing failed"))
        })
    }
}

fn unavailable(why: String) -> ApiError {
    Failure::new(ErrorCode::Unavailable, why).into()
}

#[cfg(test)]
mod tests {
    use std::sync::{atomic::Ordering, mpsc::sync_channel};

    use super::*;
    use crate::tests::script::{Cluster, Script};

    #[tokio::test]
    async fn more_calls_than_may_wait_are_refused() {
        let dispatch = Arc::new(Cluster(Arc::new(Script::stuck())));
        let texts =
            Texts::new(dispatch, &Config { text_threads: 1, text_queue: 1, ..Config::default() }, Vec::new());
        let (go, gone) = sync_channel::<()>(0);
        let first = texts.run(move || {
            let _ = gone.recv();
            Ok(1)
        });
        let second = texts.run(|| Ok(2));
        let third = async {
            let refused = texts.run(|| Ok(3)).await.unwrap_err();
            assert_eq!(refused.status(), 429);
            drop(go);
        };
        let (first, second, ()) = tokio::join!(first, second, third);
        assert_eq!((first, second), (Ok(1), Ok(2)));
        assert_eq!(texts.run(|| Ok(4)).await, Ok(4));
    }

    #[tokio::test]
    async fn work_that_panics_fails_its_own_call_alone() {
        let texts = Texts::new(Arc::new(Cluster(Arc::new(Script::stuck()))), &Config::default(), Vec::new());
        let breaks = || -> Result<(), ApiError> { panic!("as a tokenizer may") };
        assert_eq!(texts.run_here(breaks).unwrap_err().status(), 500);
        assert_eq!(texts.run(breaks).await.unwrap_err().status(), 500);
        assert_eq!(texts.run_here(|| Ok(1)), Ok(1));
    }

    #[tokio::test]
    async fn a_model_that_is_expected_is_unavailable_until_it_is_there_and_others_are_unknown() {
        let expected = |names: &[&str]| {
            let dispatch = Arc::new(Cluster(Arc::new(Script::stuck().expecting(names))));
            Texts::new(dispatch, &Config::default(), Vec::new())
        };
        let status = |texts: Result<(ServedModel, _), ApiError>| match texts {
            Ok((model, _)) => Ok(model.name),
            Err(error) => Err(error.status().as_u16()),
        };
        let mock = Ok("mock".to_owned());
        for (names, name, answer) in [
            (&[][..], None, mock.clone()),
            (&["mock", "large"], None, mock.clone()),
            (&["large", "mock"], None, Err(503)),
            (&["large"], Some("mock"), mock),
            (&["large"], Some("large"), Err(503)),
            (&["large"], Some("small"), Err(404)),
        ] {
            assert_eq!(status(expected(names).of_model(name).await), answer, "{names:?} {name:?}");
        }
    }

    #[tokio::test]
    async fn a_text_is_fetched_once_and_before_it_is_needed_or_not_at_all() {
        for (known, fetched) in [(vec![Arc::new(ModelText::mock())], 0), (Vec::new(), 1)] {
            let script = Arc::new(Script::stuck());
            let dispatch: Arc<dyn Dispatch> = Arc::new(Cluster(Arc::clone(&script)));
            let texts = Texts::new(Arc::clone(&dispatch), &Config::default(), known);
            texts.prefetch().await;
            assert_eq!(script.texts_fetched.load(Ordering::SeqCst), fetched);
            texts.of_model(None).await.unwrap();
            assert_eq!(script.texts_fetched.load(Ordering::SeqCst), fetched);
        }
    }
}
