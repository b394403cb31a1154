//! Parameters that chat and completions calls share: OpenAI's, and what vLLM adds to them.

use baton_protocol::{LogitBias, Sampling};
use serde_json::{Value, json};

use crate::{
    Config,
    ask::{Named, Parameters, Tier, Told, Truncate},
    error::ApiError,
    fields::Fields,
    grammars,
};

/// How the answer is sent.
pub struct Streaming {
    pub stream: bool,
    /// Whether the last event tells the usage.
    pub include_usage: bool,
}

/// Takes the shared fields out of a body; the answer may be shorter than one token if it `may_be_empty`.
///
/// # Errors
/// The first field that is wrong or unsupported.
pub fn read(body: &mut Fields, config: &Config, may_be_empty: bool) -> Result<Parameters, ApiError> {
    bookkeeping(body)?;
    harmless(body)?;
    let seed = seed(body, "seed")?;
    let max_tokens = max_tokens(body, u32::from(!may_be_empty))?;
    let min_tokens = body.integer("min_tokens", 0..=u32::MAX)?.unwrap_or(0);
    if max_tokens.is_some_and(|max| max.value < min_tokens) {
        return Err(ApiError::invalid("min_tokens", "must not exceed the maximum of tokens"));
    }
    let (max_tokens, hides_answer) = at_least_one(max_tokens);
    Ok(Parameters {
        sampling: Sampling {
            seed: seed.unwrap_or(0),
            logit_bias: logit_bias(body, config)?,
            ..sampling(body)?
        },
        seeded: seed.is_some(),
        grammar: grammars::of_openai(body, config)?,
        max_tokens,
        hides_answer,
        told: prompt_logprobs(body, config)?,
        min_tokens: Named { value: min_tokens, param: "min_tokens" },
        ignore_eos: body.boolean("ignore_eos")?,
        stop_token_ids: stop_token_ids(body, "stop_token_ids", config)?,
        stop_strings: stop_strings(body, "stop", config)?,
        // vLLM's name and SGLang's.
        shows_stop: body.boolean("include_stop_str_in_output")? | body.boolean("no_stop_trim")?,
        spells_control: !body.boolean_or("skip_special_tokens", true)?,
        tier: tier(body)?,
        choices: body.limited("n", 1..=config.max_choices, "max_choices")?.unwrap_or(1),
        ..Parameters::default()
    })
}

/// The model's name.
///
/// # Errors
/// When it is not there.
pub fn model(body: &mut Fields) -> Result<String, ApiError> {
    match body.require("model")? {
        Value::String(model) => Ok(model),
        _ => Err(body.invalid("model", "must be a string")),
    }
}

/// How the answer is to be sent.
///
/// # Errors
/// When the options are wrong or there without a stream.
pub fn streaming(body: &mut Fields) -> Result<Streaming, ApiError> {
    let stream = body.boolean("stream")?;
    let Some(options) = body.take("stream_options") else {
        return Ok(Streaming { stream, include_usage: false });
    };
    if !stream {
        return Err(body.invalid("stream_options", "needs `stream` to be true"));
    }
    let mut options = Fields::of_value(options, "stream_options".into())?;
    let include_usage = options.boolean("include_usage")?;
    options.only("include_obfuscation", &[json!(false)])?;
    options.only("continuous_usage_stats", &[json!(false)])?;
    options.finish()?;
    Ok(Streaming { stream, include_usage })
}

/// How much to think; `param` is the field's whole name. Whether the model can is seen with its template.
///
/// # Errors
/// When it is no such word.
pub fn effort(
    body: &mut Fields,
    field: &str,
    param: &'static str,
) -> Result<Option<Named<String>>, ApiError> {
    match body.string(field)? {
        None => Ok(None),
        Some(value) if ["none", "minimal", "low", "medium", "high", "xhigh"].contains(&value.as_str()) => {
            Ok(Some(Named { value, param }))
        }
        Some(_) => Err(body.invalid(field, "must be none, minimal, low, medium, high or xhigh")),
    }
}

/// vLLM's limit on prompts; -1 for as many tokens as fit.
///
/// # Errors
/// When it is no such number.
pub fn truncate(body: &mut Fields) -> Result<Option<Truncate>, ApiError> {
    let Some(value) = body.take("truncate_prompt_tokens") else { return Ok(None) };
    match value.as_i64() {
        Some(-1) => Ok(Some(Truncate::ToFit)),
        Some(tokens) if (1..=i64::from(u32::MAX)).contains(&tokens) => Ok(Some(Truncate::To(tokens as u32))),
        _ => Err(body.invalid("truncate_prompt_tokens", "must be a positive integer, or -1 for what fits")),
    }
}

/// Fields that ask for nothing we could do differently: notes of the client to itself.
fn bookkeeping(body: &mut Fields) -> Result<(), ApiError> {
    body.string("user")?;
    body.string("safety_identifier")?;
    body.object("metadata")?;
    body.only("store", &[json!(false)])
}

/// The tier of service.
///
/// # Errors
/// When there is no such tier.
pub fn tier(body: &mut Fields) -> Result<Option<Tier>, ApiError> {
    match body.string("service_tier")?.as_deref() {
        None => Ok(None),
        Some("auto" | "default") => Ok(Some(Tier::Default)),
        Some("flex") => Ok(Some(Tier::Flex)),
        Some("priority") => Ok(Some(Tier::Priority)),
        Some(_) => Err(ApiError::Unsupported { param: "service_tier".to_owned() }),
    }
}

