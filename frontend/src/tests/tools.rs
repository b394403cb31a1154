//! Tools in the words of OpenAI and Anthropic, with a model whose template knows none.

use baton_protocol::GrammarKind;
use serde_json::{Value, json};

use super::script::{Script, TestServer};
use crate::Config;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const CALL: &str = r#"{"name": "get_weather", "arguments": {"city": "Köln"}}"#;

fn weather() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
}

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "tools": [
        {"type": "function", "function": {"name": "get_weather", "description": "Tells it.", "parameters": weather()}},
        {"type": "function", "function": {"name": "now"}}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn message(more: &Value) -> Value {
    let mut body = json!({"model": "mock", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "get_weather", "input_schema": weather()}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn prompt(server: &TestServer) -> String {
    let asked = server.script.asked.lock().pop().unwrap();
    String::from_utf8_lossy(&asked.tokens.iter().map(|token| *token as u8).collect::<Vec<_>>()).into_owned()
}

#[tokio::test]
async fn a_call_is_told_whole() {
    let server = TestServer::start(Script::ending(CALL)).await;
    let answer = server.answered(CHAT, &chat(&json!({}))).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "get_weather", "arguments": "{\"city\": \"Köln\"}"}));
    assert_eq!(call["type"], "function");
    assert_eq!(call["id"].as_str().unwrap().len(), 9);
    let prompt = prompt(&server).await;
    for said in ["get_weather", "Tells it.", "\"city\"", "now"] {
        assert!(prompt.contains(said), "{said}: {prompt}");
    }
    // Who may not be called is not.
    let answer = server.answered(CHAT, &chat(&json!({"tool_choice": "none"}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], CALL);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_call_is_streamed_as_it_comes() {
    let server = TestServer::start(Script::ending(CALL)).await;
    let events = server.events(CHAT, &chat(&json!({"stream": true}))).await;
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let choices =
        events.iter().map(|event| serde_json::from_str::<Value>(event).unwrap()["choices"][0].take());
    let (mut names, mut arguments, mut reasons) = (Vec::new(), String::new(), Vec::new());
    for choice in choices {
        let delta = &choice["delta"];
        assert!(delta.get("content").is_none_or(|content| content == ""), "{choice}");
        if let Some(reason) = choice["finish_reason"].as_str() {
            reasons.push(reason.to_owned());
        }
        let Some(call) = delta["tool_calls"].get(0) else { continue };
        assert_eq!(call["index"], 0);
        if let Some(name) = call["function"]["name"].as_str() {
            assert_eq!((&call["type"], call["id"].as_str().unwrap().len()), (&json!("function"), 9));
            names.push(name.to_owned());
        }
        arguments += call["function"]["arguments"].as_str().unwrap();
    }
    assert_eq!((names, arguments), (vec!["get_weather".to_owned()], "{\"city\": \"Köln\"}".to_owned()));
    assert_eq!(reasons, ["tool_calls"]);
}

#[tokio::test]
async fn text_of_an_answer_with_tools_is_text() {
    for text in ["It is warm.", "{\"city\": 1}", "[1, 2"] {
        let server = TestServer::start(Script::ending(text)).await;
        let answer = server.answered(CHAT, &chat(&json!({}))).await;
        let choice = &answer["choices"][0];
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")));
        assert!(choice["message"].get("tool_calls").is_none());
    }
}

#[tokio::test]
async fn demanded_calls_have_to_fit_their_schema() {
    let server = TestServer::start(Script::ending(CALL)).await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let strict =
        json!([{"type": "function", "function": {"name": "f", "strict": true, "parameters": weather()}}]);
    for (more, kind) in [
        (json!({"tool_choice": "required"}), Some(GrammarKind::Json)),
        (json!({"tool_choice": "required", "parallel_tool_calls": false}), Some(GrammarKind::Json)),
        (json!({"tool_choice": named}), Some(GrammarKind::Json)),
        (json!({"tools": strict}), Some(GrammarKind::Lark)),
        (json!({"tool_choice": "auto"}), None),
        (json!({"tools": strict, "tool_choice": "none"}), None),
    ] {
        let response = server.post(CHAT, &chat(&more)).await;
        let status = response.status();
        assert_eq!(status, 200, "{more}: {}", response.text().await.unwrap());
        let asked = server.script.asked.lock().pop().unwrap();
        assert_eq!(asked.sampling.grammar.as_ref().map(|grammar| grammar.kind), kind, "{more}");
    }
    let any = server.post(MESSAGES, &message(&json!({"tool_choice": {"type": "any"}}))).await;
    assert_eq!(any.status(), 200);
    assert!(server.script.asked.lock().pop().unwrap().sampling.grammar.is_some());
}

#[tokio::test]
async fn a_conversation_goes_on_behind_a_call() {
    let server = TestServer::start(Script::ending("Warm.")).await;
    let call = json!({"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Köln\"}"}});
    let messages = json!([{"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"}]);
    server.answered(CHAT, &chat(&json!({"messages": messages}))).await;
    let openai = prompt(&server).await;
    assert!(openai.contains("{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Köln\"}}"), "{openai}");
    assert!(openai.contains("Result of get_weather: 21 degrees"), "{openai}");
    let messages = json!([{"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Köln"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "21 degrees"}]}]}]);
    let answer = server.answered(MESSAGES, &message(&json!({"messages": messages}))).await;
    assert_eq!(answer["content"], json!([{"type": "text", "text": "Warm."}]));
    let anthropic = prompt(&server).await;
    assert!(anthropic.contains("I look.\n{\"name\":\"get_weather\""), "{anthropic}");
    assert!(anthropic.contains("Result of get_weather: 21 degrees"), "{anthropic}");
}

