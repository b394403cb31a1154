//! Generated gRPC messages and stubs, and conversions to the crate's own types.
//! Everything that comes from a peer is checked here, once.

use std::{sync::Arc, time::Duration};

use crate as own;

#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
mod generated {
    tonic::include_proto!("baton.v1");
}
pub use generated::*;

/// A message that a peer of this protocol does not send.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {field}")]
pub struct Malformed {
    /// What was missing or out of range.
    pub field: &'static str,
}

const fn missing(field: &'static str) -> Malformed {
    Malformed { field }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === HandoffId ===

impl From<own::HandoffId> for HandoffId {
    fn from(id: own::HandoffId) -> Self {
        Self { request: id.request.to_bytes().to_vec().into(), attempt: id.attempt, leg: id.leg }
    }
}

impl TryFrom<HandoffId> for own::HandoffId {
    type Error = Malformed;

    fn try_from(id: HandoffId) -> Result<Self, Malformed> {
        let request = own::RequestId::from_bytes(&id.request).ok_or(missing("handoff id"))?;
        Ok(Self { request, attempt: id.attempt, leg: id.leg })
    }
}

// === KvShape ===

impl From<&own::KvShape> for KvShape {
    fn from(shape: &own::KvShape) -> Self {
        Self {
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype.as_str().to_owned(),
            page_tokens: shape.page_tokens,
        }
    }
}

impl TryFrom<&KvShape> for own::KvShape {
    type Error = Malformed;

    fn try_from(shape: &KvShape) -> Result<Self, Malformed> {
        let within = |value: u32, max: u32| (1..=max).contains(&value);
        if !within(shape.layers, 1024) || !within(shape.kv_heads, 1024) || !within(shape.head_dim, 4096) {
            return Err(missing("kv shape"));
        }
        if !within(shape.page_tokens, 1024) {
            return Err(missing("page tokens"));
        }
        Ok(Self {
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype.parse().map_err(|_| missing("kv dtype"))?,
            page_tokens: shape.page_tokens,
        })
    }
}

// === PageCounts ===

impl From<own::PageCounts> for PageCounts {
    fn from(c: own::PageCounts) -> Self {
        Self {
            free: c.free,
            cached: c.cached,
            running: c.running,
            receiving: c.receiving,
            sending: c.sending,
            quarantined: c.quarantined,
            total: c.total,
            promised: c.promised,
        }
    }
}

impl From<PageCounts> for own::PageCounts {
    fn from(c: PageCounts) -> Self {
        Self {
            free: c.free,
            cached: c.cached,
            running: c.running,
            receiving: c.receiving,
            sending: c.sending,
            quarantined: c.quarantined,
            total: c.total,
            promised: c.promised,
        }
    }
}

// === StepCost ===

impl From<own::StepCost> for StepCost {
    fn from(cost: own::StepCost) -> Self {
        let own::StepCost { base, unit, context } = cost;
        Self { base, unit, context }
    }
}

impl LoadReport {
    /// The node's step model; what cannot be believed counts as not said.
    pub fn step_model(&self) -> own::StepModel {
        let believed = |cost: &Option<StepCost>| {
            let StepCost { base, unit, context } = (*cost)?;
            Some(own::StepCost { base, unit, context }).filter(own::StepCost::is_sane)
        };
        own::StepModel { prefill: believed(&self.prefill_cost), decode: believed(&self.decode_cost) }
    }
}

// === PrefixChanges ===

/// Blocks named in one message, far below gRPC's limit for it.
const BLOCKS_IN_PART: usize = 4096;

impl PrefixChanges {
    /// Changes in parts of bounded size; `whole` when they are all that the
    /// cache holds. There is one part at least.
    pub fn parts(changes: &own::PrefixChanges, whole: bool) -> Vec<Self> {
        let of = |added: &[own::BlockHash], removed: &[own::BlockHash]| Self {
            after: changes.after,
            number: changes.after,
            whole: false,
            added: added.iter().flat_map(|hash| hash.0).collect(),
            removed: removed.iter().flat_map(|hash| hash.0).collect(),
        };
        let removed = changes.removed.chunks(BLOCKS_IN_PART).map(|removed| of(&[], removed));
        let added = changes.added.chunks(BLOCKS_IN_PART).map(|added| of(added, &[]));
        let mut parts: Vec<_> = removed.chain(added).collect();
        if parts.is_empty() {
            parts.push(of(&[], &[]));
        }
        parts[0].whole = whole;
        parts.last_mut().expect("there is a part").number = changes.number;
        parts
    }
}

impl TryFrom<&PrefixChanges> for own::PrefixChanges {
    type Error = Malformed;

    fn try_from(changes: &PrefixChanges) -> Result<Self, Malformed> {
        let hashes = |bytes: &[u8]| {
            let (hashes, rest) = bytes.as_chunks::<16>();
            if rest.is_empty() {
                Ok(hashes.iter().copied().map(own::BlockHash).collect())
            } else {
                Err(missing("blocks"))
            }
        };
        if changes.number < changes.after {
            return Err(missing("number of changes"));
        }
        Ok(Self {
            after: changes.after,
            number: changes.number,
            added: hashes(&changes.added)?,
            removed: hashes(&changes.removed)?,
        })
    }
}

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

// === Token ===

impl From<own::Token> for Token {
    fn from(token: own::Token) -> Self {
        Self {
            choice: token.choice,
            position: token.position,
            id: token.id,
            logprob: token.logprob,
            top: token.top.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Token> for own::Token {
    fn from(token: Token) -> Self {
        Self {
            choice: token.choice,
            position: token.position,
            id: token.id,
            logprob: token.logprob,
            top: token.top.into_iter().map(Into::into).collect(),
        }
    }
}

// === TopLogprob ===

impl From<own::TopLogprob> for TopLogprob {
    fn from(own::TopLogprob { id, logprob }: own::TopLogprob) -> Self {
        Self { id, logprob }
    }
}

impl From<TopLogprob> for own::TopLogprob {
    fn from(TopLogprob { id, logprob }: TopLogprob) -> Self {
        Self { id, logprob }
    }
}

// === PromptPart ===

impl From<own::PromptPart> for PromptPart {
    fn from(part: own::PromptPart) -> Self {
        let token = |own::PromptToken { logprob, rank, top }| PromptToken {
            logprob,
            rank,
            top: top.into_iter().map(Into::into).collect(),
        };
        Self { first: part.first, tokens: part.tokens.into_iter().map(token).collect() }
    }
}

impl TryFrom<PromptPart> for own::PromptPart {
    type Error = Malformed;

    fn try_from(part: PromptPart) -> Result<Self, Malformed> {
        if part.tokens.is_empty() {
            return Err(missing("tokens of a prompt"));
        }
        let token = |PromptToken { logprob, rank, top }| own::PromptToken {
            logprob,
            rank,
            top: top.into_iter().map(Into::into).collect(),
        };
        Ok(Self { first: part.first, tokens: part.tokens.into_iter().map(token).collect() })
    }
}

// === Failure ===

impl From<own::Failure> for Failure {
    fn from(failure: own::Failure) -> Self {
        Self {
            code: failure.code.as_str().to_owned(),
            message: failure.message,
            retry_after_ms: failure.retry_after.map_or(0, millis),
        }
    }
}

impl From<Failure> for own::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code.parse().unwrap_or(own::ErrorCode::Internal),
            message: failure.message,
            retry_after: (failure.retry_after_ms > 0).then(|| Duration::from_millis(failure.retry_after_ms)),
        }
    }
}

// === Bill ===

impl From<own::Bill> for Bill {
    fn from(bill: own::Bill) -> Self {
        Self {
            queue_us: micros(bill.queue),
            prefill_us: micros(bill.prefill),
            transfer_us: micros(bill.transfer),
            exposed_us: micros(bill.exposed),
            decode_us: micros(bill.decode),
            transfer_bytes: bill.transfer_bytes,
            transfer_pages: bill.transfer_pages,
            cached_tokens: bill.cached_tokens,
            prefill_node: bill.prefill_node.map_or_else(String::new, |node| node.0),
            repaired_frames: bill.repaired_frames,
        }
    }
}

impl From<Bill> for own::Bill {
    fn from(bill: Bill) -> Self {
        Self {
            queue: Duration::from_micros(bill.queue_us),
            prefill: Duration::from_micros(bill.prefill_us),
            transfer: Duration::from_micros(bill.transfer_us),
            exposed: Duration::from_micros(bill.exposed_us),
            decode: Duration::from_micros(bill.decode_us),
            transfer_bytes: bill.transfer_bytes,
            transfer_pages: bill.transfer_pages,
            cached_tokens: bill.cached_tokens,
            prefill_node: (!bill.prefill_node.is_empty()).then_some(own::NodeId(bill.prefill_node)),
            repaired_frames: bill.repaired_frames,
        }
    }
}

// === Event ===

impl From<own::Event> for GenerateDown {
    fn from(event: own::Event) -> Self {
        use generate_down::Message;
        let message = match event {
            own::Event::Accepted { cached_tokens } => Message::Accepted(Accepted { cached_tokens }),
            own::Event::Prompt(part) => Message::Prompt(part.into()),
            own::Event::Embedding(values) => Message::Embedding(Embedding { values }),
            own::Event::Token(token) => Message::Token(token.into()),
            own::Event::Finished { choice, reason } => {
                let reason = match reason {
                    own::FinishReason::Stop => FinishReason::Stop,
                    own::FinishReason::Length => FinishReason::Length,
                };
                Message::Finished(ChoiceFinished { choice, reason: reason.into() })
            }
            own::Event::Bill(bill) => Message::Bill(bill.into()),
            own::Event::Failed(failure) => Message::Failure(failure.into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<GenerateDown> for own::Event {
    type Error = Malformed;

    fn try_from(down: GenerateDown) -> Result<Self, Malformed> {
        use generate_down::Message;
        Ok(match down.message.ok_or(missing("event"))? {
            Message::Accepted(accepted) => Self::Accepted { cached_tokens: accepted.cached_tokens },
            Message::Prompt(part) => Self::Prompt(part.try_into()?),
            Message::Embedding(embedding) => Self::Embedding(embedding.values),
            Message::Token(token) => Self::Token(token.into()),
            Message::Finished(finished) => {
                let reason = match finished.reason() {
                    FinishReason::Stop => own::FinishReason::Stop,
                    FinishReason::Length => own::FinishReason::Length,
                    FinishReason::Unspecified => return Err(missing("finish reason")),
                };
                Self::Finished { choice: finished.choice, reason }
            }
            Message::Bill(bill) => Self::Bill(bill.into()),
            Message::Failure(failure) => Self::Failed(failure.into()),
        })
    }
}
