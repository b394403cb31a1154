//! The answer to a completions call.

use super::{
    logprobs::CompletionLogprobs,
    shapes::{CompletionChoice, Envelope, finish_word, stop_reason},
    usage::Usage,
};
use crate::{
    ask::Content,
    error::ApiError,
    generation::{Delta, TokenWords, Used},
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// Writes it.
pub struct CompletionsReply {
    /// Whether a stream ends with the usage.
    include_usage: bool,
    /// Whether tokens are told; they are known too where the best choices are looked for.
    logprobs: bool,
    /// The prompts that come before their answers; none: none do.
    echoed: Vec<Content>,
    /// Shown of each prompt.
    choices: u32,
    /// Characters of token text so far, by choice.
    offsets: Vec<usize>,
}

// === impl CompletionsReply ===

impl CompletionsReply {
    /// Shows `echoed` before `choices` answers each.
    pub fn new(include_usage: bool, logprobs: bool, echoed: Vec<Content>, choices: u32) -> Self {
        Self { include_usage, logprobs, echoed, choices, offsets: Vec::new() }
    }

    /// The prompt before a choice, as text.
    fn echo(&self, facts: &Facts, index: u32) -> String {
        match self.echoed.get((index / self.choices) as usize) {
            Some(Content::Text { text, .. }) => text.clone(),
            Some(Content::Tokens(tokens)) => facts.text.decode(tokens),
            Some(Content::Chat(_)) | None => String::new(),
        }
    }

    fn choice<'a>(&self, choice: &'a Choice, text: &'a str, index: u32) -> CompletionChoice<'a> {
        let tokens = &choice.tokens;
        let logprobs =
            (self.logprobs && !tokens.is_empty()).then_some(CompletionLogprobs { tokens, offset: 0 });
        CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason: choice.end.as_ref().map(finish_word),
            stop_reason: choice.end.as_ref().and_then(stop_reason),
        }
    }

    fn write(
        &self,
        facts: &Facts,
        choice: &CompletionChoice<'_>,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        let usage = self.include_usage.then_some(None);
        events.data(&envelope(facts).with(std::slice::from_ref(choice), usage))
    }
}

impl Reply for CompletionsReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let echoes = (0..).map(|index| self.echo(facts, index));
        let texts: Vec<_> =
            answer.choices.iter().zip(echoes).map(|(choice, echo)| echo + &choice.text).collect();
        let choices = answer.choices.iter().zip(&texts).zip(0..);
        let choices: Vec<_> =
            choices.map(|((choice, text), index)| self.choice(choice, text, index)).collect();
        let usage = Usage::of(&answer.used);
        serde_json::to_vec(&envelope(facts).with(&choices, Some(Some(&usage))))
    }

    fn begin(&mut self, facts: &Facts, _: &[Used], events: &mut Events) -> serde_json::Result<()> {
        self.offsets = vec![0; facts.choices as usize];
        if self.echoed.is_empty() {
            return Ok(());
        }
        for index in 0..facts.choices {
            let text = &self.echo(facts, index);
            self.write(facts, &CompletionChoice { index, text, ..CompletionChoice::default() }, events)?;
        }
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        let index = delta.index;
        if !delta.text.is_empty() || delta.token.is_some() {
            let tokens = delta.token.as_slice();
            let offset = self.offsets[index as usize];
            let logprobs = (!tokens.is_empty()).then_some(CompletionLogprobs { tokens, offset });
            self.offsets[index as usize] += tokens.iter().map(TokenWords::chars).sum::<usize>();
            let text = &delta.text;
            self.write(
                facts,
                &CompletionChoice { index, text, logprobs, ..CompletionChoice::default() },
                events,
            )?;
        }
        let Some(end) = &delta.end else { return Ok(()) };
        let finish_reason = Some(finish_word(end));
        let stop_reason = stop_reason(end);
        let choice = CompletionChoice { index, finish_reason, stop_reason, ..CompletionChoice::default() };
        self.write(facts, &choice, events)
    }

    fn end(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        if self.include_usage {
            let usage = Usage::of(used);
            events.data(&envelope(facts).with::<()>(&[], Some(Some(&usage))))?;
        }
        events.done();
        Ok(())
    }

    fn fail(&mut self, _: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.data(&error.body())
    }
}

fn envelope(facts: &Facts) -> Envelope<'_> {
    Envelope::new("text_completion", "cmpl", facts)
}
