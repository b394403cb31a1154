//! What a step gave, and the tokens that are drawn from it.

use baton_protocol::{ErrorCode, Failure, FinishReason, Token};

use crate::{
    EngineMetrics, SequenceEvent,
    batch::{Draw, Row},
    sampler,
    sequence::{Origin, Sequence},
};

/// How tokens are drawn, besides what the request says.
pub(super) struct Rules {
    pub eos_tokens: Vec<u32>,
    pub metrics: EngineMetrics,
}

/// What came of a draw. The receiver knows already.
pub(super) enum Drawn {
    /// The choice goes on with this token.
    Token(u32),
    /// The choice ended.
    End,
    /// The model returned nothing to draw from: the request failed.
    Nothing,
}

// === impl Rules ===

impl Rules {
    /// How the next token is drawn, if that depends on the logits alone and nothing else is asked of it.
    pub fn plain(&self, sequence: &Sequence) -> Option<Draw> {
        let Origin { sampling, stop, logprobs, .. } = &*sequence.origin;
        let position = sequence.output_tokens();
        let is_plain = sampling.logit_bias.is_empty()
            && sampling.repetition_penalty == 1.0
            && sampling.presence_penalty == 0.0
            && sampling.frequency_penalty == 0.0
            && !logprobs
            && position >= stop.min_tokens as usize;
        let choice = sequence.choices.front().map_or(0, |choice| choice.choice);
        is_plain.then(|| sampler::plain(sampling, choice, position as u64))
    }

    /// Draws the token after `tokens` for one choice, and tells the receiver what came of it.
    pub fn draw(&self, origin: &Origin, tokens: &[u32], choice: u32, row: Option<Row<'_>>) -> Drawn {
        let Some((row, id)) = row.and_then(|row| Some((row, self.choose(origin, tokens, choice, row)?)))
        else {
            origin.fail(Failure::new(ErrorCode::Internal, "the model returned no usable logits"));
            return Drawn::Nothing;
        };
        if self.stops(origin).any(|stop| stop == id) {
            origin.emit(SequenceEvent::Finished { choice, reason: FinishReason::Stop });
            return Drawn::End;
        }
        let (logprob, top) = match row {
            Row::Logits(row) if origin.logprobs => {
                let (logprob, top) = sampler::logprobs(row, id, origin.top_logprobs as usize);
                (Some(logprob), top)
            }
            _ => (None, Vec::new()),
        };
        let position = (tokens.len() - origin.prompt_tokens) as u32;
        self.metrics.generation_tokens.inc();
        origin.emit(SequenceEvent::Token(Token { choice, position, id, logprob, top }));
        if tokens.len() + 1 < origin.end_tokens {
            return Drawn::Token(id);
        }
        origin.emit(SequenceEvent::Finished { choice, reason: FinishReason::Length });
        Drawn::End
    }

    fn choose(&self, origin: &Origin, tokens: &[u32], choice: u32, row: Row<'_>) -> Option<u32> {
        let row = match row {
            Row::Logits(row) => row,
            Row::Token(token) => return token,
        };
        let prompt_tokens = origin.prompt_tokens;
        let may_end = tokens.len() - prompt_tokens >= origin.stop.min_tokens as usize;
        let banned: Vec<u32> = if may_end { Vec::new() } else { self.stops(origin).collect() };
        let draw =
            sampler::Draw { sampling: &origin.sampling, choice, tokens, prompt_tokens, banned: &banned };
        sampler::draw(row, &draw)
    }

    /// Tokens that end an answer and are not emitted.
    fn stops<'a>(&'a self, origin: &'a Origin) -> impl Iterator<Item = u32> + 'a {
        let eos = if origin.stop.ignore_eos { &[] } else { self.eos_tokens.as_slice() };
        eos.iter().chain(&origin.stop.token_ids).copied()
    }
}
