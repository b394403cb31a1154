use proptest::prelude::*;

use super::*;
use crate::fuzzing::answers::{Told, read};

fn form(calls: CallForm) -> Form {
    Form { thinks: true, begins_thinking: false, calls: Some(calls) }
}

fn whole(form: Form, text: &str) -> Told {
    let told = read(form, text, &[usize::MAX]);
    for length in 1..8 {
        assert_eq!(read(form, text, &[length]), told, "{text:?} in pieces of {length}");
    }
    told
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_are_read_as_each_family_writes_them() {
    let weather = call("get_weather", r#"{"city": "Köln {]\""}"#);
    let sum = call("add", r#"{"a":[1,{"b":2}]}"#);
    let object = |field: &str, (name, arguments): &(String, String)| {
        format!("{{\"name\": \"{name}\", \"{field}\": {arguments}}}")
    };
    let (w, s) = (object("arguments", &weather), object("arguments", &sum));
    let (wp, sp) = (object("parameters", &weather), object("parameters", &sum));
    let both = vec![weather.clone(), sum.clone()];
    for (form, text, said, calls) in [
        (CallForm::Hermes, format!("<tool_call>\n{w}\n</tool_call>"), "", vec![weather.clone()]),
        (
            CallForm::Hermes,
            format!("Let me see. <tool_call>{w}</tool_call>\n<tool_call>\n{s}\n</tool_call>\n"),
            "Let me see. ",
            both.clone(),
        ),
        (
            CallForm::Hermes,
            format!("<tool_call>{w}</tool_call>\n\nDone."),
            "\n\nDone.",
            vec![weather.clone()],
        ),
        (CallForm::Hermes, format!("<tool_call>{w}"), "", vec![weather.clone()]),
        (CallForm::Llama, wp.clone(), "", vec![weather.clone()]),
        (CallForm::Llama, format!("  {wp}; {sp}"), "", both.clone()),
        (CallForm::Llama, format!("<|python_tag|>{wp}"), "", vec![weather.clone()]),
        (CallForm::Mistral, format!("[TOOL_CALLS][{w}, {s}]"), "", both.clone()),
        (CallForm::Mistral, format!("Sure.[TOOL_CALLS] [{w}]"), "Sure.", vec![weather.clone()]),
        (CallForm::Json, s.clone(), "", vec![sum.clone()]),
        (CallForm::Json, format!("[{w},{s}]"), "", both.clone()),
        // Fields in another order, or beside them, or as OpenAI writes calls.
        (CallForm::Json, r#"{"arguments":{},"name":"add"}"#.to_owned(), "", vec![call("add", "{}")]),
        (CallForm::Json, r#"{"name":"add"}"#.to_owned(), "", vec![call("add", "{}")]),
        (CallForm::Json, format!("{}, \"id\": \"x}}\"}}", &s[..s.len() - 1]), "", vec![sum.clone()]),
        (
            CallForm::Json,
            format!("{{\"type\":\"function\",\"function\":{}}}", r#"{"name":"add","arguments":{"a":1}}"#),
            "",
            vec![call("add", r#"{"a":1}"#)],
        ),
    ] {
        assert_eq!(
            whole(self::form(form), &text),
            (String::new(), said.to_owned(), calls),
            "{form:?} {text}"
        );
    }
}

#[test]
fn a_template_tells_the_form() {
    for (template, form) in [
        ("{{ tools | tojson }} within <tool_call></tool_call> tags", CallForm::Hermes),
        ("[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS] [TOOL_CALLS]", CallForm::Mistral),
        ("Environment: ipython {{ tools }} <|python_tag|>", CallForm::Llama),
        ("{{ tools }}", CallForm::Json),
    ] {
        assert_eq!(CallForm::of_template(template, true), form, "{template}");
        assert_eq!(CallForm::of_template(template, false), CallForm::Json, "{template}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (form, text) in [
        (CallForm::Hermes, "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
        (CallForm::Hermes, "<tool_call>\nnothing\n</tool_call> more"),
        (CallForm::Hermes, "a < b, <tool_cal"),
        (CallForm::Hermes, "<tool_call>\n"),
        (CallForm::Hermes, "{\"name\": \"add\", \"arguments\": {}}"),
        (CallForm::Llama, "{\"city\": \"Rome\"}"),
        (CallForm::Llama, "It is {\"name\": \"add\", \"parameters\": {}}"),
        (CallForm::Llama, "{\"name\": \"add\", \"param"),
        (CallForm::Mistral, "[TOOL_CALLS] add(1)"),
        (CallForm::Mistral, "[TOOL_"),
        (CallForm::Json, "[1, 2, {\"name\": \"add\", \"arguments\": {}}]"),
        (CallForm::Json, " {\"name\": \"add\", \"arguments\": 5} "),
        (CallForm::Json, "{\"name\": \"unknown\"}"),
        (CallForm::Json, "[]"),
        (CallForm::Json, ""),
        (CallForm::Json, "  "),
    ] {
        let told = whole(self::form(form), text);
        assert_eq!((told.1.as_str(), told.2.len()), (text, 0), "{form:?}");
    }
}

#[test]
fn a_call_that_breaks_off_is_told_as_far_as_it_came() {
    let told = whole(form(CallForm::Hermes), "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": [1, ");
    assert_eq!(told, (String::new(), String::new(), vec![call("add", "{\"a\": [1, ")]));
}

#[test]
fn thoughts_are_told_apart() {
    let plain = Form { calls: None, ..form(CallForm::Json) };
    let begun = Form { begins_thinking: true, ..plain };
    for (form, text, thoughts, said) in [
        (plain, "<think>\nwell\n\nso </think>\n\nYes.", "well\n\nso", "Yes."),
        (plain, "\n<think></think>\nYes.", "", "Yes."),
        (plain, "Yes <think>no</think>", "", "Yes <think>no</think>"),
        (plain, "<thin", "", "<thin"),
        (plain, "<think>endless </thin", "endless </thin", ""),
        (begun, "well</think>Yes.", "well", "Yes."),
        (begun, "well", "well", ""),
    ] {
        let told = whole(form, text);
        assert_eq!((told.0.as_str(), told.1.as_str()), (thoughts, said), "{text:?}");
    }
    let told = whole(form(CallForm::Json), "<think>add</think>\n{\"name\":\"add\",\"arguments\":{}}");
    assert_eq!(told, ("add".to_owned(), String::new(), vec![call("add", "{}")]));
}

/// Texts made of what forms are made of.
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        ":",
        "\"",
        "\\",
        "\n",
        " ",
        "{\"name\": \"add\", \"arguments\": {\"a\": 1}}",
        "\"name\":\"add\"",
        "{\"name\":\"add\",\"parameters\":{",
        "<tool",
        "ä",
        "x",
        "<",
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn pieces_do_not_matter(text in texts(), lengths in prop::collection::vec(1usize..9, 1..6), begins in any::<bool>()) {
        for calls in CallForm::ALL {
            let form = Form { begins_thinking: begins, ..form(calls) };
            prop_assert_eq!(read(form, &text, &lengths), read(form, &text, &[usize::MAX]), "{:?}", calls);
        }
    }

    #[test]
    fn without_a_call_nothing_is_lost(text in texts(), lengths in prop::collection::vec(1usize..9, 1..6)) {
        for calls in CallForm::ALL {
            let form = Form { thinks: false, ..form(calls) };
            let (_, said, calls) = read(form, &text, &lengths);
            if calls.is_empty() {
                prop_assert_eq!(&said, &text);
            } else {
                let letters = |text: &str| text.matches(['ä', 'x']).count();
                let within: usize = calls.iter().map(|(_, arguments)| letters(arguments)).sum();
                prop_assert!(letters(&said) + within <= letters(&text));
            }
        }
    }
}
