//! A call from its body to its answer.

use std::{future::poll_fn, sync::Arc};

use axum::{body::Body, http::Request, response::Response};
use baton_coordinator::{ServedModel, Wishes};
use baton_model::ModelText;
use baton_protocol::{ErrorCode, Event, Failure, Request as Asked, RequestId};
use futures::{FutureExt, StreamExt, TryStreamExt, future::try_join_all, stream};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use crate::{
    Answer, Config, Dispatch,
    ask::{Ask, Call, Parameters, Prompt, Tier},
    body,
    door::tenant::Tenant,
    error::ApiError,
    generation::{Generation, PromptTerms, Showing},
    json,
    metrics::Tally,
    patience::Patience,
    reply::{self, Facts},
    texts::Texts,
    validate::{self, Terms},
};

/// What calls are answered with.
pub struct Desk {
    pub config: Config,
    pub dispatch: Arc<dyn Dispatch>,
    pub texts: Arc<Texts>,
    /// A place for each stream that may be open.
    pub streams: Arc<Semaphore>,
}

/// What a call carries through its handler.
#[derive(Clone)]
pub struct Ticket {
    pub id: RequestId,
    pub tenant: Arc<Tenant>,
    pub tally: Arc<Tally>,
    /// What its headers say, or what is wrong with them.
    pub patience: Result<Patience, ApiError>,
}

/// A prompt as the model would see it.
pub struct Tokenized {
    pub model: ServedModel,
    pub text: Arc<ModelText>,
    pub tokens: Vec<u32>,
}

/// What prompts became.
pub struct Embedded {
    pub model: String,
    /// Of all prompts.
    pub tokens: usize,
    /// In the prompts' order, each of length 1.
    pub vectors: Vec<Vec<f32>>,
}

/// Embeddings of one call that are made at once.
const EMBEDDED_AT_ONCE: usize = 16;

/// How a dialect reads a body.
pub type Read<T> = fn(Map<String, Value>, &Config) -> Result<T, ApiError>;

/// Bodies up to this size are parsed where they were read: it takes less time than to hand them over.
const INLINE_BYTES: usize = 32 << 10;

// === impl Desk ===

impl Desk {
    /// Reads a body and answers the call in it.
    ///
    /// # Errors
    /// As [`read`](Self::read) and [`answer`](Self::answer).
    pub async fn serve(
        &self,
        ticket: Ticket,
        request: Request<Body>,
        read: Read<Call>,
    ) -> Result<Response, ApiError> {
        let call = self.read(request, read).await?;
        self.answer(ticket, call).await
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn read<T: Send + 'static>(
        &self,
        request: Request<Body>,
        read: Read<T>,
    ) -> Result<T, ApiError> {
        let bytes = body::read(request, &self.config).await?;
        if bytes.len() <= INLINE_BYTES {
            return read(json::parse(&bytes)?, &self.config);
        }
        let config = self.config.clone();
        self.texts.run(move || read(json::parse(&bytes)?, &config)).await
    }

    /// Answers one call. Nothing is sent before the first token is there (or
    /// the failure instead of it), so that every failure until then has its status.
    ///
    /// # Errors
    /// Why it cannot be answered.
    pub async fn answer(&self, ticket: Ticket, call: Call) -> Result<Response, ApiError> {
        let Ticket { id, tenant, tally, patience } = ticket;
        let Patience { mut wishes, deadline } = patience?;
        let Call { mut ask, reply } = call;
        ask.parameters.deadline = deadline;
        if wishes.priority == 0 {
            wishes.priority = ask.parameters.tier.map_or(0, Tier::priority);
        }
        let place = if ask.parameters.stream { Some(self.place()?) } else { None };
        let (ask, mut requests, text) = self.requests(id, tenant, ask).await?;
        requests.iter_mut().for_each(|request| request.trace = tally.trace());
        tally.spend(requests.iter().map(|request| request.tokens.len()).sum());
        let facts = Facts::of(&ask, &requests, &text)
            .ok_or_else(|| ApiError::internal("the call asks for nothing"))?;
        debug!(%id, model = facts.model, prompts = facts.prompts, choices = facts.choices, "call");
        let told = ask.parameters.told.map(|told| told.value);
        let prompts: Vec<_> =
            requests.iter().map(|request| PromptTerms::of(request, text.eos_tokens(), told)).collect();
        let showing = Showing::of(ask, &requests, text);
        let answers = self.dispatch(requests, wishes).await?;
        let mut generation = Generation::new(answers, &prompts, showing, Arc::clone(&tally));
        generation.begin().await?;
        match place {
            None => reply::whole(generation, facts, reply).await,
            Some(place) => Ok(reply::stream(generation, facts, reply, tally, place)),
        }
    }

