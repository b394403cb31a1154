//! JSON objects whose end may not have come.

use serde_json::Value;

/// How far an object that may be a call has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// That is not certain yet.
    Open,
    /// `{"name": …, "arguments": ` and `end` is where the arguments, an object, begin.
    Call { name: String, end: usize },
    /// Its first fields are others.
    Other,
}

/// Follows brackets and strings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balance {
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

/// Fields that hold a call's arguments.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// No name of a tool is longer, blanks included.
const MAX_HEAD: usize = 512;

/// Reads the beginning of an object.
pub fn head(text: &str) -> Head {
    match read_head(text) {
        None if text.len() > MAX_HEAD => Head::Other,
        None => Head::Open,
        Some(None) => Head::Other,
        Some(Some((name, end))) => Head::Call { name, end },
    }
}

/// None: not certain; none within: no call.
fn read_head(text: &str) -> Option<Option<(String, usize)>> {
    let mut rest = text;
    macro_rules! expect {
        ($mark:literal) => {
            rest = rest.trim_start();
            if rest.is_empty() {
                return None;
            }
            match rest.strip_prefix($mark) {
                Some(after) => rest = after,
                None => return Some(None),
            }
        };
    }
    expect!('{');
    let (key, after) = string(rest.trim_start())?;
    rest = after;
    if key.as_deref() != Some("name") {
        return Some(None);
    }
    expect!(':');
    let (name, after) = string(rest.trim_start())?;
    rest = after;
    let Some(name) = name else { return Some(None) };
    expect!(',');
    let (key, after) = string(rest.trim_start())?;
    rest = after;
    if !key.is_some_and(|key| ARGUMENTS.contains(&key.as_str())) {
        return Some(None);
    }
    expect!(':');
    rest = rest.trim_start();
    match rest.chars().next() {
        None => None,
        Some('{') => Some(Some((name, text.len() - rest.len()))),
        Some(_) => Some(None),
    }
}

/// A string at the start of a text and what follows; none within: there is no string.
fn string(text: &str) -> Option<(Option<String>, &str)> {
    if text.is_empty() {
        return None;
    }
    if !text.starts_with('"') {
        return Some((None, text));
    }
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some((serde_json::from_str(&text[..=at]).ok(), &text[at + 1..])),
            _ => {}
        }
    }
    None
}

/// Name and arguments of a whole object, if it is a call.
pub fn call(object: &str) -> Option<(String, String)> {
    let mut object: Value = serde_json::from_str(object).ok()?;
    // A tool's description repeated around it, as OpenAI writes calls.
    let function = object.get_mut("function").filter(|function| function.is_object()).map(Value::take);
    let object = function.unwrap_or(object);
    let name = object.get("name")?.as_str()?.to_owned();
    match ARGUMENTS.iter().find_map(|field| object.get(*field)) {
        Some(arguments) if arguments.is_object() => Some((name, arguments.to_string())),
        None if object.as_object()?.len() == 1 => Some((name, "{}".to_owned())),
        _ => None,
    }
}

// === impl Balance ===

impl Balance {
    /// Within an object, as if its bracket had been read.
    pub fn within() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// Reads on. Where the outermost bracket closes: the index behind it.
    pub fn read(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}
