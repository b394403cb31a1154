use std::sync::LazyLock;

use baton_model::ModelText;

use super::{super::Choice, *};

static TEXT: LazyLock<ModelText> = LazyLock::new(ModelText::mock);

fn tools(choice: Choice, parallel: bool) -> Tools {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        description: None,
        parameters,
        strict: Some("tools[0].function.strict".to_owned()),
    };
    let point = json!({"type": "object", "additionalProperties": false, "required": ["at"],
        "properties": {"at": {"$ref": "#/$defs/at"}}, "$defs": {"at": {"enum": ["x", "y"]}}});
    let nothing = json!({"type": "object", "additionalProperties": false, "properties": {}});
    Tools { tools: vec![tool("go", point), tool("stop", nothing)], choice, parallel }
}

/// Whether the whole text is an answer under the grammar.
fn accepts(asked: &Asked, text: &str) -> bool {
    let mut state = TEXT.grammars().unwrap().begin(&asked.value).unwrap();
    let allows = |mask: Arc<[u32]>, token: u32| mask[token as usize / 32] >> (token % 32) & 1 == 1;
    for token in text.bytes().map(u32::from) {
        if !allows(state.mask().unwrap(), token) {
            return false;
        }
        state.advance(&[token]).unwrap();
    }
    allows(state.mask().unwrap(), TEXT.eos_tokens()[0])
}

fn fit(tools: &Tools, form: CallForm) -> Asked {
    grammar(tools, form, &Config::default()).unwrap().unwrap()
}

const GO: &str = r#"{"name": "go", "arguments": {"at": "x"}}"#;
const STOP: &str = r#"{"name":"stop","arguments":{}}"#;

#[test]
fn demanded_calls_are_all_there_is() {
    let several = fit(&tools(Choice::Any, true), CallForm::Hermes);
    assert!(accepts(&several, &format!("[{GO}]")) && accepts(&several, &format!("[{GO}, {STOP}]")));
    assert!(!accepts(&several, "[]") && !accepts(&several, GO) && !accepts(&several, "Well."));
    let one = fit(&tools(Choice::Any, false), CallForm::Hermes);
    assert!(accepts(&one, GO) && accepts(&one, STOP) && !accepts(&one, &format!("[{GO}]")));
    let named = fit(&tools(Choice::Only("go".to_owned()), true), CallForm::Hermes);
    assert!(accepts(&named, GO) && !accepts(&named, STOP));
    assert!(!accepts(&named, &GO.replace("\"x\"", "\"z\"")));
}

#[test]
fn strict_tools_fit_where_a_model_calls_them() {
    let wrong = GO.replace("\"x\"", "\"z\"");
    for form in [CallForm::Json, CallForm::Llama] {
        let asked = fit(&tools(Choice::Auto, true), form);
        let written = |call: &str| {
            if form == CallForm::Llama { call.replace("arguments", "parameters") } else { call.to_owned() }
        };
        assert!(accepts(&asked, &written(GO)) && accepts(&asked, "It is {warm}."), "{form:?}");
        assert!(!accepts(&asked, &written(&wrong)) && !accepts(&asked, "{}"), "{form:?}");
    }
    let hermes = fit(&tools(Choice::Auto, true), CallForm::Hermes);
    assert!(accepts(&hermes, "It is <warm>."));
    assert!(accepts(&hermes, &format!("<tool_call>\n{GO}\n</tool_call>")));
    assert!(accepts(
        &hermes,
        &format!("I do.\n<tool_call>\n{GO}\n</tool_call>\n<tool_call>{STOP}</tool_call>")
    ));
    assert!(!accepts(&hermes, &format!("<tool_call>\n{wrong}\n</tool_call>")));
    assert!(!accepts(&hermes, "<tool_call>\nnothing\n</tool_call>"));
}

#[test]
fn what_need_not_fit_is_free_and_what_cannot_is_refused() {
    let mut tools = tools(Choice::Auto, true);
    assert!(matches!(
        grammar(&tools, CallForm::Mistral, &Config::default()),
        Err(ApiError::Unsupported { .. })
    ));
    tools.tools.iter_mut().for_each(|tool| tool.strict = None);
    assert_eq!(grammar(&tools, CallForm::Mistral, &Config::default()), Ok(None));
}
