//! Makes the requests, in which nothing is optional: the checks that need the model.

use std::{sync::Arc, time::Duration};

use baton_coordinator::ServedModel;
use baton_model::{GrammarError, ModelText, TextError};
use baton_protocol::{Grammar, PromptLogprobs, Request, RequestId, Sampling, Stop};
use serde_json::{Map, Value};
use tracing::warn;

use crate::{
    Config,
    ask::{Ask, Content, Conversation, Ending, Named, Parameters, Prompt, Truncate},
    config::PROMPT_BYTES_PER_TOKEN,
    error::{ApiError, TokenLimit},
    grammars,
    parts::CallForm,
    tools,
};

/// What a request is checked against.
pub struct Terms<'a> {
    pub model: &'a ServedModel,
    pub text: &'a ModelText,
    pub config: &'a Config,
    /// Whose prefix cache is used.
    pub tenant: &'a str,
}

/// The requests of a call, one a prompt; `id` is the first one's.
///
/// # Errors
/// When the model cannot take one of them.
pub fn requests(ask: &Ask, id: RequestId, terms: &Terms<'_>) -> Result<Vec<Request>, ApiError> {
    let grammar = terms.grammar(ask)?;
    let mut told = 0;
    let requests = ask.prompts.iter().enumerate().map(|(i, prompt)| {
        let id = if i == 0 { id } else { random_id()? };
        let tokens = terms.tokens(prompt, &ask.parameters)?;
        told += terms.told(&ask.parameters, tokens.len(), told)?;
        let mut request = terms.request(id, &ask.parameters, &prompt.param, tokens)?;
        request.sampling.grammar.clone_from(&grammar);
        Ok(request)
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
    /// The tokens of a prompt, at least one.
    ///
    /// # Errors
    /// When the model's tokenizer or template does not take it, or its context cannot hold it.
    pub fn tokens(&self, prompt: &Prompt, parameters: &Parameters) -> Result<Vec<u32>, ApiError> {
        let param = &prompt.param;
        let wrong = |error: TextError| text_error(param, &error);
        let mut tokens = match &prompt.content {
            Content::Chat(conversation) => {
                self.check_bytes(param, conversation.bytes)?;
                let variables = self.variables(conversation)?;
                let told = self.told_in_words(conversation);
                let messages = told.as_ref().unwrap_or(&conversation.messages);
                match conversation.ending {
                    Ending::Within => self.text.continued_tokens(messages, &variables),
                    Ending::Answer | Ending::Message => self.text.chat_tokens(messages, &variables),
                }
                .map_err(wrong)?
            }
            Content::Text { text, begins } => {
                self.check_bytes(param, text.len())?;
                let bos = self.text.bos_token().filter(|_| *begins && self.text.adds_bos());
                bos.into_iter().chain(self.text.encode(text, true).map_err(wrong)?).collect()
            }
            Content::Tokens(tokens) => {
                self.check_vocabulary(param, tokens)?;
                tokens.clone()
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::invalid(param, "must not be empty"));
        }
        if let Some(truncate) = prompt.truncate {
            let keep = match truncate {
                Truncate::To(tokens) => tokens,
                Truncate::ToFit => self.room_for_prompt(parameters),
            };
            tokens.drain(..tokens.len().saturating_sub(keep as usize));
        }
        Ok(tokens)
    }

    /// Variables of the template, each of which it reads.
    fn variables(&self, conversation: &Conversation) -> Result<Map<String, Value>, ApiError> {
        let mut variables = conversation.variables.clone();
        if let Some(unread) = variables.keys().find(|name| !self.text.template_reads(name)) {
            let param = format!("chat_template_kwargs.{unread}");
            return Err(ApiError::invalid(param, "is not a variable of the model's chat template"));
        }
        if let Some(tools) = conversation.tools.as_ref().filter(|_| self.text.template_reads("tools")) {
            variables.insert("tools".to_owned(), tools.to_json());
        }
        if conversation.ending == Ending::Message {
            variables.insert("add_generation_prompt".to_owned(), Value::Bool(false));
        }
        let Some(effort) = &conversation.effort else { return Ok(variables) };
        if self.text.template_reads("reasoning_effort") {
            variables.insert("reasoning_effort".to_owned(), Value::String(effort.value.clone()));
        } else if effort.value != "none" {
            return Err(ApiError::Unsupported { param: effort.param.to_owned() });
        } else if self.text.template_reads("enable_thinking") {
            variables.insert("enable_thinking".to_owned(), Value::Bool(false));
        }
        Ok(variables)
    }

    /// The messages of a conversation about tools, for a template that knows none.
    fn told_in_words(&self, conversation: &Conversation) -> Option<Value> {
        let is_call = |message: &Value| message["role"] == "tool" || message.get("tool_calls").is_some();
        let has_calls = conversation.messages.as_array().is_some_and(|all| all.iter().any(is_call));
        let is_needed = (has_calls || conversation.tools.is_some()) && !self.text.template_reads("tools");
        is_needed.then(|| tools::in_words(&conversation.messages, conversation.tools.as_ref()))
    }

    /// What answers must be, checked.
    fn grammar(&self, ask: &Ask) -> Result<Option<Arc<Grammar>>, ApiError> {
        let Parameters { grammar: asked, ignore_eos, .. } = &ask.parameters;
        let fit = match (asked, ask.tools()) {
            (Some(asked), Some(_)) => {
                let message = "excludes tools, unless `tool_choice` is none";
                return Err(ApiError::invalid(asked.param, message));
            }
            (_, Some(tools)) => tools::grammar(tools, CallForm::of(self.text), self.config)?,
            (_, None) => None,
        };
        let grammar = asked.clone().or(fit);
        if let Some(grammar) = &grammar {
            self.check_grammar(grammar, *ignore_eos)?;
        }
        Ok(grammar.map(|grammar| grammar.value))
    }

    /// Log-probabilities of a prompt of so many tokens that a call wants, beside those of others.
    fn told(&self, parameters: &Parameters, tokens: usize, others: usize) -> Result<usize, ApiError> {
        let Some(Named { value: told, param }) = parameters.told else { return Ok(0) };
        if told.start.is_some_and(|start| start as usize >= tokens) {
            return Err(ApiError::invalid(param, format!("is not within the prompt of {tokens} tokens")));
        }
        let wanted = (tokens - told.from(tokens)) * (told.top as usize + 1);
        let limit = self.config.max_prompt_logprobs;
        if wanted + others > limit {
            let message = format!("asks for more than {limit} values in all (frontend.max_prompt_logprobs)");
            return Err(ApiError::invalid(param, message));
        }
        Ok(wanted)
    }

    fn request(
        &self,
        id: RequestId,
        parameters: &Parameters,
        param: &str,
        tokens: Vec<u32>,
    ) -> Result<Request, ApiError> {
        let stop_token_ids = &parameters.stop_token_ids;
        self.check_vocabulary(stop_token_ids.param, &stop_token_ids.value)?;
        for bias in &parameters.sampling.logit_bias {
            self.check_vocabulary("logit_bias", &[bias.token])?;
        }
        let max_tokens = self.max_tokens(parameters, param, tokens.len())?;
        let min_tokens = parameters.min_tokens;
        if min_tokens.value > max_tokens {
            return Err(ApiError::invalid(
                min_tokens.param,
                format!("only {max_tokens} tokens are left for the answer"),
            ));
        }
        let prompt_logprobs = parameters.told.and_then(|Named { value: told, .. }| {
            let from = told.from(tokens.len());
            (from < tokens.len()).then_some(PromptLogprobs { from: from as u32, top: told.top })
        });
        let seed = if parameters.seeded { parameters.sampling.seed } else { random_seed()? };
        Ok(Request {
            id,
            model: self.model.name.clone(),
            tenant: self.tenant.to_owned(),
            tokens,
            sampling: Sampling { seed, ..parameters.sampling.clone() },
            stop: Stop {
                max_tokens,
                min_tokens: min_tokens.value,
                ignore_eos: parameters.ignore_eos,
                token_ids: stop_token_ids.value.clone(),
            },
            choices: parameters.choices,
            // Whoever is to choose the best has to see how likely they are.
            logprobs: parameters.logprobs.is_some() || parameters.best.is_some(),
            top_logprobs: parameters.logprobs.unwrap_or(0),
            prompt_logprobs,
            embedding: parameters.embedding,
            trace: String::new(),
            deadline: self.deadline(parameters),
        })
    }

    /// Time for the whole answer.
    fn deadline(&self, parameters: &Parameters) -> Duration {
        let limit = self.config.request_timeout();
        parameters.deadline.map_or(limit, |deadline| deadline.min(limit))
    }

    /// What the client asked for, or what the prompt leaves.
    fn max_tokens(
        &self,
        parameters: &Parameters,
        param: &str,
        prompt_tokens: usize,
    ) -> Result<u32, ApiError> {
        let input = self.input_limit();
        if prompt_tokens > input.tokens as usize {
            return Err(input.exceeded(param, format!("{prompt_tokens} prompt tokens")));
        }
        let total = self.total_limit();
        let left = (total.tokens as usize).saturating_sub(prompt_tokens) as u32;
        match parameters.max_tokens {
            // There is none.
            _ if parameters.embedding.is_some() => Ok(1),
            _ if left == 0 => {
                Err(total.exceeded(param, format!("{prompt_tokens} prompt tokens and an answer")))
            }
            Some(max) if max.value > left => Err(total.exceeded(
                max.param,
                format!("{prompt_tokens} prompt tokens and {} for the answer", max.value),
            )),
            Some(max) => Ok(max.value),
            None => Ok(left.min(parameters.usual_tokens)),
        }
    }

    /// Tokens of a prompt beside the answer that is asked for.
    fn room_for_prompt(&self, parameters: &Parameters) -> u32 {
        let answer = parameters.max_tokens.map_or(1, |max| max.value);
        self.total_limit().tokens.saturating_sub(answer).min(self.input_limit().tokens).max(1)
    }

    fn total_limit(&self) -> TokenLimit {
        TokenLimit::of(self.model).or_lower("frontend.max_total_tokens", self.config.max_total_tokens)
    }

    fn input_limit(&self) -> TokenLimit {
        self.total_limit().or_lower("frontend.max_input_tokens", self.config.max_input_tokens)
    }

    /// Refuses text that cannot fit before time is spent on tokenizing it.
    fn check_bytes(&self, param: &str, bytes: usize) -> Result<(), ApiError> {
        let limit = self.total_limit();
        if bytes / PROMPT_BYTES_PER_TOKEN < limit.tokens as usize {
            return Ok(());
        }
        Err(limit.exceeded(param, format!("{bytes} bytes of text")))
    }

    /// Refuses a grammar that no answer could be held to.
    fn check_grammar(&self, grammar: &grammars::Asked, ignore_eos: bool) -> Result<(), ApiError> {
        if ignore_eos {
            let message = format!("an answer within `{}` ends where it may not go on", grammar.param);
            return Err(ApiError::invalid("ignore_eos", message));
        }
        let compiled = self.text.grammars().and_then(|grammars| grammars.begin(&grammar.value));
        match compiled {
            Ok(_) => Ok(()),
            Err(error @ GrammarError::Vocabulary { .. }) => {
                warn!(%error, "cannot follow grammars with the text of a model");
                Err(ApiError::internal("the model's vocabulary cannot be used for grammars"))
            }
            Err(error @ GrammarError::Thread { .. }) => Err(ApiError::internal(error.to_string())),
            Err(error) => Err(ApiError::invalid(grammar.param, error.to_string())),
        }
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