/// Switches of vLLM and SGLang whose usual values change nothing; their routers send them with every call.
fn harmless(body: &mut Fields) -> Result<(), ApiError> {
    body.only("use_beam_search", &[json!(false)])?;
    body.only("length_penalty", &[json!(1), json!(1.0)])?;
    body.only("spaces_between_special_tokens", &[json!(true)])?;
    body.only("return_hidden_states", &[json!(false)])?;
    body.only("bad_words", &[json!([])])
}

/// How tokens are drawn, under the names that dialects share. Biases and seed are read elsewhere.
///
/// # Errors
/// The first field that is out of range.
pub fn sampling(body: &mut Fields) -> Result<Sampling, ApiError> {
    let plain = Sampling::default();
    Ok(Sampling {
        temperature: body.number("temperature", 0.0..=2.0)?.unwrap_or(plain.temperature),
        top_k: top_k(body)?,
        top_p: body.positive("top_p", 1.0)?.unwrap_or(plain.top_p),
        min_p: body.number("min_p", 0.0..=1.0)?.unwrap_or(plain.min_p),
        repetition_penalty: body.positive("repetition_penalty", 10.0)?.unwrap_or(plain.repetition_penalty),
        presence_penalty: body.number("presence_penalty", -2.0..=2.0)?.unwrap_or(plain.presence_penalty),
        frequency_penalty: body.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(plain.frequency_penalty),
        ..plain
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
///
/// # Errors
/// When it is none.
pub fn seed(body: &mut Fields, field: &str) -> Result<Option<u64>, ApiError> {
    let Some(value) = body.take(field) else { return Ok(None) };
    match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
        Some(seed) => Ok(Some(seed)),
        None => Err(body.invalid(field, "must be a 64-bit integer")),
    }
}

/// OpenAI renamed this one; both names hold, together only if they agree.
fn max_tokens(body: &mut Fields, least: u32) -> Result<Option<Named<u32>>, ApiError> {
    let mut read = |param: &'static str| -> Result<Option<Named<u32>>, ApiError> {
        Ok(body.integer(param, least..=u32::MAX)?.map(|value| Named { value, param }))
    };
    match (read("max_completion_tokens")?, read("max_tokens")?) {
        (Some(new), Some(old)) if new.value != old.value => {
            Err(ApiError::invalid("max_tokens", "differs from `max_completion_tokens`"))
        }
        (new, old) => Ok(new.or(old)),
    }
}

/// A prompt is only computed with a token behind it: if none is wanted, it is not shown.
pub fn at_least_one(max_tokens: Option<Named<u32>>) -> (Option<Named<u32>>, bool) {
    let hides_answer = max_tokens.is_some_and(|max| max.value == 0);
    (max_tokens.map(|max| Named { value: max.value.max(1), ..max }), hides_answer)
}

/// What vLLM tells of a prompt's tokens.
fn prompt_logprobs(body: &mut Fields, config: &Config) -> Result<Option<Named<Told>>, ApiError> {
    let param = "prompt_logprobs";
    let top = body.limited(param, 0..=config.max_logprobs, "max_logprobs")?;
    Ok(top.map(|top| Named { value: Told { start: Some(0), top }, param }))
}

/// How many alternatives are to be told of a prompt's tokens, if anything is.
///
/// # Errors
/// When the answer is a stream, which has no place for it.
pub fn told_whole(parameters: &Parameters) -> Result<Option<u32>, ApiError> {
    match parameters.told {
        Some(Named { param, .. }) if parameters.stream => {
            Err(ApiError::invalid(param, "cannot be told in a stream"))
        }
        told => Ok(told.map(|told| told.value.top)),
    }
}

fn logit_bias(body: &mut Fields, config: &Config) -> Result<Vec<LogitBias>, ApiError> {
    let Some(value) = body.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(entries) = value else {
        return Err(body.invalid("logit_bias", "must be an object of token ids and numbers"));
    };
    body.check_entries("logit_bias", entries.len(), ("max_logit_biases", config.max_logit_biases))?;
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

/// Tokens that end the answer.
///
/// # Errors
/// When they are no token ids or too many.
pub fn stop_token_ids(
    body: &mut Fields,
    param: &'static str,
    config: &Config,
) -> Result<Named<Vec<u32>>, ApiError> {
    let field = param.rsplit('.').next().unwrap_or(param);
    let ids = body.array(field)?;
    body.check_entries(field, ids.len(), ("max_stop_token_ids", config.max_stop_token_ids))?;
    Ok(Named { value: token_ids(&ids, param)?, param })
}

/// Token ids of an array.
///
/// # Errors
/// When one of them is none.
pub fn token_ids(ids: &[Value], param: &str) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    ids.iter().map(id).collect::<Option<_>>().ok_or_else(|| ApiError::invalid(param, "must hold token ids"))
}

/// A string or strings that end the answer.
///
/// # Errors
/// When they are no strings, too many, empty or too long.
pub fn stop_strings(body: &mut Fields, field: &str, config: &Config) -> Result<Vec<String>, ApiError> {
    let stops = match body.take(field) {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => stops
            .into_iter()
            .map(|stop| if let Value::String(stop) = stop { Some(stop) } else { None })
            .collect::<Option<_>>()
            .ok_or_else(|| body.invalid(field, "must hold strings"))?,
        Some(_) => return Err(body.invalid(field, "must be a string or an array of strings")),
    };
    body.check_entries(field, stops.len(), ("max_stop_strings", config.max_stop_strings))?;
    let limit = config.max_stop_bytes;
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > limit) {
        let message = format!("strings must have 1 to {limit} bytes (frontend.max_stop_bytes)");
        return Err(body.invalid(field, message));
    }
    Ok(stops)
}
