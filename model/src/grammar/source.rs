//! Grammars as `llguidance` takes them.

use baton_protocol::{Grammar, GrammarKind};
use llguidance::{
    api::{GrammarWithLexer, TopLevelGrammar},
    regex_to_lark,
};
use serde_json::{Map, Value, json};

use super::{GrammarError, formats};

/// What is compiled for a grammar.
///
/// # Errors
/// When it is not even written right.
pub(super) fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    let Grammar { kind, source } = grammar;
    let grammar = match kind {
        GrammarKind::Json => GrammarWithLexer::from_json_schema(schema(source)?),
        GrammarKind::Regex => GrammarWithLexer::from_lark(format!("start: /{}/", regex(source)?)),
        GrammarKind::Lark if source.contains("::=") => {
            return wrong("must be in Lark's syntax (this is EBNF)");
        }
        GrammarKind::Lark => GrammarWithLexer::from_lark(source.clone()),
    };
    Ok(TopLevelGrammar::from_grammar(grammar))
}

/// The schema, with what the compiler is told beside it.
fn schema(source: &str) -> Result<Value, GrammarError> {
    let schema = serde_json::from_str(source)
        .map_err(|error| GrammarError::Source { reason: format!("not a JSON Schema: {error}") })?;
    match schema {
        Value::Object(_) => Ok(on_one_line(schema)),
        Value::Bool(true) => Ok(on_one_line(Value::Object(Map::new()))),
        Value::Bool(false) => wrong("nothing is valid under this schema"),
        _ => wrong("a JSON Schema must be an object or a boolean"),
    }
}

/// A schema, an object, of JSON on one line: a blank behind commas and colons or none. Where
/// blanks are free, a model may write them to the end of its days. For schemas within grammars.
#[must_use]
pub fn on_one_line(mut schema: Value) -> Value {
    formats::narrow(&mut schema);
    // What a client put there does not count.
    schema["x-guidance"] =
        json!({ "item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": false });
    schema
}

/// A regular expression between slashes. It matches the whole answer anyhow, so that anchors
/// at its ends say nothing.
fn regex(source: &str) -> Result<String, GrammarError> {
    let backslashes = |text: &str| text.bytes().rev().take_while(|byte| *byte == b'\\').count();
    if backslashes(source) % 2 == 1 {
        return wrong("the regular expression ends within an escape");
    }
    let body = source.strip_prefix('^').unwrap_or(source);
    let body = match body.strip_suffix('$') {
        Some(before) if backslashes(before).is_multiple_of(2) => before,
        _ => body,
    };
    if body.is_empty() {
        return wrong("the regular expression matches nothing but an empty answer");
    }
    Ok(regex_to_lark(body, ""))
}

fn wrong<T>(reason: &str) -> Result<T, GrammarError> {
    Err(GrammarError::Source { reason: reason.to_owned() })
}
