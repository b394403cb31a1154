//! Parameters that chat and completions calls share.

use baton_protocol::{LogitBias, Sampling};
use serde_json::{Value, json};

use crate::{error::ApiError, fields::Fields};

/// How to generate, as the client asked; token ids are not yet checked against a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub model: String,
    /// The seed in it counts only if `seeded`.
    pub sampling: Sampling,
    pub seeded: bool,
    pub max_tokens: Option<MaxTokens>,
    pub min_tokens: u32,
    pub ignore_eos: bool,
    pub stop_token_ids: Vec<u32>,
    pub stop_strings: Vec<String>,
    pub choices: u32,
    pub delivery: Delivery,
}

/// A limit, and the name under which the client gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxTokens {
    pub tokens: u32,
    pub param: &'static str,
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One JSON object at the end.
    Whole,
    /// Server-sent events.
    Stream {
        /// Whether the last event tells the usage.
        include_usage: bool,
    },
}

const MAX_STOP_STRINGS: usize = 4;
const MAX_STOP_BYTES: usize = 256;
const MAX_STOP_TOKEN_IDS: usize = 64;
const MAX_LOGIT_BIASES: usize = 1024;

// === impl Parameters ===

impl Parameters {
    /// Takes the shared fields out of a body.
    pub fn read(body: &mut Fields, max_choices: u32) -> Result<Self, ApiError> {
        bookkeeping(body)?;
        let model = match body.require("model")? {
            Value::String(model) => model,
            _ => return Err(ApiError::invalid("model", "must be a string")),
        };
        let seed = seed(body)?;
        let choices = body.integer("n", 1..=max_choices)?.unwrap_or(1);
        let max_tokens = max_tokens(body)?;
        let min_tokens = body.integer("min_tokens", 0..=u32::MAX)?.unwrap_or(0);
        if max_tokens.is_some_and(|max| max.tokens < min_tokens) {
            return Err(ApiError::invalid("min_tokens", "must not exceed the maximum of tokens"));
        }
        Ok(Self {
            model,
            sampling: Sampling { seed: seed.unwrap_or(0), ..sampling(body)? },
            seeded: seed.is_some(),
            max_tokens,
            min_tokens,
            ignore_eos: body.boolean("ignore_eos")?,
            stop_token_ids: stop_token_ids(body)?,
            stop_strings: stop_strings(body)?,
            choices,
            delivery: delivery(body)?,
        })
    }

    /// With the texts that end an answer of the model. Like its tokens that do, they can be ignored.
    pub fn ending_with(mut self, ends: &[&str]) -> Self {
        if !self.ignore_eos {
            self.stop_strings.extend(ends.iter().map(|&end| end.to_owned()));
        }
        self
    }
}

/// Fields that ask for nothing we could do differently: notes of the client to itself.
fn bookkeeping(body: &mut Fields) -> Result<(), ApiError> {
    body.string("user")?;
    body.string("safety_identifier")?;
    if let Some(metadata) = body.take("metadata") {
        Fields::of_value(metadata, "metadata".into())?;
    }
    body.only("store", &[json!(false)])?;
    body.only("service_tier", &[json!("auto"), json!("default")])
}

fn sampling(body: &mut Fields) -> Result<Sampling, ApiError> {
    let plain = Sampling::default();
    Ok(Sampling {
        temperature: body.number("temperature", 0.0..=2.0)?.unwrap_or(plain.temperature),
        top_k: top_k(body)?,
        top_p: body.positive("top_p", 1.0)?.unwrap_or(plain.top_p),
        min_p: body.number("min_p", 0.0..=1.0)?.unwrap_or(plain.min_p),
        repetition_penalty: body.positive("repetition_penalty", 10.0)?.unwrap_or(plain.repetition_penalty),
        presence_penalty: body.number("presence_penalty", -2.0..=2.0)?.unwrap_or(plain.presence_penalty),
        frequency_penalty: body.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(plain.frequency_penalty),
        logit_bias: logit_bias(body)?,
        seed: plain.seed,
    })
}

