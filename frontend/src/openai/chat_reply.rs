//! The answer to a chat call.

use super::{
    logprobs::{ChatLogprobs, PromptLogprobs},
    shapes::{
        ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage, Envelope, FunctionCall, ToolCall, finish_word,
        stop_reason,
    },
    usage::Usage,
};
use crate::{
    error::ApiError,
    generation::{Delta, Used},
    parts::{Call, CallPart},
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// Writes it.
pub struct ChatReply {
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// Alternatives that are told of each token of the prompt; none: nothing is told of it.
    pub prompt_logprobs: Option<u32>,
}

// === impl ChatReply ===

impl ChatReply {
    fn write(
        &self,
        facts: &Facts,
        choice: &ChatChunkChoice<'_>,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        let usage = self.include_usage.then_some(None);
        events.data(&chunk(facts).with(std::slice::from_ref(choice), usage))
    }
}

impl Reply for ChatReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let choices: Vec<_> =
            answer.choices.iter().zip(0..).map(|(whole, index)| choice(facts, whole, index)).collect();
        let usage = Usage::of(&answer.used);
        let envelope = Envelope::new("chat.completion", "chatcmpl", facts);
        let mut object = envelope.with(&choices, Some(Some(&usage)));
        object.prompt_logprobs = PromptLogprobs::of(answer.used.first(), self.prompt_logprobs);
        serde_json::to_vec(&object)
    }

    /// Says who speaks.
    fn begin(&mut self, facts: &Facts, _: &[Used], events: &mut Events) -> serde_json::Result<()> {
        for index in 0..facts.choices {
            let delta = ChatDelta { role: Some("assistant"), content: Some(""), ..ChatDelta::default() };
            self.write(facts, &ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }, events)?;
        }
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        let index = delta.index;
        if !delta.thoughts.is_empty() {
            let thoughts = Some(delta.thoughts.as_str());
            let delta =
                ChatDelta { reasoning: thoughts, reasoning_content: thoughts, ..ChatDelta::default() };
            self.write(facts, &ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }, events)?;
        }
        if !delta.text.is_empty() || delta.token.is_some() {
            let logprobs = delta.token.is_some().then_some(ChatLogprobs(delta.token.as_slice()));
            let delta = ChatDelta { content: Some(&delta.text), ..ChatDelta::default() };
            let choice = ChatChunkChoice { index, delta, logprobs, ..ChatChunkChoice::default() };
            self.write(facts, &choice, events)?;
        }
        for part in &delta.calls {
            let tool_calls = vec![call_part(facts, index, part)];
            let delta = ChatDelta { tool_calls, ..ChatDelta::default() };
            self.write(facts, &ChatChunkChoice { index, delta, ..ChatChunkChoice::default() }, events)?;
        }
        let Some(end) = &delta.end else { return Ok(()) };
        let finish_reason = Some(finish_word(end));
        let stop_reason = stop_reason(end);
        let choice = ChatChunkChoice { index, finish_reason, stop_reason, ..ChatChunkChoice::default() };
        self.write(facts, &choice, events)
    }

    fn end(&mut self, facts: &Facts, used: &[Used], events: &mut Events) -> serde_json::Result<()> {
        if self.include_usage {
            let usage = Usage::of(used);
            events.data(&chunk(facts).with::<()>(&[], Some(Some(&usage))))?;
        }
        events.done();
        Ok(())
    }

    fn fail(&mut self, _: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.data(&error.body())
    }
}

fn chunk(facts: &Facts) -> Envelope<'_> {
    Envelope::new("chat.completion.chunk", "chatcmpl", facts)
}

fn call_part<'a>(facts: &Facts, choice: u32, part: &'a CallPart) -> ToolCall<'a> {
    let &CallPart { index, ref name, ref arguments } = part;
    ToolCall {
        index: Some(index),
        id: name.is_some().then(|| facts.call_id(choice, index)),
        r#type: name.is_some().then_some("function"),
        function: FunctionCall { name: name.as_deref(), arguments },
    }
}

fn choice<'a>(facts: &Facts, choice: &'a Choice, index: u32) -> ChatChoice<'a> {
    let call = |(call, number): (&'a Call, u32)| ToolCall {
        index: None,
        id: Some(facts.call_id(index, number)),
        r#type: Some("function"),
        function: FunctionCall { name: Some(&call.name), arguments: &call.arguments },
    };
    let is_said = choice.calls.is_empty() || !choice.text.is_empty();
    ChatChoice {
        index,
        message: ChatMessage {
            role: "assistant",
            content: is_said.then_some(choice.text.as_str()),
            refusal: None,
            reasoning: &choice.thoughts,
            reasoning_content: &choice.thoughts,
            tool_calls: choice.calls.iter().zip(0..).map(call).collect(),
        },
        logprobs: (!choice.tokens.is_empty()).then_some(ChatLogprobs(&choice.tokens)),
        finish_reason: choice.end.as_ref().map(finish_word),
        stop_reason: choice.end.as_ref().and_then(stop_reason),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use baton_model::ModelText;
    use baton_protocol::RequestId;
    use serde_json::Value;

    use super::*;

    #[test]
    fn thoughts_go_by_vllms_name_and_by_the_one_it_used_to_have() {
        let facts = Facts {
            id: RequestId(1),
            created: 0,
            model: "mock".into(),
            text: Arc::new(ModelText::mock()),
            seed: 0,
            choices: 1,
            max_tokens: 8,
            best: None,
            prompts: 1,
            tier: None,
        };
        let mut reply = ChatReply { include_usage: false, prompt_logprobs: None };
        let by = |words: &Value| (words["reasoning"].clone(), words["reasoning_content"].clone());
        for thoughts in ["so", ""] {
            let choice = Choice { text: "Yes.".into(), thoughts: thoughts.into(), ..Choice::default() };
            let whole = reply.whole(&facts, &Whole { choices: vec![choice], used: Vec::new() }).unwrap();
            let whole: Value = serde_json::from_slice(&whole).unwrap();
            let said = if thoughts.is_empty() { Value::Null } else { Value::from(thoughts) };
            assert_eq!(by(&whole["choices"][0]["message"]), (said.clone(), said));
        }
        let mut events = Events::default();
        let delta = Delta { thoughts: "so".into(), ..Delta::default() };
        reply.step(&facts, &delta, &mut events).unwrap();
        let chunk: Value = serde_json::from_slice(events.bytes().strip_prefix(b"data: ").unwrap()).unwrap();
        assert_eq!(by(&chunk["choices"][0]["delta"]), ("so".into(), "so".into()));
    }
}
