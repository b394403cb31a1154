//! A call from its body to its answer.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request, response::Response};
use baton_coordinator::ServedModel;
use baton_model::ModelText;
use baton_protocol::{ErrorCode, Failure, Request as Asked, RequestId};
use futures::future::try_join_all;
use tracing::debug;

use crate::{
    Answer, Config, Dispatch, body,
    chat::ChatCall,
    completions::CompletionsCall,
    error::ApiError,
    generation::{Generation, PromptTerms},
    json,
    metrics::Tally,
    parameters::{Delivery, Parameters},
    reply::{self, Envelope, Kind},
    texts::Texts,
    validate::{self, Terms},
};

/// What calls are answered with.
pub struct Desk {
    pub config: Config,
    pub dispatch: Arc<dyn Dispatch>,
    pub texts: Arc<Texts>,
}

/// A call whose shape is right.
enum Call {
    Chat(ChatCall),
    Completions(CompletionsCall),
}

/// A call that the model can take.
struct Ready {
    parameters: Parameters,
    requests: Vec<Asked>,
    text: Arc<ModelText>,
}

/// Bodies up to this size are parsed where they were read: it takes less time than to hand them over.
const INLINE_BYTES: usize = 32 << 10;

// === impl Desk ===

impl Desk {
    /// Answers one call. Nothing is sent before the first token is there (or
    /// the failure instead of it), so that every failure until then has its status.
    ///
    /// # Errors
    /// Why it cannot be answered.
    pub async fn answer(
        &self,
        kind: Kind,
        id: RequestId,
        tally: Arc<Tally>,
        request: Request<Body>,
    ) -> Result<Response, ApiError> {
        let bytes = body::read(request, &self.config).await?;
        let Ready { parameters, requests, text } = self.prepare(kind, id, bytes).await?;
        let envelope = Envelope {
            kind,
            id: kind.id(id),
            created: reply::unix_seconds(),
            model: parameters.model,
            choices: requests.iter().map(|request| request.choices).sum(),
        };
        debug!(%id, model = envelope.model, prompts = requests.len(), choices = envelope.choices, "call");
        let eos_tokens = text.eos_tokens();
        let prompts: Vec<_> = requests.iter().map(|request| PromptTerms::of(request, eos_tokens)).collect();
        let answers = self.dispatch(requests).await?;
        let mut generation =
            Generation::new(answers, &prompts, &parameters.stop_strings, text, Arc::clone(&tally));
        generation.begin().await?;
        match parameters.delivery {
            Delivery::Whole => reply::whole(generation, envelope).await,
            Delivery::Stream { include_usage } => {
                Ok(reply::stream(generation, envelope, include_usage, tally))
            }
        }
    }

    async fn prepare(&self, kind: Kind, id: RequestId, bytes: Vec<u8>) -> Result<Ready, ApiError> {
        let call = if bytes.len() <= INLINE_BYTES {
            Call::read(kind, &bytes, &self.config)?
        } else {
            let config = self.config.clone();
            self.texts.run(move || Call::read(kind, &bytes, &config)).await?
        };
        let (model, text) = self.texts.of_model(&call.parameters().model).await?;
        let deadline = self.config.request_timeout();
        self.texts.run(move || call.ready(id, &model, text, deadline)).await
    }

    async fn dispatch(&self, requests: Vec<Asked>) -> Result<Vec<Box<dyn Answer>>, ApiError> {
        let all = try_join_all(requests.into_iter().map(|request| self.dispatch.dispatch(request)));
        match tokio::time::timeout(self.config.request_timeout(), all).await {
            Ok(answers) => Ok(answers?),
            Err(_) => {
                Err(Failure::new(ErrorCode::DeadlineExceeded, "nobody took the request in time").into())
            }
        }
    }
}

// === impl Call ===

impl Call {
    fn read(kind: Kind, bytes: &[u8], config: &Config) -> Result<Self, ApiError> {
        let object = json::parse(bytes)?;
        match kind {
            Kind::Chat => ChatCall::read(object, config.max_choices).map(Self::Chat),
            Kind::Completions => CompletionsCall::read(object, config).map(Self::Completions),
        }
    }

    fn parameters(&self) -> &Parameters {
        match self {
            Self::Chat(call) => &call.parameters,
            Self::Completions(call) => &call.parameters,
        }
    }

    fn ready(
        self,
        id: RequestId,
        model: &ServedModel,
        text: Arc<ModelText>,
        deadline: Duration,
    ) -> Result<Ready, ApiError> {
        let terms = Terms { model, text: &text, deadline, id };
        let (requests, parameters) = match self {
            Self::Chat(call) => {
                (validate::chat(&call, &terms)?, call.parameters.ending_with(text.chat_ends()))
            }
            Self::Completions(call) => (validate::completions(&call, &terms)?, call.parameters),
        };
        Ok(Ready { parameters, requests, text })
    }
}
