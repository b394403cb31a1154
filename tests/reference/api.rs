//! A document of OpenAPI as a page.

use std::fmt::Write;

use serde_json::{Map, Value};

pub const USERS: &str = "\
What `/openapi.json` of a process with the API describes, as text. It is made from the types that bodies \
are read into and answers are written from. Where there are API keys, a call without one gets 401, unless \
it is marked as open.";

pub const OPERATORS: &str = "\
What the admin API serves on loopback (`admin.listen`), as its own `/openapi.json` describes it; the \
console and `baton admin` stand on it, and `admin/proto/admin.proto` has the same over gRPC \
(`admin.grpc_listen`).";

const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

pub async fn fetch(http: &reqwest::Client, url: &str) -> Value {
    http.get(format!("{url}/openapi.json")).send().await.unwrap().json().await.unwrap()
}

/// The page: every call, then every shape that has a name.
pub fn page(title: &str, about: &str, document: &Value) -> String {
    let mut page = format!(
        "# {title}\n\n{about}\n\n## Calls\n\n| call | what it does | body | answer |\n|---|---|---|---|\n"
    );
    let needs_key = |call: &Value| call.get("security").is_some();
    let paths = document["paths"].as_object().unwrap();
    let has_keys = paths.values().flat_map(|path| path.as_object().unwrap().values()).any(needs_key);
    for (path, methods) in paths {
        for (method, call) in METHODS.iter().filter_map(|method| Some((method, methods.get(*method)?))) {
            let open = if has_keys && !needs_key(call) { " (open)" } else { "" };
            let (summary, body) = (call["summary"].as_str().unwrap(), content(&call["requestBody"]));
            let answer = content(&call["responses"]["200"]);
            let call = format!("`{} {path}`", method.to_uppercase());
            writeln!(page, "| {call} | {summary}{open} | {body} | {answer} |").unwrap();
        }
    }
    page += "\n## Shapes\n\nNeeded fields are in bold.\n";
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        write!(page, "\n### {name}\n\n{}", shape(schema)).unwrap();
    }
    page
}

/// What a body or an answer holds, by media type.
fn content(of: &Value) -> String {
    let Some(media) = of["content"].as_object() else { return String::new() };
    let kinds = media.iter().map(|(media, content)| match media.as_str() {
        "application/json" => kind(&content["schema"]),
        "multipart/form-data" => format!("form: {}", kind(&content["schema"])),
        "text/event-stream" => "events".to_owned(),
        other => format!("`{other}`"),
    });
    kinds.collect::<Vec<_>>().join(" or ")
}

/// A schema with a name.
fn shape(schema: &Value) -> String {
    let mut text = String::new();
    if let Some(about) = schema["description"].as_str() {
        writeln!(text, "{}\n", plain(about)).unwrap();
    }
    match schema["properties"].as_object() {
        Some(fields) => text + &table(fields, &schema["required"]),
        None => {
            writeln!(text, "{}.", kind(schema)).unwrap();
            text
        }
    }
}

fn table(fields: &Map<String, Value>, required: &Value) -> String {
    let is_needed = |name: &str| required.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let row = |(name, schema): (&String, &Value)| {
        let name = if is_needed(name) { format!("**`{name}`**") } else { format!("`{name}`") };
        let about = plain(schema["description"].as_str().unwrap_or_default());
        format!("| {name} | {} | {about} |\n", kind(schema))
    };
    let rows: String = fields.iter().map(row).collect();
    format!("| field | kind | |\n|---|---|---|\n{rows}")
}

/// A schema in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(constant) = schema.get("const") {
        return format!("`{constant}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    for several in ["anyOf", "oneOf", "allOf"] {
        if let Some(all) = schema[several].as_array() {
            let mut kinds: Vec<_> = all.iter().map(kind).filter(|kind| kind != "null").collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    }
    let types: Vec<_> = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).filter(|one| *one != "null").collect(),
        _ => return "anything".to_owned(),
    };
    let word = |one: &&str| match *one {
        "array" if schema["items"].is_object() => format!("list of {}", kind(&schema["items"])),
        "array" => "list".to_owned(),
        other => other.to_owned(),
    };
    types.iter().map(word).collect::<Vec<_>>().join(" or ") + &range(schema)
}

fn range(schema: &Value) -> String {
    let bound = |name: &str| schema.get(name).map(ToString::to_string);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least != "0" => format!(", {least} or more"),
        (None, Some(most)) => format!(", {most} at most"),
        _ => String::new(),
    }
}

/// In one line of a table.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
