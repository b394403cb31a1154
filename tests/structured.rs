//! The real model held to schemas, regular expressions and choices: what it answers is what
//! independent validators take, the same split and local, and after a decode node has died.

mod regexes;
mod schemas;

use std::time::Duration;

use baton_protocol::PageCounts;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    counts::counts,
    parity::Random,
    sandbox::{Cluster, Outcome, Plan, StreamedAnswer, complete, eventually},
};

const SETTINGS: &str = r#"
cluster = "structured"
model = "smollm2-135m"

[engine]
kv_memory_mib = 128

[frontend]
listen = "127.0.0.1:0"
"#;

/// Requests under way at once.
const TOGETHER: usize = 8;
/// A prefill node and two decode nodes.
const WORKERS: usize = 3;

/// What an answer must be, and how that is found out without the code under test.
enum Rule {
    Schema(Box<jsonschema::Validator>),
    Regex(regex::Regex),
    Choice(Vec<String>),
}

struct Case {
    body: Value,
    rule: Rule,
}

// === impl Case ===

impl Case {
    fn new(random: &mut Random, prompt: &str, field: (&str, Value), rule: Rule) -> Self {
        let mut body = json!({
            "model": "smollm2-135m", "prompt": prompt, "max_tokens": 600, "stream": true,
            "temperature": 0.7, "seed": random.below(1 << 40),
        });
        body[field.0] = field.1;
        Self { body, rule }
    }

    fn schema(random: &mut Random) -> Self {
        let schema = schemas::schema(random);
        let validator = jsonschema::options().should_validate_formats(true).build(&schema);
        let rule = Rule::Schema(Box::new(validator.unwrap_or_else(|error| panic!("{schema}: {error}"))));
        Self::new(random, "A small JSON document of the town's library:\n", ("guided_json", schema), rule)
    }

    fn regex(random: &mut Random) -> Self {
        let regex = regexes::regex(random);
        let rule = Rule::Regex(regex::Regex::new(&format!("^(?:{regex})$")).unwrap());
        Self::new(random, "The next code on the list is ", ("guided_regex", json!(regex)), rule)
    }

    fn choice(random: &mut Random) -> Self {
        let all = ["red", "green", "dark green", "greenish", "\"blue\"", "grün", "赤", "no\ncolour"];
        let choices: Vec<_> = all.iter().filter(|_| random.below(2) == 0).chain(&["x"]).collect();
        let rule = Rule::Choice(choices.iter().map(ToString::to_string).collect());
        Self::new(random, "The colour of grass is ", ("guided_choice", json!(choices)), rule)
    }

    fn assert_kept(&self, answer: &StreamedAnswer) {
        let text = &answer.texts[0];
        let what = format!("{}: {text:?}", self.body);
        assert_eq!(answer.outcome, Outcome::Done, "{what} {answer:?}");
        assert_eq!(answer.reasons[0].as_deref(), Some("stop"), "{what}");
        match &self.rule {
            Rule::Schema(validator) => {
                let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}"));
                let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
                assert!(errors.is_empty(), "{what}: {errors:?}");
            }
            Rule::Regex(regex) => assert!(regex.is_match(text), "{what}"),
            Rule::Choice(choices) => assert!(choices.contains(text), "{what}"),
        }
    }
}

async fn answers(cluster: &Cluster, cases: &[Case]) -> Vec<StreamedAnswer> {
    let ask = |case: &Case| {
        let body = case.body.clone();
        async move { complete(&cluster.http, &cluster.url, &body).await }
    };
    stream::iter(cases.iter().map(ask)).buffered(TOGETHER).collect().await
}

fn assert_same(cases: &[Case], found: &[StreamedAnswer], expected: &[StreamedAnswer]) {
    for ((case, found), expected) in cases.iter().zip(found).zip(expected) {
        case.assert_kept(found);
        assert_eq!(found.texts, expected.texts, "{}", case.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_their_grammars_say_wherever_they_are_made() {
    let mut random = Random(2026);
    let schemas = (0..counts().schemas).map(|_| Case::schema(&mut random)).collect::<Vec<_>>();
    let regexes = (0..counts().regexes).map(|_| Case::regex(&mut random)).collect::<Vec<_>>();
    let choices = (0..counts().regexes.min(12)).map(|_| Case::choice(&mut random)).collect::<Vec<_>>();
    let cases: Vec<Case> = schemas.into_iter().chain(regexes).chain(choices).collect();

    let local = Cluster::start_embedded(SETTINGS).await;
    let mut split = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 1, decode: 2 }).await;
    let expected = answers(&local, &cases).await;
    assert_same(&cases, &expected, &expected);
    assert_same(&cases, &answers(&split, &cases).await, &expected);

    // The schemas once more, and in the middle of each few a decode node is gone.
    let (schemas, expected) = (&cases[..counts().schemas], &expected[..counts().schemas]);
    let rounds = schemas.chunks(TOGETHER).zip(expected.chunks(TOGETHER)).take(counts().structured_losses);
    let (mut losses, count) = (0, rounds.len());
    for (cases, expected) in rounds {
        let (found, is_lost) = answers_with_a_loss(&mut split, cases).await;
        assert_same(cases, &found, expected);
        split.wait_until_idle(Duration::from_secs(30)).await;
        if is_lost {
            losses += 1;
            split.start_node("decode-1");
            split.wait_for_members(WORKERS).await;
        }
    }
    println!("{} schemas, {losses} decode nodes lost in {count} rounds of them", schemas.len());
    assert!(2 * losses >= count, "{losses} of {count}");
}

/// While decode-1 is killed at work, unless all were done before it was seen at work.
async fn answers_with_a_loss(split: &mut Cluster, cases: &[Case]) -> (Vec<StreamedAnswer>, bool) {
    let asking = {
        let (http, url) = (split.http.clone(), split.url.clone());
        let ask = |case: &Case| {
            let (http, url, body) = (http.clone(), url.clone(), case.body.clone());
            async move { complete(&http, &url, &body).await }
        };
        futures::future::join_all(cases.iter().map(ask).collect::<Vec<_>>())
    };
    let is_at_work = |pages: &PageCounts| pages.running > 0;
    let working = eventually("decode-1 to be at work", || async {
        split.pages("decode-1").await.filter(is_at_work).map(drop)
    });
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        found = &mut asking => return (found, false),
        () = working => {}
    }
    split.kill("decode-1");
    (asking.await, true)
}
