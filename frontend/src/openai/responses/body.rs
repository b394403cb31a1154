//! The body of a call.

use std::sync::Arc;

use baton_protocol::Sampling;
use serde_json::{Map, Value, json};

use super::{
    given, input,
    reply::{Keep, ResponseReply},
    store::Responses,
};
use crate::{
    Config,
    ask::{Ask, Call, Content, Conversation, Ending, Named, Parameters, Prompt},
    error::ApiError,
    fields::Fields,
    grammars,
    openai::parameters,
    tools::{self, Tools},
};

/// What is asked for.
pub struct Asked {
    model: String,
    instructions: Option<String>,
    /// As messages.
    input: Vec<Value>,
    /// The same as items, if it is to be kept.
    given: Vec<Value>,
    /// The answer that it goes on from.
    previous: Option<String>,
    store: bool,
    parameters: Parameters,
    tools: Option<Tools>,
    effort: Option<Named<String>>,
    /// Fields that the answer says back.
    said: Map<String, Value>,
}

/// What an answer says back, and what it says where nothing was said.
fn said_back(object: &Map<String, Value>) -> Map<String, Value> {
    let usual = json!({
        "background": false,
        "instructions": null,
        "max_output_tokens": null,
        "max_tool_calls": null,
        "metadata": {},
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "prompt_cache_key": null,
        "reasoning": { "effort": null, "summary": null },
        "safety_identifier": null,
        "service_tier": "default",
        "store": true,
        "temperature": 1.0,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": null,
    });
    let Value::Object(usual) = usual else { return Map::new() };
    let said = usual.into_iter().map(|(name, usual)| {
        let given = object.get(&name).filter(|value| !value.is_null() && **value != "auto");
        let said = given.cloned().unwrap_or(usual);
        (name, said)
    });
    said.collect()
}

/// Reads a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Asked, ApiError> {
    let mut said = said_back(&object);
    let mut body = Fields::of_body(object);
    let model = parameters::model(&mut body)?;
    bookkeeping(&mut body)?;
    let plain = Sampling::default();
    let sampling = Sampling {
        temperature: body.number("temperature", 0.0..=2.0)?.unwrap_or(plain.temperature),
        top_p: body.positive("top_p", 1.0)?.unwrap_or(plain.top_p),
        ..plain
    };
    let mut text = body.object("text")?;
    let grammar = grammars::of_responses(&mut text, config)?;
    text.only("verbosity", &[json!("medium")])?;
    text.finish()?;
    if said["text"].get("format").is_none() {
        said["text"]["format"] = json!({ "type": "text" });
    }
    let max_tokens = body.integer("max_output_tokens", 1..=u32::MAX)?;
    let parameters = Parameters {
        sampling,
        grammar,
        max_tokens: max_tokens.map(|value| Named { value, param: "max_output_tokens" }),
        logprobs: logprobs(&mut body, config)?,
        stream: streaming(&mut body)?,
        tier: parameters::tier(&mut body)?,
        ..Parameters::default()
    };
    let mut reasoning = body.object("reasoning")?;
    let effort = parameters::effort(&mut reasoning, "effort", "reasoning.effort")?;
    reasoning.finish()?;
    let (store, said_now) = (body.boolean_or("store", true)?, body.require("input")?);
    let given = if store { given::items(said_now.clone()) } else { Vec::new() };
    let asked = Asked {
        model,
        instructions: body.string("instructions")?,
        input: input::read(said_now, config)?,
        given,
        previous: body.string("previous_response_id")?,
        store,
        parameters,
        tools: tools::read_responses(&mut body, config)?,
        effort,
        said,
    };
    body.finish()?;
    Ok(asked)
}

/// What a call may hold that only counts the tokens of another.
const COUNTED: [&str; 10] = [
    "input",
    "instructions",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
];

/// Reads the body of a call that only counts.
///
/// # Errors
/// As [`read`], and when it holds what makes no difference to the count.
pub fn read_count(mut object: Map<String, Value>, config: &Config) -> Result<Asked, ApiError> {
    if let Some(param) = object.keys().find(|field| !COUNTED.contains(&field.as_str())) {
        return Err(ApiError::Unsupported { param: param.clone() });
    }
    object.insert("store".to_owned(), Value::Bool(false));
    read(object, config)
}

/// Fields that ask for nothing we could do differently.
fn bookkeeping(body: &mut Fields) -> Result<(), ApiError> {
    for notes in ["user", "safety_identifier", "prompt_cache_key"] {
        body.string(notes)?;
    }
    body.object("metadata")?;
    body.only("truncation", &[json!("disabled")])?;
    body.only("background", &[json!(false)])
}

fn streaming(body: &mut Fields) -> Result<bool, ApiError> {
    let stream = body.boolean("stream")?;
    let Some(options) = body.take("stream_options") else { return Ok(stream) };
    if !stream {
        return Err(body.invalid("stream_options", "needs `stream` to be true"));
    }
    let mut options = Fields::of_value(options, "stream_options".into())?;
    options.only("include_obfuscation", &[json!(false)])?;
    options.finish()?;
    Ok(stream)
}

/// They are told if they are to be included.
fn logprobs(body: &mut Fields, config: &Config) -> Result<Option<u32>, ApiError> {
    let top = body.limited("top_logprobs", 0..=config.max_logprobs, "max_logprobs")?;
    let mut included = false;
    for (i, include) in body.array("include")?.iter().enumerate() {
        match include.as_str() {
            Some("message.output_text.logprobs") => included = true,
            Some(_) => return Err(ApiError::Unsupported { param: format!("include[{i}]") }),
            None => return Err(ApiError::invalid(format!("include[{i}]"), "must be a string")),
        }
    }
    if top.is_some_and(|top| top > 0) && !included {
        let message = "needs `include` to hold message.output_text.logprobs";
        return Err(body.invalid("top_logprobs", message));
    }
    Ok(included.then_some(top.unwrap_or(0)))
}

// === impl Asked ===

impl Asked {
    /// The call that goes on from what is kept.
    ///
    /// # Errors
    /// When that is not there, or a result of a tool answers no call.
    pub fn call(self, kept: &Arc<Responses>, tenant: &str) -> Result<Call, ApiError> {
        let mut messages = match &self.previous {
            None => Vec::new(),
            Some(id) => {
                let before = kept.get(tenant, id).ok_or_else(|| {
                    ApiError::invalid("previous_response_id", format!("no response `{id}` is kept"))
                })?;
                before.messages.clone()
            }
        };
        messages.extend(self.input);
        tools::name_results(&mut messages, "input")?;
        let told = input::told(self.instructions, &messages);
        let conversation = Conversation {
            bytes: tools::bytes(&told, self.tools.as_ref()),
            messages: Value::Array(told),
            tools: self.tools,
            ending: Ending::Answer,
            variables: Map::new(),
            effort: self.effort,
        };
        let keep = self.store.then(|| Keep {
            kept: Arc::clone(kept),
            tenant: tenant.to_owned(),
            messages,
            given: self.given,
        });
        let content = Content::Chat(Box::new(conversation));
        let prompt = Prompt { param: "input".to_owned(), content, truncate: None };
        let ask = Ask { model: Some(self.model), prompts: vec![prompt], parameters: self.parameters };
        Ok(Call { ask, reply: Box::new(ResponseReply::new(self.said, keep)) })
    }
}
