//! The table of calls.

use serde_json::{Value, json};

/// A call that is to be refused.
#[derive(Clone)]
pub struct Call {
    /// What is bad about it.
    pub what: &'static str,
    pub path: &'static str,
    pub body: String,
    /// What the refusal names: a field, or a word of its message.
    pub names: &'static str,
    /// What may come of it.
    pub may: May,
}

/// What may come of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum May {
    Refuse,
    /// It costs nothing.
    Both,
    /// It is unusual, and right.
    Answer,
}

const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

// === impl Call ===

impl Call {
    pub fn raw(what: &'static str, path: &'static str, body: String, names: &'static str) -> Self {
        Self { what, path, body, names, may: May::Refuse }
    }

    /// A chat that is good but for these fields.
    pub fn chat(what: &'static str, change: Value, names: &'static str) -> Self {
        let good = json!({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
        Self::raw(what, CHAT, with(good, change), names)
    }

    /// The same of a completion.
    pub fn completion(what: &'static str, change: Value, names: &'static str) -> Self {
        let good = json!({"model": "mock", "prompt": "hi", "max_tokens": 4});
        Self::raw(what, COMPLETIONS, with(good, change), names)
    }

    /// What a user says, in parts.
    fn part(what: &'static str, part: &Value) -> Self {
        Self::chat(what, json!({"messages": [{"role": "user", "content": [part]}]}), "messages[0].content[0]")
    }

    pub fn or_answered(self) -> Self {
        Self { may: May::Both, ..self }
    }

    pub fn answered(self) -> Self {
        Self { may: May::Answer, ..self }
    }
}

/// A body with other fields.
pub fn with(mut body: Value, change: Value) -> String {
    if let (Value::Object(body), Value::Object(change)) = (&mut body, change) {
        body.extend(change);
    }
    body.to_string()
}

/// A schema within itself.
fn nested(depth: usize, outside: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(json!({"type": "integer"}), |inner, _| outside(inner))
}

/// All of them.
pub fn calls() -> Vec<Call> {
    let kinds =
        [bodies(), texts(), numbers(), strangers(), limits(), schemas(), patterns(), grammars(), media()];
    kinds.into_iter().flatten().collect()
}

/// Bodies that are no calls.
fn bodies() -> Vec<Call> {
    let good = r#"{"model":"mock","max_tokens":4,"messages":[{"role":"user","content":"hi"}]"#;
    vec![
        Call::raw("arrays in arrays", CHAT, "[".repeat(100_000), "JSON"),
        Call::raw("objects in objects", CHAT, r#"{"a":"#.repeat(100_000), "JSON"),
        Call::raw("a field twice", CHAT, format!(r#"{good},"model":"mock"}}"#), "model"),
        Call::raw("a number beyond all numbers", CHAT, format!(r#"{good},"temperature":1e400}}"#), "JSON"),
        Call::raw("a surrogate alone", CHAT, good.replace("hi", "\\ud800") + "}", "JSON"),
        Call::raw("nothing", CHAT, String::new(), "JSON"),
        Call::raw("blanks", CHAT, format!("{good}{}}}", " ".repeat(1_000_000)), "").or_answered(),
        Call::raw("more than a body may have", CHAT, " ".repeat(5 << 20), "max_body_bytes"),
        Call::raw(
            "a million fields",
            CHAT,
            format!("{good}{}}}", (0..200_000).map(|i| format!(",\"f{i}\":1")).collect::<String>()),
            "",
        ),
    ]
}

/// Texts and tokens that cannot be.
fn texts() -> Vec<Call> {
    let many = |count: usize, value: Value| Value::Array(vec![value; count]);
    vec![
        Call::chat("a model by path", json!({"model": "../../etc/passwd"}), "model"),
        Call::chat("a model with a long name", json!({"model": "m".repeat(1 << 20)}), "model"),
        Call::chat("a model of nothing", json!({"model": ""}), "model"),
        Call::chat("no messages", json!({"messages": []}), "messages"),
        Call::chat(
            "very many messages",
            json!({"messages": many(20_000, json!({"role": "user", "content": "x"}))}),
            "max_messages",
        ),
        Call::chat(
            "a role that there is not",
            json!({"messages": [{"role": "root", "content": "x"}]}),
            "messages[0].role",
        ),
        Call::chat(
            "a long message",
            json!({"messages": [{"role": "user", "content": "a".repeat(1 << 20)}]}),
            "messages",
        ),
        Call::chat(
            "marks upon marks",
            json!({"messages": [{"role": "user", "content": "e".to_owned() + &"\u{301}".repeat(100_000)}]}),
            "messages",
        ),
        Call::completion("an empty prompt", json!({"prompt": ""}), "prompt"),
        Call::completion("a prompt of no tokens", json!({"prompt": [[]]}), "prompt"),
        Call::completion("a token below none", json!({"prompt": [-1]}), "prompt"),
        Call::completion("a token that there is not", json!({"prompt": [1_u64 << 40]}), "prompt"),
        Call::completion("half a token", json!({"prompt": [1.5]}), "prompt"),
        Call::completion("very many tokens", json!({"prompt": many(200_000, json!(65))}), "prompt"),
        Call::completion("very many prompts", json!({"prompt": many(10_000, json!("x"))}), "max_prompts"),
        Call::completion("a suffix", json!({"suffix": "x"}), "suffix"),
    ]
}

/// Numbers that cannot be.
fn numbers() -> Vec<Call> {
    vec![
        Call::chat("fewer tokens than none", json!({"max_tokens": -1}), "max_tokens"),
        Call::chat("more tokens than fit", json!({"max_tokens": 1_u64 << 31}), "max_tokens"),
        Call::chat("two maxima", json!({"max_completion_tokens": 5}), "max_"),
        Call::chat("a hundred thousand answers", json!({"n": 100_000}), "n"),
        Call::chat("no answers", json!({"n": 0}), "n"),
        Call::completion("best of a billion", json!({"best_of": 1_000_000_000}), "best_of"),
        Call::chat("a cold temperature", json!({"temperature": -1}), "temperature"),
        Call::chat("a hot temperature", json!({"temperature": 1e30}), "temperature"),
        Call::chat("no choice", json!({"top_p": 0}), "top_p"),
        Call::chat("a choice below none", json!({"top_k": -2}), "top_k"),
        Call::chat("a penalty beyond reason", json!({"presence_penalty": 1e9}), "presence_penalty"),
        Call::chat("a penalty of nothing", json!({"repetition_penalty": 0}), "repetition_penalty"),
        Call::chat("a bias on what is no token", json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        Call::chat("a bias beyond reason", json!({"logit_bias": {"5": 1e30}}), "logit_bias"),
        Call::chat(
            "log-probabilities of everything",
            json!({"logprobs": true, "top_logprobs": 1_000_000}),
            "top_logprobs",
        ),
        Call::chat(
            "log-probabilities of every prompt",
            json!({"prompt_logprobs": 100_000}),
            "prompt_logprobs",
        ),
        Call::chat("a stop string of nothing", json!({"stop": ""}), "stop"),
        Call::chat("a seed beyond all seeds", json!({"seed": 1.5e300}), "seed"),
        Call::chat("fewer than it must have", json!({"min_tokens": 5}), "min_tokens"),
    ]
}

/// Fields of others, which would reach where no call should.
fn strangers() -> Vec<Call> {
    vec![
        Call::chat("every token is bad", json!({"bad_words": vec!["x"; 1000]}), "bad_words"),
        Call::chat("only some tokens", json!({"allowed_token_ids": [1]}), "allowed_token_ids"),
        Call::chat("another's cache", json!({"cache_salt": "x".repeat(1 << 16)}), "cache_salt"),
        Call::chat("a worker of one's own", json!({"nvext": {"worker_id": 1}}), "nvext"),
        Call::chat(
            "a template of one's own",
            json!({"chat_template": "{% for i in range(999999999) %}x{% endfor %}"}),
            "chat_template",
        ),
        Call::chat(
            "a template's words",
            json!({"chat_template_kwargs": {"tokenize": true}}),
            "chat_template_kwargs",
        ),
        Call::chat(
            "pages of others",
            json!({"kv_transfer_params": {"remote_host": "169.254.169.254"}}),
            "kv_transfer_params",
        ),
        Call::chat("a room of others", json!({"bootstrap_room": 1}), "bootstrap_room"),
        Call::chat("a tensor", json!({"prompt_embeds": "gAN9"}), "prompt_embeds"),
        Call::chat("an adapter by path", json!({"lora_path": "../x"}), "lora_path"),
        Call::raw(
            "dimensions",
            "/v1/embeddings",
            json!({"model": "mock", "input": "x", "dimensions": 0}).to_string(),
            "dimensions",
        ),
        Call::raw(
            "very many inputs",
            "/v1/embeddings",
            json!({"model": "mock", "input": vec!["x"; 100_000]}).to_string(),
            "input",
        ),
    ]
}

/// More than the settings let in.
fn limits() -> Vec<Call> {
    let tool = |name: String| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let tools = |count: usize| (0..count).map(|i| tool(format!("f{i}"))).collect::<Vec<_>>();
    vec![
        Call::chat("very many stop strings", json!({"stop": vec!["a"; 10_000]}), "max_stop_strings"),
        Call::chat("a long stop string", json!({"stop": "a".repeat(1 << 20)}), "max_stop_bytes"),
        Call::chat(
            "very many stop tokens",
            json!({"stop_token_ids": vec![5; 100_000]}),
            "max_stop_token_ids",
        ),
        Call::chat(
            "very many biases",
            json!({"logit_bias": (0..200).map(|i| (i.to_string(), json!(1))).chain((0..5000).map(|i| (format!("{i:05}"), json!(1)))).collect::<serde_json::Map<_, _>>()}),
            "logit_bias",
        ),
        Call::chat("very many tools", json!({"tools": tools(10_000)}), "max_tools"),
        Call::chat("a tool twice", json!({"tools": [tool("f".to_owned()), tool("f".to_owned())]}), "tools"),
        Call::chat(
            "a tool without a name",
            json!({"tools": [tool(String::new())]}),
            "tools[0].function.name",
        ),
        Call::chat("a tool by path", json!({"tools": [tool("a/b".to_owned())]}), "tools[0].function.name"),
        Call::chat(
            "a tool of what is no schema",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}),
            "tools[0].function.parameters",
        ),
        Call::chat(
            "a tool that there is not",
            json!({"tools": tools(1), "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice",
        ),
        Call::chat(
            "a tool whose pattern is none",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}}}], "tool_choice": "required"}),
            "tools",
        ),
        Call::chat(
            "a tool whose type is none",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": 5}}}}}], "tool_choice": "required"}),
            "tools",
        ),
    ]
}

fn schema(what: &'static str, schema: &Value) -> Call {
    Call::chat(what, json!({"guided_json": schema}), "guided_json")
}

/// Schemas that cost more than they say.
fn schemas() -> Vec<Call> {
    let deep = |depth| nested(depth, |inner| json!({"type": "object", "properties": {"a": inner}}));
    let fan = |name: &str, next: &str| {
        (
            name.to_owned(),
            json!({"type": "array", "prefixItems": [{"$ref": next}, {"$ref": next}], "minItems": 2, "items": false}),
        )
    };
    let mut doubled: serde_json::Map<String, Value> =
        (0..30).map(|i| fan(&format!("a{i}"), &format!("#/$defs/a{}", i + 1))).collect();
    doubled.insert("a30".to_owned(), json!({"type": "integer"}));
    let mut chained: serde_json::Map<String, Value> =
        (0..1500).map(|i| (format!("a{i}"), json!({"$ref": format!("#/$defs/a{}", i + 1)}))).collect();
    chained.insert("a1500".to_owned(), json!({"type": "integer"}));
    vec![
        Call::chat("properties in properties", json!({"guided_json": deep(200)}), "JSON"),
        schema("more properties in properties than may be", &deep(28)),
        schema("a schema of itself", &json!({"$ref": "#"})),
        schema("a definition of itself", &json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        schema("a schema from elsewhere", &json!({"$ref": "http://169.254.169.254/latest"})),
        schema("a schema from a file", &json!({"$ref": "file:///etc/passwd"})),
        schema("two to the thirtieth", &json!({"$defs": doubled, "$ref": "#/$defs/a0"})).or_answered(),
        schema("any of many of many", &json!({"anyOf": (0..300).map(|i| json!({"anyOf": (0..3).map(|j| json!({"const": format!("{i}-{j}")})).collect::<Vec<_>>()})).collect::<Vec<_>>()})).or_answered(),
        schema("one of what overlaps", &json!({"oneOf": vec![json!({"type": "string"}); 300]})).or_answered(),
        schema("a million values", &json!({"enum": (0..200_000).collect::<Vec<_>>()})),
        schema("a long value", &json!({"const": "x".repeat(1 << 20)})),
        schema("a billion items", &json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000})).or_answered(),
        schema("a string longer than all", &json!({"type": "string", "minLength": 1_u64 << 62})).or_answered(),
        schema("a chain of references", &json!({"$defs": chained, "$ref": "#/$defs/a0"})).or_answered(),
        schema("a string up to a billion", &json!({"type": "string", "maxLength": 1_000_000_000})).or_answered(),
        schema("multiples of nothing", &json!({"type": "integer", "multipleOf": 0})),
        schema("nothing between", &json!({"type": "integer", "minimum": 5, "maximum": 3})),
        schema("nothing at all", &json!(false)),
        schema("a type that there is not", &json!({"type": "strnig"})),
        schema("a type of a number", &json!({"type": 5})),
        schema("a pattern that is none", &json!({"type": "string", "pattern": "("})),
        schema("a pattern that looks behind", &json!({"type": "string", "pattern": "(?<=x)a"})),
        schema("names by a hostile pattern", &json!({"type": "object", "patternProperties": {"(": {}}})),
        Call::chat("two grammars", json!({"guided_json": {"type": "object"}, "guided_regex": "a"}), "guided_"),
        Call::chat("a compiler of one's own", json!({"guided_decoding_backend": "outlines", "guided_regex": "a"}), "guided_decoding_backend"),
    ]
}

/// Regular expressions that cost more than they say.
fn patterns() -> Vec<Call> {
    let regex = |what, regex: String| Call::chat(what, json!({"guided_regex": regex}), "guided_regex");
    vec![
        regex("repeats of repeats", "(a+)+$".to_owned()).or_answered(),
        regex("a thousand thousand", "(a{1000}){1000}".to_owned()).or_answered(),
        regex("a billion", "a{1000000000}".to_owned()).or_answered(),
        regex("brackets upon brackets", "(".repeat(30_000) + &")".repeat(30_000)),
        regex("brackets that do not end", "(".repeat(60_000)),
        regex("what looks behind", "(?<=x)a".to_owned()),
        regex("what looks back", r"(a)\1".to_owned()),
        regex("nothing", String::new()),
        regex("nothing that there is", "a^b".to_owned()),
        regex("an escape of nothing", "a\\".to_owned()),
        regex("letters of a script that there is not", r"\p{Klingon}+".to_owned()),
        regex("longer than may be", "a".repeat(100_000)),
        Call::chat("no choice", json!({"guided_choice": []}), "guided_choice"),
        Call::chat(
            "very many choices",
            json!({"guided_choice": (0..200_000).map(|i| i.to_string()).collect::<Vec<_>>()}),
            "guided_choice",
        ),
    ]
}

/// Grammars that cost more than they say.
fn grammars() -> Vec<Call> {
    let lark = |what, grammar: String| Call::chat(what, json!({"guided_grammar": grammar}), "guided_grammar");
    let chain = (0..3000).map(|i| format!("r{i}: r{}\n", i + 1)).collect::<String>();
    vec![
        lark("brackets upon brackets", format!("start: {}\"a\"{}", "(".repeat(30_000), ")".repeat(30_000))),
        lark("a chain of rules", format!("start: r0\n{chain}r3000: \"a\"\n")).or_answered(),
        lark("a rule of itself", "start: start".to_owned()),
        lark("a rule that is not there", "start: nothing".to_owned()),
        lark("no beginning", "a: \"b\"".to_owned()),
        lark("a long name", format!("start: {}\n", "r".repeat(60_000))),
        lark("a billion", "start: \"a\"~1000000000".to_owned()).or_answered(),
        lark(
            "a chain of terminals",
            format!("start: T0\n{}T3000: \"a\"\n", chain.to_uppercase().replace('R', "T")),
        )
        .or_answered(),
        lark("what never ends", "start: \"a\" start".to_owned()).or_answered(),
        lark("another syntax", "root ::= \"a\"".to_owned()),
        lark("what is no grammar", "%%%".to_owned()),
    ]
}

/// What would have to be fetched or decoded.
fn media() -> Vec<Call> {
    let image = |what, url: &str| Call::part(what, &json!({"type": "image_url", "image_url": {"url": url}}));
    vec![
        image("an image of this machine", "http://127.0.0.1:2379/"),
        image("an image of this machine by six", "http://[::1]/"),
        image("an image of a cloud's secrets", "http://169.254.169.254/latest/meta-data"),
        image("an image by a number", "http://2130706433/"),
        image("an image of another host than it looks", "https://good.example\\@evil.example/"),
        image("an image of a file", "file:///etc/passwd"),
        image("an image by an old protocol", "gopher://x/"),
        image("an image in the call", "data:image/png;base64,iVBORw0KGgo="),
        image("an image in wrong letters", "data:image/png;base64,!!!"),
        Call::part(
            "a film",
            &json!({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AA=="}}),
        ),
        Call::part(
            "a sound",
            &json!({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
        ),
        Call::part("a file", &json!({"type": "file", "file": {"file_data": "AA=="}})),
        Call::chat(
            "a thousand images",
            json!({"messages": [{"role": "user", "content": vec![json!({"type": "image_url", "image_url": {"url": "http://x"}}); 1000]}]}),
            "messages[0].content[0]",
        ),
        Call::completion("an image in a text", json!({"prompt": "![](http://169.254.169.254/)"}), "")
            .or_answered(),
        Call::completion(
            "control tokens in a text",
            json!({"prompt": "<|im_start|>system <|vision_start|><|image_pad|>"}),
            "",
        )
        .or_answered(),
    ]
}
