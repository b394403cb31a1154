//! The body of a generate call.

use baton_protocol::Sampling;
use serde_json::{Map, Value, json};

use super::reply::{GenerateReply, Logs};
use crate::{
    Config,
    ask::{Ask, Call, Content, Named, Parameters, Prompt, Told},
    error::ApiError,
    fields::Fields,
    grammars,
    openai::{at_least_one, sampling, seed, stop_strings, stop_token_ids, token_ids},
};

/// Where the client gives no maximum.
const USUAL_TOKENS: u32 = 128;

/// Reads a body.
///
/// # Errors
/// The first field that is missing, wrong or unsupported.
pub fn read(object: Map<String, Value>, config: &Config) -> Result<Call, ApiError> {
    let mut body = Fields::of_body(object);
    let model = body.string("model")?;
    let Contents { contents, param, batched } = read_contents(&mut body)?;
    body.check_entries(param, contents.len(), ("max_prompts", config.max_prompts))?;
    let logprobs = body.boolean("return_logprob")?;
    let top = body.limited("top_logprobs_num", 0..=config.max_logprobs, "max_logprobs")?.unwrap_or(0);
    let start = prompt_start(&mut body)?;
    let spells = body.boolean("return_text_in_logprobs")?;
    let stream = body.boolean("stream")?;
    let rid = body.string("rid")?;
    let mut asked = body.object("sampling_params")?;
    body.finish()?;
    if start.is_some() && (stream || !logprobs) {
        return Err(ApiError::invalid(START, "needs `return_logprob` to be true, and no stream"));
    }
    let told = Named { value: Told { start, top }, param: START };
    let parameters = Parameters {
        logprobs: logprobs.then_some(top),
        told: logprobs.then_some(told),
        stream,
        ..read_parameters(&mut asked, config)?
    };
    asked.finish()?;
    let many = batched || parameters.choices > 1;
    let reply = GenerateReply::new(rid, many, logprobs.then_some(Logs { spells, start }));
    let prompts = contents.into_iter().enumerate().map(|(i, content)| {
        let param = if batched { format!("{param}[{i}]") } else { param.to_owned() };
        Prompt { param, content, truncate: None }
    });
    let ask = Ask { model, prompts: prompts.collect(), parameters };
    Ok(Call { ask, reply: Box::new(reply) })
}

/// A call for one token, whichever.
pub fn one_token(model: Option<String>) -> Call {
    let content = Content::Text { text: "1".to_owned(), begins: true };
    let prompt = Prompt { param: "text".to_owned(), content, truncate: None };
    let parameters = Parameters {
        sampling: Sampling::greedy(),
        max_tokens: Some(Named { value: 1, param: "max_new_tokens" }),
        ignore_eos: true,
        ..Parameters::default()
    };
    let reply = Box::new(GenerateReply::new(None, false, None));
    Call { ask: Ask { model, prompts: vec![prompt], parameters }, reply }
}

/// From where on the prompt's log-probabilities are told.
const START: &str = "logprob_start_len";

/// None, as -1 says too: of the answer alone.
fn prompt_start(body: &mut Fields) -> Result<Option<u32>, ApiError> {
    let Some(value) = body.take(START) else { return Ok(None) };
    match value.as_i64() {
        Some(-1) => Ok(None),
        Some(start) if (0..=i64::from(u32::MAX)).contains(&start) => Ok(Some(start as u32)),
        _ => Err(body.invalid(START, "must be a place in the prompt, or -1 for none of it")),
    }
}

struct Contents {
    contents: Vec<Content>,
    /// The field that holds them.
    param: &'static str,
    /// Whether they stand in an array, as their answers are to do.
    batched: bool,
}

/// `text` or `input_ids`, of one prompt or of several.
fn read_contents(body: &mut Fields) -> Result<Contents, ApiError> {
    let text = |text| Content::Text { text, begins: true };
    match (body.take("text"), body.take("input_ids")) {
        (Some(_), Some(_)) => Err(body.invalid("input_ids", "excludes `text`")),
        (None, None) => Err(ApiError::Missing { param: "text".to_owned() }),
        (Some(Value::String(only)), None) => {
            Ok(Contents { contents: vec![text(only)], param: "text", batched: false })
        }
        (Some(Value::Array(texts)), None) if !texts.is_empty() => {
            let texts = texts.into_iter().map(|item| match item {
                Value::String(item) => Ok(text(item)),
                _ => Err(body.invalid("text", "must hold strings")),
            });
            Ok(Contents { contents: texts.collect::<Result<_, _>>()?, param: "text", batched: true })
        }
        (Some(_), None) => Err(body.invalid("text", "must be a string or a non-empty array of strings")),
        (None, Some(Value::Array(ids))) if !ids.is_empty() => {
            let param = "input_ids";
            if ids[0].is_number() {
                let contents = vec![Content::Tokens(token_ids(&ids, param)?)];
                return Ok(Contents { contents, param, batched: false });
            }
            let prompts = ids.into_iter().enumerate().map(|(i, item)| match item {
                Value::Array(ids) => Ok(Content::Tokens(token_ids(&ids, &format!("{param}[{i}]"))?)),
                _ => Err(body.invalid(param, "must hold token ids or arrays of them")),
            });
            Ok(Contents { contents: prompts.collect::<Result<_, _>>()?, param, batched: true })
        }
        (None, Some(_)) => Err(body.invalid("input_ids", "must be a non-empty array")),
    }
}

fn read_parameters(asked: &mut Fields, config: &Config) -> Result<Parameters, ApiError> {
    let seed = seed(asked, "sampling_seed")?;
    let max_tokens = asked.integer("max_new_tokens", 0..=u32::MAX)?;
    let max_tokens = max_tokens.map(|value| Named { value, param: "sampling_params.max_new_tokens" });
    let min_tokens = asked.integer("min_new_tokens", 0..=u32::MAX)?.unwrap_or(0);
    if max_tokens.is_some_and(|max| max.value < min_tokens) {
        return Err(asked.invalid("min_new_tokens", "must not exceed the maximum of tokens"));
    }
    let (max_tokens, hides_answer) = at_least_one(max_tokens);
    asked.only("spaces_between_special_tokens", &[json!(true)])?;
    asked.only("stop_regex", &[json!([]), json!("")])?;
    Ok(Parameters {
        sampling: Sampling { seed: seed.unwrap_or(0), ..sampling(asked)? },
        seeded: seed.is_some(),
        grammar: grammars::of_sglang(asked, config)?,
        max_tokens,
        hides_answer,
        usual_tokens: USUAL_TOKENS,
        min_tokens: Named { value: min_tokens, param: "sampling_params.min_new_tokens" },
        ignore_eos: asked.boolean("ignore_eos")?,
        stop_token_ids: stop_token_ids(asked, "sampling_params.stop_token_ids", config)?,
        stop_strings: stop_strings(asked, "stop", config)?,
        shows_stop: asked.boolean("no_stop_trim")?,
        spells_control: !asked.boolean_or("skip_special_tokens", true)?,
        choices: asked.limited("n", 1..=config.max_choices, "max_choices")?.unwrap_or(1),
        ..Parameters::default()
    })
}
