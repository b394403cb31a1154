//! The body of a generate call.

use baton_protocol::Sampling;
use serde_json::{Map, Value, json};

use super::reply::{Form, GenerateReply};
use crate::{
    Config,
    ask::{Ask, Call, Content, Named, Parameters, Prompt, Truncate},
    error::ApiError,
    fields::Fields,
    grammars,
    openai::{seed, stop_strings},
};

/// Far beyond it all tokens are equally likely.
const MAX_TEMPERATURE: f64 = 100.0;

/// Reads the body of `/generate`.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    body.only("stream", &[json!(false)])?;
    read_form(body, Form::Object, config)
}

/// Reads the body of `/generate_stream`.
///
/// # Errors
/// As [`read`].
pub fn read_stream(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    body.only("stream", &[json!(true)])?;
    read_form(body, Form::Stream, config)
}

/// Reads the body of `/`, which says by itself whether it wants a stream.
///
/// # Errors
/// As [`read`].
pub fn read_either(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    let form = if body.boolean("stream")? { Form::Stream } else { Form::Array };
    read_form(body, form, config)
}

fn read_form(mut body: Fields, form: Form, config: &Config) -> Result<Call, ApiError> {
    let model = body.string("model")?;
    let Value::String(inputs) = body.require("inputs")? else {
        return Err(body.invalid("inputs", "must be a string"));
    };
    let mut asked = body.object("parameters")?;
    body.finish()?;
    let truncate = asked.integer("truncate", 1..=u32::MAX)?.map(Truncate::To);
    let details = asked.boolean("details")?;
    let full_text = asked.boolean("return_full_text")?.then(|| inputs.clone());
    let parameters = read_parameters(&mut asked, form == Form::Stream, details, config)?;
    asked.only("decoder_input_details", &[json!(false)])?;
    asked.only("watermark", &[json!(false)])?;
    asked.finish()?;
    let reply = GenerateReply::new(form, details, full_text, &parameters);
    let content = Content::Text { text: inputs, begins: true };
    let prompt = Prompt { param: "inputs".to_owned(), content, truncate };
    Ok(Call { ask: Ask { model, prompts: vec![prompt], parameters }, reply: Box::new(reply) })
}

fn read_parameters(
    asked: &mut Fields,
    stream: bool,
    details: bool,
    config: &Config,
) -> Result<Parameters, ApiError> {
    let seed = seed(asked, "seed")?;
    let top = asked.limited("top_n_tokens", 1..=config.max_logprobs, "max_logprobs")?;
    let choices = asked.limited("best_of", 1..=config.max_choices, "max_choices")?.unwrap_or(1);
    if choices > 1 && stream {
        return Err(asked.invalid("best_of", "cannot be more than 1 in a stream"));
    }
    let max_tokens = asked.integer("max_new_tokens", 1..=u32::MAX)?;
    Ok(Parameters {
        sampling: Sampling { seed: seed.unwrap_or(0), ..sampling(asked)? },
        seeded: seed.is_some(),
        grammar: grammars::of_tgi(asked, config)?,
        max_tokens: max_tokens.map(|value| Named { value, param: "parameters.max_new_tokens" }),
        stop_strings: stop_strings(asked, "stop", config)?,
        shows_stop: true,
        choices,
        best: (choices > 1).then_some(choices),
        logprobs: (stream || details).then_some(top.unwrap_or(0)),
        stream,
        ..Parameters::default()
    })
}

/// The likeliest token every time, unless one of the parameters asks for another.
fn sampling(asked: &mut Fields) -> Result<Sampling, ApiError> {
    let plain = Sampling::greedy();
    let temperature = asked.positive("temperature", MAX_TEMPERATURE)?;
    let top_k = asked.integer("top_k", 1..=u32::MAX)?;
    let top_p = asked.positive("top_p", 1.0)?;
    let samples = asked.boolean("do_sample")? || temperature.is_some() || top_k.is_some() || top_p.is_some();
    Ok(Sampling {
        temperature: if samples { temperature.unwrap_or(1.0) } else { plain.temperature },
        top_k: top_k.unwrap_or(plain.top_k),
        top_p: top_p.unwrap_or(plain.top_p),
        repetition_penalty: asked.positive("repetition_penalty", 10.0)?.unwrap_or(plain.repetition_penalty),
        frequency_penalty: asked.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(plain.frequency_penalty),
        ..plain
    })
}