#[tokio::test]
async fn anthropics_calls_are_blocks() {
    let server = TestServer::start(Script::ending(CALL)).await;
    let answer = server.answered(MESSAGES, &message(&json!({}))).await;
    let block = &answer["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("get_weather")));
    assert_eq!(block["input"], json!({"city": "Köln"}));
    assert_eq!(answer["stop_reason"], "tool_use");
    let response = server.post(MESSAGES, &message(&json!({"stream": true}))).await;
    let text = response.text().await.unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let (first, last) = (&names[..2], &names[names.len() - 3..]);
    assert_eq!(first, ["message_start", "content_block_start"]);
    assert_eq!(last, ["content_block_stop", "message_delta", "message_stop"]);
    let pieces = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let pieces = pieces.map(|data| serde_json::from_str::<Value>(data).unwrap());
    let input: String =
        pieces.filter_map(|event| event["delta"]["partial_json"].as_str().map(str::to_owned)).collect();
    assert_eq!(input, "{\"city\": \"Köln\"}");
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_named() {
    let config = Config { max_tools: 2, ..Config::default() };
    let server = TestServer::configured(Script::ending(CALL), config).await;
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    for (more, named) in [
        (json!({"tools": [tool("a b", weather())]}), "tools[0].function.name"),
        (json!({"tools": [tool("a", json!("x"))]}), "tools[0].function.parameters"),
        (json!({"tools": [tool("a", weather()), tool("a", weather())]}), "tools"),
        (
            json!({"tools": [tool("a", weather()), tool("b", weather()), tool("c", weather())]}),
            "frontend.max_tools",
        ),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "none"}}}), "tool_choice"),
        (json!({"tool_choice": "required", "tools": [tool("a", json!({"type": "strnig"}))]}), "tools"),
        (json!({"guided_regex": "a"}), "guided_regex"),
        (json!({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}), "messages"),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "x", "type": "function",
            "function": {"name": "f", "arguments": "{"}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
    ] {
        let response = server.post(CHAT, &chat(&more)).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status == 400 && text.contains(named), "{more}: {status} {text}");
    }
    assert!(server.script.asked.lock().is_empty());
}
