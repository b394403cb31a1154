//! What the headers of a call say of its reader's patience.

use std::time::Duration;

use axum::http::HeaderMap;
use baton_coordinator::Wishes;
use serde_json::{Value, json};

use crate::error::ApiError;

/// What a call asks of the time that it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    pub wishes: Wishes,
    /// Until the end of the answer.
    pub deadline: Option<Duration>,
}

/// Milliseconds of a day: more is a mistake.
const MOST_MS: f64 = 86_400_000.0;
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

const TTFT: [&str; 2] = ["x-baton-ttft-ms", "x-llm-d-slo-ttft-ms"];
const ITL: [&str; 2] = ["x-baton-itl-ms", "x-llm-d-slo-tpot-ms"];
const DEADLINE: &str = "x-baton-deadline-ms";
const PRIORITY: &str = "x-baton-priority";

/// The headers, as an OpenAPI document has parameters.
pub fn described() -> Vec<Value> {
    let header = |name: &str, what: String, schema: Value| json!({ "name": name, "in": "header", "description": what, "schema": schema });
    let time = |name, what: &str| {
        header(name, what.to_owned(), json!({ "type": "number", "exclusiveMinimum": 0, "maximum": MOST_MS }))
    };
    let same = |names: [&str; 2]| format!("The same as {}", names[0]);
    let priorities = json!({ "type": "integer", "minimum": PRIORITIES.start(), "maximum": PRIORITIES.end(), "default": 0 });
    vec![
        time(TTFT[0], "Milliseconds in which the first token should come"),
        time(TTFT[1], &same(TTFT)),
        time(ITL[0], "Milliseconds that should pass between tokens at most"),
        time(ITL[1], &same(ITL)),
        time(DEADLINE, "Milliseconds in which the answer must have ended"),
        header(PRIORITY, "Higher goes first where calls wait".to_owned(), priorities),
    ]
}

// === impl Patience ===

impl Patience {
    /// Of work that goes behind all other.
    pub fn least() -> Self {
        Self { wishes: Wishes { priority: *PRIORITIES.start(), ..Wishes::default() }, deadline: None }
    }

    /// Reads the headers; llm-d's names count as ours.
    ///
    /// # Errors
    /// The first one that is malformed, or contradicts another.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let wishes = Wishes {
            ttft: either(headers, TTFT)?,
            itl: either(headers, ITL)?,
            priority: priority(headers, PRIORITY)?,
        };
        Ok(Self { wishes, deadline: time(headers, DEADLINE)? })
    }
}

/// A time that may have two names.
fn either(headers: &HeaderMap, [own, other]: [&str; 2]) -> Result<Option<Duration>, ApiError> {
    match (time(headers, own)?, time(headers, other)?) {
        (Some(one), Some(two)) if one != two => {
            Err(ApiError::invalid(other, format!("must be the same as `{own}` where both are given")))
        }
        (one, two) => Ok(one.or(two)),
    }
}

fn time(headers: &HeaderMap, name: &str) -> Result<Option<Duration>, ApiError> {
    let Some(text) = only(headers, name)? else { return Ok(None) };
    let ms = text.parse::<f64>().ok().filter(|ms| *ms > 0.0 && *ms <= MOST_MS);
    let ms =
        ms.ok_or_else(|| ApiError::invalid(name, format!("must be milliseconds, above 0 to {MOST_MS}")))?;
    Ok(Some(Duration::from_secs_f64(ms / 1e3)))
}

fn priority(headers: &HeaderMap, name: &str) -> Result<i32, ApiError> {
    let Some(text) = only(headers, name)? else { return Ok(0) };
    text.parse().ok().filter(|priority| PRIORITIES.contains(priority)).ok_or_else(|| {
        let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
        ApiError::invalid(name, format!("must be a whole number from {least} to {most}"))
    })
}

/// The header's text, which must be there once at most.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(ApiError::invalid(name, "must be given once"));
    }
    let text = |value: &'a axum::http::HeaderValue| value.to_str().map(str::trim);
    first.map(text).transpose().map_err(|_| ApiError::invalid(name, "must be plain text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Patience, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        Patience::of(&headers)
    }

    #[test]
    fn headers_are_read_under_either_name() {
        assert_eq!(of(&[]), Ok(Patience::default()));
        let ms = |ms| Some(Duration::from_millis(ms));
        let wishes = Wishes { ttft: ms(250), itl: ms(40), priority: -3 };
        let said = [("x-baton-ttft-ms", "250"), ("x-llm-d-slo-tpot-ms", "40.0"), ("x-baton-priority", "-3")];
        assert_eq!(of(&said), Ok(Patience { wishes, deadline: None }));
        assert_eq!(of(&[("x-baton-deadline-ms", "1500")]).unwrap().deadline, ms(1500));
        assert!(of(&[("x-baton-ttft-ms", "250"), ("x-llm-d-slo-ttft-ms", "250")]).is_ok());
    }

    #[test]
    fn malformed_ones_are_named() {
        let cases: [&[(&str, &str)]; 9] = [
            &[("x-baton-ttft-ms", "soon")],
            &[("x-baton-itl-ms", "0")],
            &[("x-baton-itl-ms", "-4")],
            &[("x-baton-deadline-ms", "NaN")],
            &[("x-baton-deadline-ms", "1e300")],
            &[("x-baton-priority", "101")],
            &[("x-baton-priority", "1.5")],
            &[("x-llm-d-slo-ttft-ms", "")],
            &[("x-baton-ttft-ms", "1"), ("x-baton-ttft-ms", "1")],
        ];
        for case in cases {
            let name = case[0].0;
            assert!(matches!(of(case), Err(ApiError::Invalid { param, .. }) if param == name), "{case:?}");
        }
        let both = of(&[("x-baton-ttft-ms", "1"), ("x-llm-d-slo-ttft-ms", "2")]);
        assert!(matches!(both, Err(ApiError::Invalid { param, .. }) if param == "x-llm-d-slo-ttft-ms"));
    }
}
