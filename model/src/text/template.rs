//! Chat messages to text, with fuel.

use std::{collections::BTreeMap, error::Error as _, fmt, io, time::SystemTime};

use minijinja::{Environment, Error, ErrorKind, Value, filters::tojson, syntax::SyntaxConfig, value::Kwargs};
use serde_json::{Map, Value as Json};

use super::{error::TextError, strftime::strftime};

/// Instructions a template may run; a conversation of 2048 messages needs a tenth.
const FUEL: u64 = 2_000_000;
const MAX_RECURSION: usize = 50;
const MAX_RENDERED_BYTES: usize = 1 << 24;
const NAME: &str = "chat";

/// Variables that belong to the model, not to the request.
const RESERVED: [&str; 5] = ["messages", "bos_token", "eos_token", "raise_exception", "strftime_now"];

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a template said with `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

/// Collects output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

// === impl ChatTemplate ===

impl ChatTemplate {
    /// Compiles a template as Hugging Face Transformers would.
    pub fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self, TextError> {
        let wrong = |error: &Error| TextError::TemplateSyntax { reason: reason(error) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| wrong(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
        });
        environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
            let unknown = || Error::new(ErrorKind::InvalidOperation, "unknown date format");
            strftime(format, SystemTime::now()).ok_or_else(unknown)
        });
        environment.add_template_owned(NAME, source.clone()).map_err(|error| wrong(&error))?;
        Ok(Self { environment, source, bos_token, eos_token })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads this variable, which the model does not set itself.
    pub fn reads(&self, variable: &str) -> bool {
        let reads =
            |template: minijinja::Template<'_, '_>| template.undeclared_variables(false).contains(variable);
        !RESERVED.contains(&variable) && self.environment.get_template(NAME).is_ok_and(reads)
    }

    /// Renders messages; every string of the request goes through `text` first.
    pub fn render(
        &self,
        messages: &Json,
        extra: &Map<String, Json>,
        text: &dyn Fn(&str) -> String,
    ) -> Result<String, TextError> {
        if let Some(name) = extra.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(TextError::ReservedVariable { name: name.clone() });
        }
        // Templates ask whether tools "is not none": absent must not be undefined.
        let mut variables = BTreeMap::from([
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(true)),
            ("messages".to_owned(), value(messages, text)),
            ("bos_token".to_owned(), Value::from(self.bos_token.as_deref().unwrap_or_default())),
            ("eos_token".to_owned(), Value::from(self.eos_token.as_deref().unwrap_or_default())),
        ]);
        variables.extend(extra.iter().map(|(name, json)| (name.clone(), value(json, text))));
        let mut output = Bounded { bytes: Vec::new(), is_full: false };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(Value::from(variables), &mut output).map(drop));
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|error| TextError::Template { reason: error.to_string() }),
            Err(_) if output.is_full => Err(TextError::TemplateLimit { what: "output" }),
            Err(error) => Err(failure(&error)),
        }
    }
}

/// JSON as a value of the template language.
fn value(json: &Json, text: &dyn Fn(&str) -> String) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(bool) => Value::from(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::from(int),
            (None, Some(int)) => Value::from(int),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(string) => Value::from(text(string)),
        Json::Array(items) => items.iter().map(|item| value(item, text)).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, item)| (text(key), value(item, text)))),
    }
}

fn failure(error: &Error) -> TextError {
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(Refusal(message)) = source.downcast_ref() {
            return TextError::TemplateRefused { message: message.clone() };
        }
        cause = source.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::TemplateLimit { what: "instructions" },
        _ => TextError::Template { reason: reason(error) },
    }
}

/// The message with its place, without the excerpt of the template.
fn reason(error: &Error) -> String {
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{detail}{line}", error.kind())
}

/// `tojson` as Transformers defines it: Python's `json.dumps` with `ensure_ascii=False`.
fn python_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let _: Option<bool> = options.get("ensure_ascii")?;
    let html_safe = tojson(value, indent, options)?;
    let html_safe = html_safe.as_str().unwrap_or_default();
    let mut json = String::with_capacity(html_safe.len());
    let mut rest = html_safe;
    while let Some(at) = rest.find('\\') {
        json.push_str(&rest[..at]);
        let escaped = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        match escaped.into_iter().find(|(escape, _)| rest[at..].starts_with(escape)) {
            Some((escape, character)) => {
                json.push(character);
                rest = &rest[at + escape.len()..];
            }
            None => {
                // Both characters of `\\`, so that what follows is not taken for an escape.
                let pair = rest[at..].chars().take(2).map(char::len_utf8).sum::<usize>();
                json.push_str(&rest[at..at + pair]);
                rest = &rest[at + pair..];
            }
        }
    }
    json.push_str(rest);
    Ok(Value::from(json))
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

// === impl Bounded ===

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RENDERED_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
