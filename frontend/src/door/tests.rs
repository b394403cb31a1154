//! Keys, tenants and limits, over real sockets.

use std::{path::PathBuf, sync::Arc};

use baton_protocol::{ErrorCode, Failure};
use baton_trust::Rank;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::{
    Door,
    keys::{KeyRing, NewKey},
};
use crate::{
    Config,
    tests::script::{Script, TestServer, says, soon},
};

/// A file of keys that goes with the test.
struct KeyFile {
    path: PathBuf,
}

/// A server that wants keys.
struct Guarded {
    server: TestServer,
    file: KeyFile,
}

// === impl KeyFile ===

impl KeyFile {
    fn holding(text: &str) -> Self {
        let name = format!("baton-keys-{:016x}.toml", rand());
        let file = Self { path: std::env::temp_dir().join(name) };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

fn rand() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

// === impl Guarded ===

impl Guarded {
    async fn with(keys: &str) -> Self {
        let file = KeyFile::holding(keys);
        let config = Config { keys_file: Some(file.path.clone()), ..Config::default() };
        let server = TestServer::configured(Script::saying(says(&["hello"])), config).await;
        Self { server, file }
    }

    async fn call(&self, path: &str, key: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Response {
        let method = if path.starts_with('/') && GETS.contains(&path) { Method::GET } else { Method::POST };
        let mut request = self.server.client.request(method.clone(), format!("{}{path}", self.server.base));
        if method == Method::POST {
            request = request.json(&body_of(path));
        }
        key(request).send().await.unwrap()
    }

    async fn chat(&self, key: &str) -> Response {
        self.call("/v1/chat/completions", |request| request.bearer_auth(key)).await
    }
}

const GETS: [&str; 8] =
    ["/v1/models", "/health", "/ready", "/metrics", "/version", "/load", "/info", "/get_model_info"];

fn body_of(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "hi"}]);
    match path {
        "/v1/completions" => json!({"model": "mock", "prompt": "hi"}),
        "/generate" => json!({"text": "hi"}),
        "/generate_stream" | "/" => json!({"inputs": "hi"}),
        "/tokenize" => json!({"model": "mock", "prompt": "hi"}),
        _ => json!({"model": "mock", "max_tokens": 5, "messages": messages}),
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Two tenants, the first with limits, and a key of each.
fn two_tenants(limits: &str) -> (String, String, String) {
    let (one, two) = (NewKey::make("one", None).unwrap(), NewKey::make("two", None).unwrap());
    (format!("[tenants.one]\n{limits}\n{}{}", one.entry, two.entry), one.key, two.key)
}

#[tokio::test]
async fn only_known_keys_come_in_and_each_brings_its_tenant() {
    let (file, one, two) = two_tenants("");
    let guarded = Guarded::with(&file).await;
    for key in [&one, &two] {
        assert_eq!(guarded.chat(key).await.status(), 200);
    }
    let response = guarded.call("/v1/messages", |request| request.header("x-api-key", &one)).await;
    assert_eq!(response.status(), 200);
    let tenants: Vec<_> =
        guarded.server.script.asked.lock().iter().map(|request| request.tenant.clone()).collect();
    assert_eq!(tenants, ["one", "two", "one"]);

    let other = NewKey::make("one", None).unwrap().key;
    let changed = format!("{}0", &one[..one.len() - 1]);
    let changed = if changed == one { format!("{}1", &one[..one.len() - 1]) } else { changed };
    let swapped = format!("{}{}", &one[..25], &two[25..]);
    for wrong in ["", "x", "none", &one[..30], &format!("{one}0"), &other, &changed, &swapped] {
        let response = guarded.chat(wrong).await;
        assert_eq!(response.status(), 401, "{wrong:?}");
        assert_eq!(header(&response, "www-authenticate"), Some("Bearer"));
        assert_eq!(header(&response, "x-should-retry"), Some("false"));
    }
    assert_eq!(guarded.server.script.asked.lock().len(), 3);
}

#[tokio::test]
async fn probes_and_scrapers_need_no_key_and_everything_else_does() {
    let (file, one, _) = two_tenants("");
    let guarded = Guarded::with(&file).await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(guarded.call(path, |request| request).await.status(), 200, "{path}");
    }
    let closed =
        ["/v1/models", "/version", "/load", "/info", "/get_model_info", "/v1/completions", "/generate"];
    for path in closed.into_iter().chain(["/tokenize", "/", "/generate_stream", "/v1/messages"]) {
        assert_eq!(guarded.call(path, |request| request).await.status(), 401, "{path}");
        let let_in = guarded.call(path, |request| request.bearer_auth(&one)).await;
        assert_eq!(let_in.status(), 200, "{path}: {}", let_in.text().await.unwrap());
    }
    assert_eq!(guarded.call("/no/such/path", |request| request).await.status(), 401);
}

/// Pages of all tenants are in one cache, and one tenant's key is no key to the others' pages.
#[tokio::test]
async fn no_tenant_flushes_what_all_of_them_have_cached() {
    let (file, one, _) = two_tenants("");
    let guarded = Guarded::with(&file).await;
    for path in ["/flush_cache", "/reset_prefix_cache"] {
        assert_eq!(guarded.call(path, |request| request).await.status(), 401, "{path}");
        let refused = guarded.call(path, |request| request.bearer_auth(&one)).await;
        assert_eq!((refused.status().as_u16(), header(&refused, "x-should-retry")), (403, Some("false")));
        let error = refused.json::<Value>().await.unwrap()["error"].take();
        assert_eq!((&error["type"], &error["code"]), (&json!("permission_error"), &json!("operators_only")));
        assert!(error["message"].as_str().unwrap().contains("`baton admin flush`"), "{error}");
    }
    assert_eq!(guarded.server.script.forgot.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn refusals_are_in_the_words_of_the_dialect() {
    let guarded = Guarded::with("").await;
    let refused = async |path: &str| {
        let response = guarded.call(path, |request| request).await;
        assert_eq!(response.status(), 401, "{path}");
        response.json::<Value>().await.unwrap()
    };
    let openai = refused("/v1/chat/completions").await;
    assert_eq!(openai["error"]["code"], "missing_api_key");
    assert_eq!(openai["error"]["type"], "authentication_error");
    let anthropic = refused("/v1/messages").await;
    assert_eq!(
        (&anthropic["type"], &anthropic["error"]["type"]),
        (&json!("error"), &json!("authentication_error"))
    );
    let tgi = refused("/generate_stream").await;
    assert_eq!(tgi["error_type"], "authentication");
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused_for_as_long_as_it_takes() {
    let (file, one, two) = two_tenants("requests_per_minute = 2");
    let guarded = Guarded::with(&file).await;
    for left in ["1", "0"] {
        let response = guarded.chat(&one).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(header(&response, "x-ratelimit-remaining-requests"), Some(left));
        assert!(header(&response, "x-ratelimit-reset-requests").is_some_and(|wait| wait.ends_with('s')));
        assert_eq!(header(&response, "x-ratelimit-limit-tokens"), None);
    }
    let refused = guarded.chat(&one).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(header(&refused, "x-should-retry"), Some("true"));
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), Some("0"));
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    assert!(body["error"]["message"].as_str().unwrap().contains("2 requests per minute"), "{body}");
    // What asks for no answer is not counted, and others have limits of their own.
    assert_eq!(guarded.call("/v1/models", |request| request.bearer_auth(&one)).await.status(), 200);
    assert_eq!(guarded.chat(&two).await.status(), 200);
    let anthropic = guarded.call("/v1/messages", |request| request.header("x-api-key", &one)).await;
    assert_eq!(anthropic.status(), 429);
    assert_eq!(anthropic.json::<Value>().await.unwrap()["error"]["type"], "rate_limit_error");
}

#[tokio::test]
async fn tokens_of_prompts_and_answers_count_together() {
    let (file, one, _) = two_tenants("tokens_per_minute = 10");
    let guarded = Guarded::with(&file).await;
    let first = guarded.call("/v1/completions", |request| request.bearer_auth(&one)).await;
    assert_eq!(first.status(), 200);
    // 2 of the prompt and 5 of the answer are used: some are left, so one more is let in.
    assert_eq!(header(&first, "x-ratelimit-remaining-tokens"), Some("3"));
    assert_eq!(guarded.chat(&one).await.status(), 200);
    let refused = guarded.chat(&one).await;
    assert_eq!(refused.status(), 429);
    let body: Value = refused.json().await.unwrap();
    assert!(body["error"]["message"].as_str().unwrap().contains("10 tokens per minute"), "{body}");
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_a_broken_one_is_not() {
    let (file, one, two) = two_tenants("requests_per_minute = 100000");
    let guarded = Guarded::with(&file).await;
    assert_eq!(guarded.chat(&one).await.status(), 200);
    // A second key of the first tenant; the other tenant is gone.
    let new = NewKey::make("one", None).unwrap();
    let kept = file.split("\n[[keys]]").take(2).collect::<Vec<_>>().join("\n[[keys]]");
    guarded.file.write(&format!("{kept}{}", new.entry));
    soon(async { while guarded.chat(&new.key).await.status() != 200 {} }).await;
    assert_eq!(guarded.chat(&one).await.status(), 200);
    assert_eq!(guarded.chat(&two).await.status(), 401);
    guarded.file.write("[[keys]]\nid = ");
    tokio::time::sleep(super::LOOK_INTERVAL * 2).await;
    assert_eq!(guarded.chat(&new.key).await.status(), 200);
}

#[test]
fn what_a_tenant_has_used_outlives_a_change_of_the_file_but_not_of_the_limits() {
    let (file, one, two) = two_tenants("requests_per_minute = 10");
    let before = KeyRing::parse(&file, &KeyRing::default()).unwrap();
    let after =
        KeyRing::parse(&format!("{file}{}", NewKey::make("one", None).unwrap().entry), &before).unwrap();
    let [old, new] = [&before, &after].map(|ring| ring.tenant_of(&one).unwrap());
    assert!(Arc::ptr_eq(old, new), "a change of keys gives nobody a full bucket");
    let changed = KeyRing::parse(&file.replace("= 10", "= 20"), &after).unwrap();
    assert!(!Arc::ptr_eq(new, changed.tenant_of(&one).unwrap()), "new limits begin anew");
    let [old, new] = [&before, &changed].map(|ring| ring.tenant_of(&two).unwrap());
    assert!(Arc::ptr_eq(old, new), "and only where they are new");
}

#[test]
fn wrong_files_are_refused_with_their_reason() {
    let good = NewKey::make("a", None).unwrap().entry;
    KeyRing::parse(&good, &KeyRing::default()).unwrap();
    for (text, reason) in [
        ("[[keys]]\nid = 'a'", "missing field"),
        ("[[keys]]\nid = 'a'\ntenant = 'a'\nsha256 = 'zz'", "64 lowercase hexadecimal digits"),
        (&format!("{good}{good}"), "is there twice"),
        (&good.replace("tenant = \"a\"", "tenant = \"a b\""), "1 to 64 letters"),
        ("[tenants.a]\nrequests_per_minute = 0", "must be positive"),
        ("[tenants.a]\nrequests_per_hour = 1", "unknown field"),
    ] {
        let error = KeyRing::parse(text, &KeyRing::default()).err().expect("wrong").to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(NewKey::make("a\"\n[[keys]]", None).is_err());
    assert!(!good.contains("sk-"), "the file holds no key");
}

#[tokio::test]
async fn ranks_are_operators_and_who_has_none_may_do_everything() {
    let (ann, bob) = (NewKey::make("ann", Some(Rank::Viewer)).unwrap(), NewKey::make("bob", None).unwrap());
    let kept = KeyFile::holding(&(bob.entry + &ann.entry));
    let file = kept.path.clone();
    let refused = Door::new(Some(file.clone())).await.err().expect("a user with a rank").to_string();
    assert!(refused.contains("admin.keys_file"), "{refused}");
    let door = Door::of_operators(file).await.unwrap();
    let operator = |name: &str, rank| Some((name.to_owned(), rank));
    assert_eq!(door.operator_of(&ann.key), operator("ann", Rank::Viewer));
    assert_eq!(door.operator_of(&bob.key), operator("bob", Rank::Admin));
    assert_eq!(door.operator_of(&NewKey::make("ann", None).unwrap().key), None);
    let unknown = KeyRing::parse(&ann.entry.replace("viewer", "king"), &KeyRing::default()).err().unwrap();
    assert!(unknown.to_string().contains("unknown variant"), "{unknown}");
}

#[tokio::test]
async fn pages_of_named_origins_may_call_and_ask_without_a_key() {
    let (file, one, _) = two_tenants("");
    let file = KeyFile::holding(&file);
    let (ours, other) = ("https://chat.example", "https://other.example");
    let config = Config {
        keys_file: Some(file.path.clone()),
        cors_origins: vec![ours.to_owned()],
        ..Config::default()
    };
    let server = TestServer::configured(Script::saying(says(&["hello"])), config).await;
    let url = format!("{}/v1/chat/completions", server.base);
    for (origin, allowed) in [(ours, Some(ours)), (other, None)] {
        let asked = server
            .client
            .request(Method::OPTIONS, &url)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send();
        let asked = asked.await.unwrap();
        assert_eq!(asked.status(), 200);
        assert_eq!(header(&asked, "access-control-allow-origin"), allowed);
        assert_eq!(header(&asked, "access-control-allow-headers"), Some("authorization,content-type"));
    }
    let body = body_of("/v1/chat/completions");
    let answer =
        server.client.post(&url).header("origin", ours).bearer_auth(one).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some(ours));
    assert!(header(&answer, "access-control-expose-headers").unwrap().contains("x-request-id"));
}

#[tokio::test]
async fn ids_of_clients_come_back_and_ours_stand_in() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    let ask = |id: &str| {
        let request = server.client.post(format!("{}/v1/chat/completions", server.base));
        request.header("x-request-id", id).json(&body_of("")).send()
    };
    assert_eq!(header(&ask("trace-7.a").await.unwrap(), "x-request-id"), Some("trace-7.a"));
    for odd in ["", "two words", &"x".repeat(129)] {
        let response = ask(odd).await.unwrap();
        assert_eq!(header(&response, "x-request-id").unwrap().len(), 32, "{odd:?}");
    }
}

#[tokio::test]
async fn errors_say_whether_to_try_again() {
    for (code, retry) in [
        (ErrorCode::Overloaded, "true"),
        (ErrorCode::Unavailable, "true"),
        (ErrorCode::InvalidRequest, "false"),
    ] {
        let server = TestServer::start(Script::new(move |_| Err(Failure::new(code, "no")))).await;
        let response = server.chat(&body_of("")).await;
        assert_eq!(header(&response, "x-should-retry"), Some(retry), "{code}");
    }
}
