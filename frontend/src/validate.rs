//! Makes the request, in which nothing is optional: the checks that need the model.

use std::time::Duration;

use baton_coordinator::ServedModel;
use baton_model::{ModelText, TextError};
use baton_protocol::{Request, RequestId, Sampling, Stop};
use serde_json::Map;
use tracing::warn;

use crate::{
    chat::ChatCall,
    completions::{CompletionsCall, Prompt},
    config::PROMPT_BYTES_PER_TOKEN,
    error::ApiError,
    parameters::Parameters,
};

/// Whose prefix cache is used, as long as there are no keys.
const TENANT: &str = "default";

/// What a request is checked against.
pub struct Terms<'a> {
    pub model: &'a ServedModel,
    pub text: &'a ModelText,
    /// Time for the whole answer.
    pub deadline: Duration,
    /// Id of the call's first request.
    pub id: RequestId,
}

/// What the two kinds of call say differently.
struct Ask<'a> {
    parameters: &'a Parameters,
    logprobs: bool,
    top_logprobs: u32,
}

/// The request of a chat call.
///
/// # Errors
/// When the model cannot take it.
pub fn chat(call: &ChatCall, terms: &Terms<'_>) -> Result<Vec<Request>, ApiError> {
    let param = "messages";
    terms.check_bytes(param, call.content_bytes)?;
    let tokens =
        terms.text.chat_tokens(&call.messages, &Map::new()).map_err(|error| text_error(param, &error))?;
    let ask = Ask { parameters: &call.parameters, logprobs: call.logprobs, top_logprobs: call.top_logprobs };
    Ok(vec![terms.request(terms.id, &ask, param, tokens)?])
}

/// The requests of a completions call, one a prompt.
///
/// # Errors
/// When the model cannot take one of them.
pub fn completions(call: &CompletionsCall, terms: &Terms<'_>) -> Result<Vec<Request>, ApiError> {
    let ask = Ask {
        parameters: &call.parameters,
        logprobs: call.logprobs.is_some(),
        top_logprobs: call.logprobs.unwrap_or(0),
    };
    let one = call.prompts.len() == 1;
    let requests = call.prompts.iter().enumerate().map(|(i, prompt)| {
        let param = if one { "prompt".to_owned() } else { format!("prompt[{i}]") };
        let id = if i == 0 { terms.id } else { random_id()? };
        let tokens = match prompt {
            Prompt::Tokens(tokens) => {
                terms.check_vocabulary(&param, tokens)?;
                tokens.clone()
            }
            Prompt::Text(text) => {
                terms.check_bytes(&param, text.len())?;
                let text_tokens =
                    terms.text.encode(text, true).map_err(|error| text_error(&param, &error))?;
                let bos = terms.text.bos_token().filter(|_| terms.text.adds_bos());
                bos.into_iter().chain(text_tokens).collect()
            }
        };
        terms.request(id, &ask, &param, tokens)
    });
    requests.collect()
}

/// 128 random bits.
///
/// # Errors
/// When the system has none.
pub fn random_id() -> Result<RequestId, ApiError> {
    let mut bits = [0; 16];
    fill_random(&mut bits)?;
    Ok(RequestId(u128::from_be_bytes(bits)))
}

fn random_seed() -> Result<u64, ApiError> {
    let mut bits = [0; 8];
    fill_random(&mut bits)?;
    Ok(u64::from_be_bytes(bits))
}

fn fill_random(bits: &mut [u8]) -> Result<(), ApiError> {
    getrandom::fill(bits).map_err(|_| ApiError::internal("the system has no randomness"))
}

/// A template may refuse a conversation; its words are for the caller.
fn text_error(param: &str, error: &TextError) -> ApiError {
    if error.is_request() {
        return ApiError::invalid(param, error.to_string());
    }
    warn!(%error, "cannot use the text of a model");
    ApiError::internal("the model's tokenizer or template cannot be used")
}

// === impl Terms ===

impl Terms<'_> {
    fn request(
        &self,
        id: RequestId,
        ask: &Ask<'_>,
        param: &str,
        tokens: Vec<u32>,
    ) -> Result<Request, ApiError> {
        if tokens.is_empty() {
            return Err(ApiError::invalid(param, "must not be empty"));
        }
        let parameters = ask.parameters;
        self.check_vocabulary("stop_token_ids", &parameters.stop_token_ids)?;
        for bias in &parameters.sampling.logit_bias {
            self.check_vocabulary("logit_bias", &[bias.token])?;
        }
        let max_tokens = self.max_tokens(parameters, param, tokens.len())?;
        if parameters.min_tokens > max_tokens {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("only {max_tokens} tokens are left in the context"),
            ));
        }
        let seed = if parameters.seeded { parameters.sampling.seed } else { random_seed()? };
        Ok(Request {
            id,
            model: self.model.name.clone(),
            tenant: TENANT.to_owned(),
            tokens,
            sampling: Sampling { seed, ..parameters.sampling.clone() },
            stop: Stop {
                max_tokens,
                min_tokens: parameters.min_tokens,
                ignore_eos: parameters.ignore_eos,
                token_ids: parameters.stop_token_ids.clone(),
            },
            choices: parameters.choices,
            logprobs: ask.logprobs,
            top_logprobs: ask.top_logprobs,
            deadline: self.deadline,
        })
    }

    /// What the client asked for, or what the prompt leaves.
    fn max_tokens(
        &self,
        parameters: &Parameters,
        param: &str,
        prompt_tokens: usize,
    ) -> Result<u32, ApiError> {
        let context_tokens = self.model.context_tokens;
        let left = (context_tokens as usize).saturating_sub(prompt_tokens) as u32;
        let exceeded = |param: &str, asked: String| {
            Err(ApiError::ContextLength { param: param.to_owned(), asked, context_tokens })
        };
        match parameters.max_tokens {
            _ if left == 0 => exceeded(param, format!("{prompt_tokens} prompt tokens and an answer")),
            Some(max) if max.tokens > left => exceeded(
                max.param,
                format!("{prompt_tokens} prompt tokens and {} for the answer", max.tokens),
            ),
            Some(max) => Ok(max.tokens),
            None => Ok(left),
        }
    }

    /// Refuses text that cannot fit before time is spent on tokenizing it.
    fn check_bytes(&self, param: &str, bytes: usize) -> Result<(), ApiError> {
        let context_tokens = self.model.context_tokens;
        if bytes / PROMPT_BYTES_PER_TOKEN < context_tokens as usize {
            return Ok(());
        }
        Err(ApiError::ContextLength {
            param: param.to_owned(),
            asked: format!("{bytes} bytes of text"),
            context_tokens,
        })
    }

    fn check_vocabulary(&self, param: &str, ids: &[u32]) -> Result<(), ApiError> {
        let vocab_tokens = self.text.vocab_tokens();
        match ids.iter().find(|&&id| id as usize >= vocab_tokens) {
            Some(id) => Err(ApiError::invalid(
                param,
                format!("token {id} is not in the vocabulary of {vocab_tokens}"),
            )),
            None => Ok(()),
        }
    }
}
