//! `baton chat`: a terminal client of the OpenAI API.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{args, client::Client, terminal};

/// Reads lines, prints answers as they come, until the input ends or `/exit`.
///
/// # Errors
/// When the server cannot be reached; a refused turn is printed and forgotten.
pub async fn run(args: &args::Chat) -> Result<()> {
    let client = Client::new(&args.url, args.authority.file())?.with_own_key();
    let model = client.model().await?;
    let interactive = io::stdin().is_terminal();
    if interactive {
        terminal::say(format_args!("{model} at {} · /reset forgets, /exit leaves", args.url));
    }
    let opening: Vec<Value> =
        args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let mut messages = opening.clone();
    while let Some(line) = read_line(interactive)? {
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => break,
            "/reset" => {
                messages.clone_from(&opening);
                continue;
            }
            text => messages.push(json!({"role": "user", "content": text})),
        }
        let body = json!({"model": model, "messages": messages, "stream": true});
        let answer = client.chat(&body, terminal::show).await;
        terminal::say("");
        match answer {
            Ok(answer) => messages.push(json!({"role": "assistant", "content": answer.text})),
            Err(error) => {
                terminal::say(format_args!("({error:#})"));
                messages.pop();
            }
        }
    }
    Ok(())
}

/// The next line, or none at the end of input. Blocks: nothing else runs in this program meanwhile.
fn read_line(interactive: bool) -> io::Result<Option<String>> {
    if interactive {
        terminal::show("> ");
    }
    let mut line = String::new();
    Ok((io::stdin().lock().read_line(&mut line)? > 0).then_some(line))
}
