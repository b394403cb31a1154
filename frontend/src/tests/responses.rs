//! OpenAI's Responses: whole, as events, and kept.

use baton_protocol::{ErrorCode, Event, Failure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::script::{Script, TestServer, bytes, says};
use crate::{Config, ResponseLimits};

const PATH: &str = "/v1/responses";

fn ask(input: &Value) -> Value {
    json!({"model": "mock", "input": input})
}

/// With further fields.
fn and(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Names and data of all events.
async fn events(server: &TestServer, body: &Value) -> Vec<(String, Value)> {
    let response = server.post(PATH, &and(body.clone(), &json!({"stream": true}))).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let event = |text: &str| {
        let (name, data) = text.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        (name, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
    };
    text.trim_end().split("\n\n").map(event).collect()
}

fn ending(text: &str) -> Script {
    Script::ending(text)
}

#[tokio::test]
async fn a_text_is_answered_with_an_item() {
    let server = TestServer::start(Script::saying(says(&["hello"]))).await;
    let body = and(ask(&json!("hi")), &json!({"temperature": 0, "metadata": {"a": "b"}}));
    let answer = server.answered(PATH, &body).await;
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&answer["status"], &answer["temperature"]), (&json!("incomplete"), &json!(0)));
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(answer["metadata"], json!({"a": "b"}));
    let item = &answer["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("incomplete"))
    );
    assert_eq!(item["content"][0]["text"], "hello");
    assert_eq!(answer["usage"]["output_tokens"], 5);
    assert_eq!(answer["usage"]["input_tokens_details"]["cached_tokens"], 5);
    let sampling = server.script.asked.lock()[0].sampling.clone();
    assert_eq!(sampling.temperature, 0.0);
}

#[tokio::test]
async fn events_come_in_order_and_number() {
    let server = TestServer::start(ending("hello")).await;
    let all = events(&server, &ask(&json!("hi"))).await;
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    let deltas = names.iter().filter(|name| **name == "response.output_text.delta").count();
    let mut expected = vec![
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ];
    expected.extend(vec!["response.output_text.delta"; deltas]);
    expected.extend([
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]);
    assert_eq!(names, expected);
    for (number, (name, event)) in all.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(number)));
    }
    let text: String = all.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(text, "hello");
    let streamed = &all.last().unwrap().1["response"];
    let whole = server.answered(PATH, &ask(&json!("hi"))).await;
    assert_eq!(streamed["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(streamed["usage"], whole["usage"]);
    assert_eq!(whole["status"], "completed");
}

#[tokio::test]
async fn calls_of_tools_are_items_and_their_results_go_back() {
    let call = r#"{"name": "f", "arguments": {"x": 1}}"#;
    let server = TestServer::start(ending(call)).await;
    let tools = json!({"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]});
    let body = and(ask(&json!("hi")), &tools);
    let whole = server.answered(PATH, &body).await;
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("f")));
    assert_eq!(item["arguments"].as_str().unwrap().parse::<Value>().unwrap(), json!({"x": 1}));
    let all = events(&server, &body).await;
    let of = |name: &str| {
        all.iter().filter(|(found, _)| found == name).map(|(_, event)| event).collect::<Vec<_>>()
    };
    let pieces = of("response.function_call_arguments.delta");
    let arguments: String = pieces.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    let done = of("response.function_call_arguments.done");
    assert_eq!((&done[0]["arguments"], &json!(arguments)), (&item["arguments"], &item["arguments"]));

    // By items, and by the answer that is kept: the model sees the same.
    let result = json!({"type": "function_call_output", "call_id": item["call_id"], "output": "2"});
    let user = json!({"role": "user", "content": "hi"});
    server.answered(PATH, &and(ask(&json!([user, item, result])), &tools)).await;
    let goes_on = json!({"previous_response_id": whole["id"]});
    server.answered(PATH, &and(and(ask(&json!([result])), &goes_on), &tools)).await;
    let asked = server.script.asked.lock();
    let [.., by_items, by_id] = asked.as_slice() else { panic!("too few were asked") };
    assert_eq!(by_items.tokens, by_id.tokens);
}

#[tokio::test]
async fn what_is_kept_is_had_again_gone_on_from_and_deleted() {
    let folder = TempDir::new().unwrap();
    let config = Config { state_dir: Some(folder.path().to_owned()), ..Config::default() };
    let server = TestServer::configured(ending("blue"), config.clone()).await;
    let first = server.answered(PATH, &and(ask(&json!("sky?")), &json!({"instructions": "Be brief."}))).await;
    let path = format!("{PATH}/{}", first["id"].as_str().unwrap());
    server.shut_down().await;

    let server = TestServer::configured(ending("green"), config).await;
    assert_eq!(server.get(&path).await.json::<Value>().await.unwrap(), first);
    let goes_on = json!({"previous_response_id": first["id"]});
    let second = server.answered(PATH, &and(ask(&json!("grass?")), &goes_on)).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let by_hand = json!([
        {"role": "user", "content": "sky?"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "blue", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "grass?"}]},
    ]);
    server.answered(PATH, &and(ask(&by_hand), &json!({"store": false}))).await;
    {
        let asked = server.script.asked.lock();
        assert_eq!(asked[0].tokens, asked[1].tokens, "instructions are not kept");
    }
    let deleted = server.client.delete(format!("{}{path}", server.base)).send().await.unwrap();
    assert_eq!(deleted.json::<Value>().await.unwrap()["deleted"], true);
    assert_eq!(server.get(&path).await.status(), 404);
    let gone = server.post(PATH, &and(ask(&json!("x")), &goes_on)).await;
    assert_eq!(gone.json::<Value>().await.unwrap()["error"]["param"], "previous_response_id");
}

