//! What a node answers: tokens, ends, failures, the bill.

use std::time::Duration;

use super::{
    Accepted, Bill, BrokeOff, ChoiceFinished, Computing, Embedding, Failure, FinishReason, GenerateDown,
    Malformed, PromptPart, PromptToken, Token, TopLogprob, generate_down, micros, millis, missing, own,
};

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
            earlier: Duration::ZERO,
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
            own::Event::Computing { node, cached_tokens } => {
                let node = node.map_or_else(String::new, |node| node.0);
                Message::Computing(Computing { node, cached_tokens })
            }
            own::Event::BrokeOff { node } => Message::BrokeOff(BrokeOff { node: node.0 }),
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
            Message::Computing(Computing { node, cached_tokens }) => {
                Self::Computing { node: (!node.is_empty()).then_some(own::NodeId(node)), cached_tokens }
            }
            Message::BrokeOff(BrokeOff { node }) => Self::BrokeOff { node: own::NodeId(node) },
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
