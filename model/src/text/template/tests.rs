use serde_json::json;

use super::*;

fn compile(source: &str) -> Result<ChatTemplate, TextError> {
    ChatTemplate::new(source.to_owned(), Some("<s>".to_owned()), Some("</s>".to_owned()))
}

fn render(source: &str, messages: &Json, extra: &Json) -> Result<String, TextError> {
    compile(source)?.render(messages, extra.as_object().unwrap(), &|string| string.to_owned())
}

fn rendered(source: &str) -> Result<String, TextError> {
    render(source, &json!([{ "role": "user", "content": " hi " }]), &json!({}))
}

#[test]
fn templates_written_for_python_work() {
    let source = "{%- for message in messages %}\n    {%- if message['role'] == 'user' %}\n        \
        {{- bos_token + message['content'].strip() + eos_token }}\n    {%- endif %}\n{%- endfor %}\n\
        {% if tools is not none %}tools{% endif %}\n";
    assert_eq!(rendered(source).unwrap(), "<s>hi</s>");
    assert_eq!(rendered("{{ messages[0].get('name', 'none') }}").unwrap(), "none");
    assert_eq!(rendered("{% if add_generation_prompt %}go{% endif %}").unwrap(), "go");
    assert_eq!(
        rendered("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").unwrap(),
        "01"
    );
    assert!(rendered("{{ strftime_now('%Y') }}").unwrap().starts_with("2"));
}

#[test]
fn json_is_written_as_python_writes_it() {
    let extra = json!({ "tools": { "a": [1, "<é>&'\\u003c\\"], "b": null } });
    let json = render("{{ tools | tojson(ensure_ascii=False) }}", &json!([]), &extra).unwrap();
    assert_eq!(json, r#"{"a": [1, "<é>&'\\u003c\\"], "b": null}"#);
    assert_eq!(render("{{ [1] | tojson(indent=2) }}", &json!([]), &extra).unwrap(), "[\n  1\n]");
}

#[test]
fn refusals_carry_their_message() {
    let error = rendered("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&error, TextError::TemplateRefused { message } if message == "roles must alternate"));
}

#[test]
fn syntax_errors_are_found_when_loading() {
    for source in ["{% if %}", "{{ x", "{% for x in y %}", "{% unknown %}"] {
        let error = compile(source).err().unwrap();
        assert!(matches!(error, TextError::TemplateSyntax { .. }), "{source}: {error}");
    }
}

#[test]
fn endless_templates_run_out() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let appending =
        "{% set ns = namespace(x='x') %}{% for a in range(9999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for source in [nested, appending, "{{ 'x' * 10000000000 }}"] {
        let error = rendered(source).unwrap_err();
        assert!(matches!(error, TextError::TemplateLimit { what: "instructions" }), "{source}: {error}");
    }
    let loud = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    let long = json!([{ "content": "x".repeat(10_000) }]);
    let error = render(loud, &long, &json!({})).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { what: "output" }), "{error}");
}

#[test]
fn failures_are_errors() {
    for source in [
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ range(1000000000) }}",
        "{{ missing.field.of.nothing }}",
        "{{ missing() }}",
        "{% include 'other' %}",
        "{{ messages | no_filter }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ strftime_now('%Q') }}",
    ] {
        let error = rendered(source).unwrap_err();
        assert!(
            matches!(error, TextError::Template { .. } | TextError::TemplateSyntax { .. }),
            "{source}: {error}"
        );
    }
}

#[test]
fn variables_of_the_model_cannot_be_set() {
    let error = render("x", &json!([]), &json!({ "bos_token": "evil" })).unwrap_err();
    assert!(matches!(error, TextError::ReservedVariable { name } if name == "bos_token"));
    let set = json!({ "add_generation_prompt": false, "thinking": true });
    assert_eq!(render("{{ add_generation_prompt }} {{ thinking }}", &json!([]), &set).unwrap(), "False True");
}

/// Gemma's own template: no role of its own for the system, and turns that alternate.
#[test]
fn gemma_has_its_turns() {
    let source = include_str!("fixture/gemma.jinja");
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": " Hi " },
        { "role": "assistant", "content": "Hello." },
        { "role": "user", "content": [{ "type": "text", "text": "Bye" }] },
    ]);
    assert_eq!(
        render(source, &messages, &json!({})).unwrap(),
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
         <start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    for roles in [["user", "user"], ["assistant", "user"]] {
        let messages: Vec<_> = roles.iter().map(|role| json!({ "role": role, "content": "x" })).collect();
        let error = render(source, &json!(messages), &json!({})).unwrap_err();
        assert!(
            matches!(&error, TextError::TemplateRefused { message } if message.contains("alternate")),
            "{error}"
        );
        assert!(error.is_request());
    }
}

/// What models of plain text are given.
#[test]
fn the_plain_template_asks_questions() {
    let source = include_str!("../../families/plain.jinja");
    let messages = json!([
        { "role": "system", "content": "Facts." },
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": "Hello." },
        { "role": "user", "content": [{ "type": "text", "text": "Bye" }] },
    ]);
    let expected = "<s>Facts.\n\nQuestion: Hi\nAnswer: Hello.\n\nQuestion: Bye\nAnswer:";
    assert_eq!(render(source, &messages, &json!({})).unwrap(), expected);
    assert!(crate::families::chat_ends(source).iter().all(|end| expected.contains(end)));
    let tool = json!([{ "role": "tool", "content": "x" }]);
    assert!(matches!(render(source, &tool, &json!({})), Err(TextError::TemplateRefused { .. })));
}
