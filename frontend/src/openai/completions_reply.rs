//! The answer to a completions call.

use super::{
    logprobs::{CompletionLogprobs, PromptLogprobs},
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
    pub include_usage: bool,
    /// Alternatives that are told of tokens, if anything is; tokens are known too where the best
    /// choices are looked for.
    pub logprobs: Option<u32>,
    /// The same of the prompt's, in vLLM's words.
    pub prompt_logprobs: Option<u32>,
    /// The prompts that come before their answers; none: none do.
    pub echoed: Vec<Content>,
    /// Shown of each prompt.
    pub choices: u32,
    /// Characters of token text so far, by choice of a stream.
    pub offsets: Vec<usize>,
}

// === impl CompletionsReply ===

impl CompletionsReply {
    /// The prompt before a choice, as text.
    fn echo(&self, facts: &Facts, index: u32) -> String {
        match self.echoed.get((index / self.choices) as usize) {
            Some(Content::Text { text, .. }) => text.clone(),
            Some(Content::Tokens(tokens)) => facts.text.decode(tokens),
            Some(Content::Chat(_)) | None => String::new(),
        }
    }

    /// What is told of tokens that stand behind `offset` characters, and of the prompt before
    /// them if it is shown there.
    fn told<'a>(
        &self,
        prompt: Option<&'a Used>,
        tokens: &'a [TokenWords],
        offset: usize,
    ) -> Option<CompletionLogprobs<'a>> {
        let top = self.logprobs? as usize;
        let prompt =
            prompt.filter(|_| !self.echoed.is_empty()).map_or(&[][..], |used| used.prompt.as_slice());
        (!tokens.is_empty() || !prompt.is_empty()).then_some(CompletionLogprobs {
            prompt,
            tokens,
            offset,
            top,
        })
    }

    /// A choice of a prompt, with the prompt's text before its own.
    fn choice<'a>(
        &self,
        (used, echo): (Option<&'a Used>, &str),
        choice: &'a Choice,
        (index, text): (u32, &'a str),
    ) -> CompletionChoice<'a> {
        CompletionChoice {
            index,
            text,
            logprobs: self.told(used, &choice.tokens, echo.chars().count()),
            prompt_logprobs: PromptLogprobs::of(used, self.prompt_logprobs),
            finish_reason: choice.end.as_ref().map(finish_word),
            stop_reason: choice.end.as_ref().and_then(stop_reason),
        }
    }

    fn used<'a>(&self, used: &'a [Used], index: u32) -> Option<&'a Used> {
        used.get((index / self.choices) as usize)
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
        let echoes: Vec<_> = (0..).zip(&answer.choices).map(|(index, _)| self.echo(facts, index)).collect();
        let texts: Vec<_> =
            answer.choices.iter().zip(&echoes).map(|(choice, echo)| echo.clone() + &choice.text).collect();
        let choices: Vec<_> = (0..)
            .zip(&answer.choices)
            .zip(echoes.iter().zip(&texts))
            .map(|((index, choice), (echo, text))| {
                self.choice((self.used(&answer.used, index), echo), choice, (index, text))
            })
            .collect();
        let usage = Usage::of(&answer.used);
        serde_json::to_vec(&envelope(facts).with(&choices, Some(Some(&usage))))
    }

    fn begin(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        self.offsets = vec![0; facts.choices as usize];
        if self.echoed.is_empty() {
            return Ok(());
        }
        for index in 0..facts.choices {
            let text = &self.echo(facts, index);
            self.offsets[index as usize] = text.chars().count();
            let logprobs = self.told(self.used(used, index), &[], 0);
            let choice = CompletionChoice { index, text, logprobs, ..CompletionChoice::default() };
            self.write(facts, &choice, events)?;
        }
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        let index = delta.index;
        if !delta.text.is_empty() || delta.token.is_some() {
            let tokens = delta.token.as_slice();
            let offset = self.offsets[index as usize];
            let logprobs = self.told(None, tokens, offset);
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