/// vLLM's clients turn it off with -1, others with 0.
fn top_k(body: &mut Fields) -> Result<u32, ApiError> {
    let Some(value) = body.take("top_k") else { return Ok(0) };
    match value.as_i64() {
        Some(-1) => Ok(0),
        Some(k) if (0..=i64::from(u32::MAX)).contains(&k) => Ok(k as u32),
        _ => Err(body.invalid("top_k", "must be a positive integer, or -1 or 0 to turn it off")),
    }
}

/// Any 64-bit integer, with or without sign.
fn seed(body: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = body.take("seed") else { return Ok(None) };
    match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
        Some(seed) => Ok(Some(seed)),
        None => Err(body.invalid("seed", "must be a 64-bit integer")),
    }
}

/// OpenAI renamed this one; both names hold, together only if they agree.
fn max_tokens(body: &mut Fields) -> Result<Option<MaxTokens>, ApiError> {
    let mut read = |param: &'static str| -> Result<Option<MaxTokens>, ApiError> {
        Ok(body.integer(param, 1..=u32::MAX)?.map(|tokens| MaxTokens { tokens, param }))
    };
    match (read("max_completion_tokens")?, read("max_tokens")?) {
        (Some(new), Some(old)) if new.tokens != old.tokens => {
            Err(ApiError::invalid("max_tokens", "differs from `max_completion_tokens`"))
        }
        (new, old) => Ok(new.or(old)),
    }
}

fn logit_bias(body: &mut Fields) -> Result<Vec<LogitBias>, ApiError> {
    let Some(value) = body.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(entries) = value else {
        return Err(body.invalid("logit_bias", "must be an object of token ids and numbers"));
    };
    if entries.len() > MAX_LOGIT_BIASES {
        return Err(body.invalid("logit_bias", format!("must have at most {MAX_LOGIT_BIASES} entries")));
    }
    let mut biases: Vec<LogitBias> = Vec::with_capacity(entries.len());
    for (token, bias) in entries {
        let param = format!("logit_bias.{token}");
        let token = token.parse().map_err(|_| ApiError::invalid(&param, "must be named by a token id"))?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| ApiError::invalid(&param, "must be a number from -100 to 100"))?;
        if biases.iter().any(|other| other.token == token) {
            return Err(ApiError::invalid(param, "given twice"));
        }
        biases.push(LogitBias { token, bias: bias as f32 });
    }
    Ok(biases)
}

fn stop_token_ids(body: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let ids = body.array("stop_token_ids")?;
    if ids.len() > MAX_STOP_TOKEN_IDS {
        return Err(body.invalid("stop_token_ids", format!("must have at most {MAX_STOP_TOKEN_IDS} entries")));
    }
    token_ids(&ids, "stop_token_ids")
}

/// Token ids of an array.
pub fn token_ids(ids: &[Value], param: &str) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    ids.iter().map(id).collect::<Option<_>>().ok_or_else(|| ApiError::invalid(param, "must hold token ids"))
}

fn stop_strings(body: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match body.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => stops
            .into_iter()
            .map(|stop| if let Value::String(stop) = stop { Some(stop) } else { None })
            .collect::<Option<_>>()
            .ok_or_else(|| ApiError::invalid("stop", "must hold strings"))?,
        Some(_) => return Err(ApiError::invalid("stop", "must be a string or an array of strings")),
    };
    if stops.len() > MAX_STOP_STRINGS {
        return Err(ApiError::invalid("stop", format!("must have at most {MAX_STOP_STRINGS} strings")));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid("stop", format!("strings must have 1 to {MAX_STOP_BYTES} bytes")));
    }
    Ok(stops)
}

fn delivery(body: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = body.boolean("stream")?;
    let options = body.take("stream_options");
    match (stream, options) {
        (false, None) => Ok(Delivery::Whole),
        (false, Some(_)) => Err(ApiError::invalid("stream_options", "needs `stream` to be true")),
        (true, None) => Ok(Delivery::Stream { include_usage: false }),
        (true, Some(options)) => {
            let mut options = Fields::of_value(options, "stream_options".into())?;
            let include_usage = options.boolean("include_usage")?;
            options.only("include_obfuscation", &[json!(false)])?;
            options.finish()?;
            Ok(Delivery::Stream { include_usage })
        }
    }
}