#[tokio::test]
async fn what_was_said_is_listed_in_parts_and_counted() {
    let server = TestServer::start(ending("x")).await;
    let said = json!([
        {"role": "user", "content": "sum?"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"role": "assistant", "content": "one", "id": "msg_own"},
    ]);
    let first = server.answered(PATH, &ask(&said)).await;
    let path = format!("{PATH}/{}/input_items", first["id"].as_str().unwrap());
    let list = async |query: &str| server.get(&format!("{path}{query}")).await.json::<Value>().await.unwrap();
    let all = list("?order=asc").await;
    let types: Vec<_> = all["data"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
    assert_eq!(types, ["message", "function_call", "function_call_output", "message"]);
    assert_eq!(all["data"][0]["content"], json!([{"type": "input_text", "text": "sum?"}]));
    assert_eq!((&all["last_id"], &all["has_more"]), (&json!("msg_own"), &json!(false)));
    let page = list("?limit=3").await;
    assert_eq!((&page["first_id"], &page["has_more"]), (&json!("msg_own"), &json!(true)));
    let rest = list(&format!("?after={}", page["last_id"].as_str().unwrap())).await;
    assert_eq!(rest["data"], json!([all["data"][0]]));

    // Of a call that goes on from another, its own items; counted are all.
    let goes_on = json!({"previous_response_id": first["id"]});
    let second = server.answered(PATH, &and(ask(&json!("more?")), &goes_on)).await;
    let path = format!("{PATH}/{}/input_items", second["id"].as_str().unwrap());
    let own: Value = server.get(&path).await.json().await.unwrap();
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
    let counted =
        server.answered(&format!("{PATH}/input_tokens"), &and(ask(&json!("more?")), &goes_on)).await;
    let asked = server.script.asked.lock().last().unwrap().tokens.len();
    assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": asked}));
}

#[tokio::test]
async fn what_cannot_be_done_with_an_answer_is_refused_by_name() {
    let server = TestServer::start(ending("x")).await;
    let id = server.answered(PATH, &ask(&json!("hi"))).await["id"].as_str().unwrap().to_owned();
    for (path, param) in [
        (format!("{id}?stream=true"), "stream"),
        (format!("{id}/input_items?include=x"), "include"),
        (format!("{id}/input_items?limit=101"), "limit"),
    ] {
        let refused = server.get(&format!("{PATH}/{path}")).await;
        assert_eq!(refused.status(), 400, "{path}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], param);
    }
    let streamed = and(ask(&json!("hi")), &json!({"stream": true}));
    let refused = server.post(&format!("{PATH}/input_tokens"), &streamed).await;
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], "stream");
    let cancelled = server.post(&format!("{PATH}/{id}/cancel"), &json!({})).await;
    assert_eq!(cancelled.status(), 409);
    let unknown = server.post(&format!("{PATH}/resp_1/cancel"), &json!({})).await;
    assert_eq!(unknown.status(), 404);
    let unknown = server.get(&format!("{PATH}/resp_1/input_items")).await;
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn an_answer_that_shall_not_be_kept_is_not() {
    let server = TestServer::start(ending("x")).await;
    let answer = server.answered(PATH, &and(ask(&json!("hi")), &json!({"store": false}))).await;
    assert_eq!(answer["store"], false);
    let path = format!("{PATH}/{}", answer["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.status(), 404);
}

#[tokio::test]
async fn the_oldest_goes_first() {
    let limits = ResponseLimits { max_kept: 2, ..ResponseLimits::default() };
    let server = TestServer::configured(ending("x"), Config { responses: limits, ..Config::default() }).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(server.answered(PATH, &ask(&json!("hi"))).await["id"].as_str().unwrap().to_owned());
    }
    let mut found = Vec::new();
    for id in ids {
        found.push(server.get(&format!("{PATH}/{id}")).await.status().as_u16());
    }
    assert_eq!(found, [404, 200, 200]);
}

#[tokio::test]
async fn what_is_not_there_is_refused_by_name() {
    let server = TestServer::start(ending("x")).await;
    for (more, param) in [
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}), "input"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice.type"),
        (json!({"include": ["reasoning.encrypted_content"]}), "include[0]"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"max_tool_calls": 1}), "max_tool_calls"),
        (json!({"reasoning": {"summary": "auto"}}), "reasoning.summary"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning.effort"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"max_output_tokens": 1_000_000}), "max_output_tokens"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"stream_options": {}}), "stream_options"),
    ] {
        let refused = server.post(PATH, &and(ask(&json!("hi")), &more)).await;
        let (status, body) = (refused.status().as_u16(), refused.json::<Value>().await.unwrap());
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{body}");
    }
    assert!(server.script.asked.lock().is_empty());
}

#[tokio::test]
async fn schemas_hold_the_answer() {
    let server = TestServer::start(ending("{}")).await;
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    let answer = server.answered(PATH, &and(ask(&json!("hi")), &json!({"text": {"format": format}}))).await;
    assert_eq!(answer["text"]["format"], format);
    assert!(server.script.asked.lock()[0].sampling.grammar.is_some());
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let mut broken = bytes(0, "a");
    broken.push(Event::Failed(Failure::new(ErrorCode::PeerLost, "gone")));
    let server = TestServer::start(Script::saying(broken)).await;
    let all = events(&server, &ask(&json!("hi"))).await;
    let (name, event) = all.last().unwrap();
    assert_eq!(name, "response.failed");
    assert_eq!(event["response"]["status"], "failed");
    assert_eq!(event["response"]["error"]["message"], "gone");
}
