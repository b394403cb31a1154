//! Formats of strings of which `llguidance` lets in more than there is.

use serde_json::{Value, json};

/// Years from 1 on: some readers know no year 0.
const YEAR: &str = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])";
/// Days that every year has.
const DAY: &str = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)\
    |02-(?:0[1-9]|1[0-9]|2[0-8]))";
/// Years that have one more.
const LEAP_YEAR: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
/// Leap seconds come when they are announced.
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5]";

/// Adds to a schema what its formats mean: no 29th of February of other than leap years, no 61st second.
pub fn narrow(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(narrow),
        Value::Object(keywords) => {
            for (keyword, inner) in keywords.iter_mut() {
                match (keyword.as_str(), inner) {
                    ("const" | "enum" | "default" | "examples", _) => {}
                    // Names are anything, also those of keywords.
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                        Value::Object(named),
                    ) => named.values_mut().for_each(narrow),
                    (_, inner) => narrow(inner),
                }
            }
            let Some(pattern) = keywords.get("format").and_then(Value::as_str).and_then(pattern) else {
                return;
            };
            if !keywords.contains_key("pattern") {
                keywords.insert("pattern".to_owned(), json!(pattern));
            } else if let Value::Array(all) = keywords.entry("allOf").or_insert_with(|| json!([])) {
                all.push(json!({ "pattern": pattern }));
            }
        }
        _ => {}
    }
}

/// What strings of a format begin with, or are.
fn pattern(format: &str) -> Option<String> {
    let date = || format!("(?:{YEAR}-{DAY}|{LEAP_YEAR}-02-29)");
    match format {
        "date" => Some(format!("^{}$", date())),
        "date-time" => Some(format!("^{}[tT]{TIME}", date())),
        "time" => Some(format!("^{TIME}")),
        _ => None,
    }
}
