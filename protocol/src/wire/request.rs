//! Requests on their way to a node.

use std::{sync::Arc, time::Duration};

use super::{
    Grammar, GrammarKind, LogitBias, Malformed, Pooling, PromptLogprobs, Request, Sampling, Stop, millis,
    missing, own,
};

// === Request ===

/// A `traceparent` has 55; later versions of it may have more.
const MAX_TRACE_BYTES: usize = 256;

impl From<&own::Request> for Request {
    fn from(request: &own::Request) -> Self {
        let sampling = &request.sampling;
        let bias = |b: &own::LogitBias| LogitBias { token: b.token, bias: b.bias };
        Self {
            id: request.id.to_bytes().to_vec().into(),
            model: request.model.clone(),
            tenant: request.tenant.clone(),
            tokens: request.tokens.clone(),
            sampling: Some(Sampling {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                logit_bias: sampling.logit_bias.iter().map(bias).collect(),
                seed: sampling.seed,
                grammar: sampling.grammar.as_deref().map(Into::into),
            }),
            stop: Some(Stop {
                max_tokens: request.stop.max_tokens,
                min_tokens: request.stop.min_tokens,
                ignore_eos: request.stop.ignore_eos,
                token_ids: request.stop.token_ids.clone(),
            }),
            choices: request.choices,
            logprobs: request.logprobs,
            top_logprobs: request.top_logprobs,
            prompt_logprobs: request
                .prompt_logprobs
                .map(|own::PromptLogprobs { from, top }| PromptLogprobs { from, top }),
            embedding: request.embedding.map_or(Pooling::Unspecified, Into::into).into(),
            deadline_ms: millis(request.deadline),
            trace: request.trace.clone(),
        }
    }
}

impl TryFrom<Request> for own::Request {
    type Error = Malformed;

    fn try_from(request: Request) -> Result<Self, Malformed> {
        let embedding = Pooling::try_from(request.embedding).map_err(|_| missing("pooling"))?.into();
        let sampling = request.sampling.ok_or(missing("sampling"))?;
        let stop = request.stop.ok_or(missing("stop"))?;
        if request.tokens.is_empty() {
            return Err(missing("tokens"));
        }
        if request.trace.len() > MAX_TRACE_BYTES {
            return Err(missing("trace of a length that one has"));
        }
        if request.choices == 0 || stop.max_tokens == 0 {
            return Err(missing("choices or max_tokens"));
        }
        if request.prompt_logprobs.is_some_and(|asked| asked.from == 0) {
            return Err(missing("first token of prompt log-probabilities"));
        }
        let bias = |b: LogitBias| own::LogitBias { token: b.token, bias: b.bias };
        Ok(Self {
            id: own::RequestId::from_bytes(&request.id).ok_or(missing("request id"))?,
            model: request.model,
            tenant: request.tenant,
            tokens: request.tokens,
            sampling: own::Sampling {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                logit_bias: sampling.logit_bias.into_iter().map(bias).collect(),
                seed: sampling.seed,
                grammar: sampling.grammar.map(|grammar| grammar.try_into().map(Arc::new)).transpose()?,
            },
            stop: own::Stop {
                max_tokens: stop.max_tokens,
                min_tokens: stop.min_tokens,
                ignore_eos: stop.ignore_eos,
                token_ids: stop.token_ids,
            },
            choices: request.choices,
            logprobs: request.logprobs,
            top_logprobs: request.top_logprobs,
            prompt_logprobs: request
                .prompt_logprobs
                .map(|PromptLogprobs { from, top }| own::PromptLogprobs { from, top }),
            embedding,
            deadline: Duration::from_millis(request.deadline_ms),
            trace: request.trace,
        })
    }
}

// === Pooling ===

impl From<own::Pooling> for Pooling {
    fn from(pooling: own::Pooling) -> Self {
        match pooling {
            own::Pooling::Mean => Self::Mean,
            own::Pooling::Last => Self::Last,
        }
    }
}

impl From<Pooling> for Option<own::Pooling> {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::Unspecified => None,
            Pooling::Mean => Some(own::Pooling::Mean),
            Pooling::Last => Some(own::Pooling::Last),
        }
    }
}

// === Grammar ===

impl From<&own::Grammar> for Grammar {
    fn from(grammar: &own::Grammar) -> Self {
        let kind = match grammar.kind {
            own::GrammarKind::Json => GrammarKind::Json,
            own::GrammarKind::Regex => GrammarKind::Regex,
            own::GrammarKind::Lark => GrammarKind::Lark,
        };
        Self { kind: kind.into(), source: grammar.source.clone() }
    }
}

impl TryFrom<Grammar> for own::Grammar {
    type Error = Malformed;

    fn try_from(grammar: Grammar) -> Result<Self, Malformed> {
        let kind = match grammar.kind() {
            GrammarKind::Json => own::GrammarKind::Json,
            GrammarKind::Regex => own::GrammarKind::Regex,
            GrammarKind::Lark => own::GrammarKind::Lark,
            GrammarKind::Unspecified => return Err(missing("kind of grammar")),
        };
        if grammar.source.len() > Self::MAX_BYTES {
            return Err(missing("length of grammar"));
        }
        Ok(Self { kind, source: grammar.source })
    }
}