    /// The embeddings of a call's prompts, in their order; a few at a time are made.
    ///
    /// # Errors
    /// Why one of them cannot be made.
    pub async fn embed(&self, ticket: Ticket, mut ask: Ask) -> Result<Embedded, ApiError> {
        let Ticket { id, tenant, tally, patience } = ticket;
        let Patience { wishes, deadline } = patience?;
        ask.parameters.deadline = deadline;
        let (_, mut requests, _) = self.requests(id, tenant, ask).await?;
        requests.iter_mut().for_each(|request| request.trace = tally.trace());
        let model = requests.first().map(|request| request.model.clone()).unwrap_or_default();
        let tokens = requests.iter().map(|request| request.tokens.len()).sum();
        tally.spend(tokens);
        let vectors: Vec<_> =
            requests.into_iter().map(|request| self.vector(request, wishes).boxed()).collect();
        let all = stream::iter(vectors).buffered(EMBEDDED_AT_ONCE).try_collect();
        match tokio::time::timeout(self.config.request_timeout(), all).await {
            Ok(vectors) => Ok(Embedded { model, tokens, vectors: vectors? }),
            Err(_) => Err(Failure::new(ErrorCode::DeadlineExceeded, "the embeddings took too long").into()),
        }
    }

    /// The tokens of a prompt that nobody is to answer.
    ///
    /// # Errors
    /// When the model cannot take it.
    pub async fn tokenize(&self, model: Option<String>, prompt: Prompt) -> Result<Tokenized, ApiError> {
        let (model, text) = self.texts.of_model(model.as_deref()).await?;
        let config = self.config.clone();
        let tokenize = move || {
            let terms = Terms { model: &model, text: &text, config: &config, tenant: "" };
            let tokens = terms.tokens(&prompt, &Parameters::default())?;
            Ok(Tokenized { model, text, tokens })
        };
        self.texts.run(tokenize).await
    }

    /// The requests of a call.
    async fn requests(
        &self,
        id: RequestId,
        tenant: Arc<Tenant>,
        ask: Ask,
    ) -> Result<(Ask, Vec<Asked>, Arc<ModelText>), ApiError> {
        let (model, text) = self.texts.of_model(ask.model.as_deref()).await?;
        let (config, is_short) = (self.config.clone(), ask.is_short());
        let validate = move || {
            let terms = Terms { model: &model, text: &text, config: &config, tenant: &tenant.name };
            let requests = validate::requests(&ask, id, &terms)?;
            Ok((ask, requests, text))
        };
        if is_short { self.texts.run_here(validate) } else { self.texts.run(validate).await }
    }

    async fn dispatch(&self, requests: Vec<Asked>, wishes: Wishes) -> Result<Vec<Box<dyn Answer>>, ApiError> {
        let all = try_join_all(requests.into_iter().map(|request| self.dispatch.dispatch(request, wishes)));
        match tokio::time::timeout(self.config.request_timeout(), all).await {
            Ok(answers) => Ok(answers?),
            Err(_) => {
                Err(Failure::new(ErrorCode::DeadlineExceeded, "nobody took the request in time").into())
            }
        }
    }

    /// An answer that is an embedding, read to its end.
    async fn vector(&self, request: Asked, wishes: Wishes) -> Result<Vec<f32>, Failure> {
        let mut answer = self.dispatch.dispatch(request, wishes).await?;
        let mut found = None;
        while let Some(event) = poll_fn(|cx| answer.poll_event(cx)).await {
            match event {
                Event::Embedding(vector) => found = Some(vector),
                Event::Failed(failure) => return Err(failure),
                _ => {}
            }
        }
        found.ok_or_else(|| Failure::new(ErrorCode::Internal, "the answer has no embedding"))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            let limit = self.config.max_streams;
            ApiError::overloaded(format!("{limit} streams are open already (frontend.max_streams)"))
        })
    }
}
