//! Random JSON Schemas of mixed kinds whose answers come to an end: everything that could
//! be repeated is bounded.

use serde_json::{Map, Value, json};

use crate::parity::Random;

/// Names of properties, some of which no identifier could be.
const NAMES: [&str; 10] =
    ["id", "name", "größe", "city of birth", "日付", "tags", "a/b", "state", "é", "next\"one\""];

/// An object with definitions that its properties refer to.
pub fn schema(random: &mut Random) -> Value {
    let definitions: Map<String, Value> =
        ["word", "point/2d"].iter().map(|name| ((*name).to_owned(), leaf(random))).collect();
    let mut schema = object(random, 2);
    schema["$defs"] = Value::Object(definitions);
    schema
}

fn object(random: &mut Random, depth: u64) -> Value {
    let start = random.below(NAMES.len() as u64) as usize;
    let names: Vec<&str> =
        NAMES.iter().cycle().skip(start).take(1 + random.below(3) as usize).copied().collect();
    let properties: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), any(random, depth))).collect();
    let required: Vec<_> = names.iter().filter(|_| random.below(3) > 0).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn any(random: &mut Random, depth: u64) -> Value {
    if depth == 0 {
        return leaf(random);
    }
    match random.below(8) {
        0 => object(random, depth - 1),
        1 => {
            json!({"type": "array", "items": any(random, depth - 1), "minItems": 1, "maxItems": 1 + random.below(3)})
        }
        2 => {
            json!({"type": "array", "prefixItems": [leaf(random), leaf(random)], "items": false, "minItems": 2})
        }
        3 => {
            json!({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, object(random, depth - 1), {"type": "null"}]})
        }
        4 => {
            let one = |kind: &str, random: &mut Random| {
                json!({"type": "object", "required": ["kind", "value"], "additionalProperties": false,
                    "properties": {"kind": {"const": kind}, "value": leaf(random)}})
            };
            json!({"oneOf": [one("first", random), one("zweite", random)]})
        }
        5 => json!({"$ref": "#/$defs/word"}),
        6 => json!({"$ref": "#/$defs/point~12d"}),
        _ => leaf(random),
    }
}

fn leaf(random: &mut Random) -> Value {
    match random.below(12) {
        0 => json!({"type": "string", "maxLength": 3 + random.below(20)}),
        1 => json!({"type": "string", "minLength": 2, "maxLength": 8}),
        2 => json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}),
        3 => json!({"type": "string", "pattern": "^(north|süd|東)( [a-z]{1,6})?$"}),
        4 => {
            let format = ["uuid", "ipv4", "date"][random.below(3) as usize];
            json!({"type": "string", "format": format})
        }
        5 => json!({"type": "integer", "minimum": -20, "maximum": 1000 + random.below(9000)}),
        6 => json!({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 17}),
        7 => json!({"enum": ["yes", "nö", "はい", 7, null, false, "quote \" slash \\ line\n"]}),
        8 => json!({"const": {"fixed": [1, "two"]}}),
        9 => json!({"type": ["boolean", "null"]}),
        10 => json!({"allOf": [{"type": "string", "maxLength": 9}, {"minLength": 4}]}),
        _ => json!({"type": "boolean"}),
    }
}
