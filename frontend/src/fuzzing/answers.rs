//! Answers: where a text is cut into pieces changes nothing, and what is sent as an event is read as one.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

use crate::{
    parts::{CallForm, Form, PartReader, Parts},
    reply::Events,
    stop_strings::StopStrings,
};

/// An answer read whole: thoughts, text, calls.
pub type Told = (String, String, Vec<(String, String)>);

/// Names of the tools that answers may call.
const TOOLS: [&str; 2] = ["get_weather", "add"];
/// What texts and stop strings are made of.
const LETTERS: [char; 4] = ['a', 'b', 'é', '🦀'];

/// Stop strings in a text that comes in pieces, beside what a look at the whole finds.
pub fn stop_strings(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let drawn: Result<_> = (|| {
        let shown = input.arbitrary()?;
        let stops: Vec<String> =
            (0..input.int_in_range(0..=4)?).map(|_| letters(&mut input, 1)).collect::<Result<_>>()?;
        let mut pieces = Vec::new();
        while !input.is_empty() {
            pieces.push(letters(&mut input, 0)?);
        }
        Ok((shown, stops, pieces))
    })();
    let Ok((shown, stops, pieces)) = drawn else { return };
    let mut watched = StopStrings::default().and(&stops, shown);
    let (mut text, mut stopped) = (String::new(), None);
    for piece in &pieces {
        let released = watched.push(piece);
        text.push_str(&released.text);
        stopped = released.stopped.map(|stop| stop.to_string());
        if stopped.is_some() {
            break;
        }
    }
    if stopped.is_none() {
        text.push_str(&watched.finish());
    }
    assert_eq!((text, stopped), cut(&pieces.concat(), &stops, shown));
}

fn letters(input: &mut Unstructured<'_>, least: usize) -> Result<String> {
    (0..input.int_in_range(least..=5)?).map(|_| input.choose(&LETTERS).copied()).collect()
}

/// Cuts whole text where the first stop string is complete.
pub fn cut(text: &str, stops: &[String], shown: bool) -> (String, Option<String>) {
    for end in 1..=text.len() {
        let longest = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
        if let Some(stop) = longest.max_by_key(|stop| stop.len()) {
            let end = if shown { end } else { end - stop.len() };
            return (text[..end].to_owned(), Some(stop.clone()));
        }
    }
    (text.to_owned(), None)
}

/// Thoughts and calls in what a model says, in every form: the first bytes say how it is cut.
pub fn call_parts(bytes: &[u8]) {
    let Some((&[begins, first, second], text)) = bytes.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    let lengths = [first, second].map(|length| 1 + usize::from(length % 16));
    for calls in CallForm::ALL {
        let form = Form { thinks: true, begins_thinking: begins % 2 == 1, calls: Some(calls) };
        assert_eq!(read(form, &text, &lengths), read(form, &text, &[usize::MAX]), "{calls:?}");
    }
}

/// Reads a text in pieces of these lengths in characters, over and over.
pub fn read(form: Form, text: &str, lengths: &[usize]) -> Told {
    let names: Arc<[String]> = TOOLS.map(str::to_owned).into();
    let mut reader = PartReader::new(form, &names);
    let mut told = Told::default();
    let mut take = |parts: Parts| {
        told.0 += &parts.thoughts;
        told.1 += &parts.text;
        for part in parts.calls {
            match part.name {
                Some(name) => {
                    assert_eq!(part.index as usize, told.2.len(), "calls are numbered in order");
                    told.2.push((name, part.arguments));
                }
                None => {
                    assert_eq!(part.index as usize + 1, told.2.len(), "pieces of the last call");
                    told.2.last_mut().expect("there is one").1 += &part.arguments;
                }
            }
        }
    };
    let characters: Vec<char> = text.chars().collect();
    let mut rest = characters.as_slice();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        take(reader.push(&piece.iter().collect::<String>(), false));
        rest = after;
    }
    take(reader.push("", true));
    told
}

/// Any text as an event: one, of two lines at most, whose data is that text.
pub fn events(bytes: &[u8]) {
    let object = json!({ "text": String::from_utf8_lossy(bytes), "index": bytes.len() });
    for name in [None, Some("delta")] {
        let mut events = Events::default();
        let written = match name {
            None => events.data(&object),
            Some(name) => events.named(name, &object),
        };
        written.expect("text is JSON");
        let written = std::str::from_utf8(events.written()).expect("events are text");
        let event = written.strip_suffix("\n\n").expect("a blank line ends it");
        // The three ways in which lines end for readers of events.
        let mut lines: Vec<&str> = event.split(['\r', '\n']).collect();
        let data = lines.pop().and_then(|line| line.strip_prefix("data: ")).expect("data comes last");
        assert_eq!(serde_json::from_str::<Value>(data).expect("data is JSON"), object);
        let named: Vec<_> = name.iter().map(|name| format!("event: {name}")).collect();
        assert_eq!(lines, named);
    }
}
