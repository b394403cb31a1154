//! Sessions from files of others.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Piece, Session, TrafficError, Turn, prompt::guess_tokens};

/// A file of sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub format: TraceFormat,
}

/// Forms of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    /// A JSON list of `{"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, …]}`,
    /// each a session; what `gpt` says decides on an answer's length, at four bytes a token.
    ShareGpt,
    /// JSON lines of `{"timestamp": ms, "input_length", "output_length", "hash_ids"}`, each a
    /// request: equal ids are equal blocks of 512 tokens of a prompt.
    Mooncake,
}

#[derive(Deserialize)]
struct Conversation {
    conversations: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    from: String,
    value: String,
}

#[derive(Deserialize)]
struct Block {
    /// Milliseconds.
    #[serde(default)]
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Tokens that an id of Mooncake's traces stands for.
const BLOCK_TOKENS: usize = 512;

// === impl Trace ===

impl Trace {
    /// Its first sessions; what nobody said or answered is left out.
    pub(super) fn sessions(&self, most: usize) -> Result<Vec<Session>, TrafficError> {
        let unreadable = |source| TrafficError::Unreadable { path: self.path.clone(), source };
        let text = std::fs::read_to_string(&self.path).map_err(unreadable)?;
        self.format.read(&self.path, &text, most)
    }
}

// === impl TraceFormat ===

impl TraceFormat {
    /// By the file's name: lines are Mooncake's.
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            Self::Mooncake
        } else {
            Self::ShareGpt
        }
    }

    /// The first sessions of the text of a file.
    pub(crate) fn read(self, path: &Path, text: &str, most: usize) -> Result<Vec<Session>, TrafficError> {
        match self {
            Self::ShareGpt => share_gpt(path, text, most),
            Self::Mooncake => mooncake(path, text, most),
        }
    }
}

fn share_gpt(path: &Path, text: &str, most: usize) -> Result<Vec<Session>, TrafficError> {
    let malformed = |source: serde_json::Error| TrafficError::Malformed {
        path: path.to_owned(),
        entry: source.line(),
        format: "a list of ShareGPT's conversations",
        source,
    };
    let conversations: Vec<Conversation> = serde_json::from_str(text).map_err(malformed)?;
    let sessions = conversations.into_iter().filter_map(|Conversation { conversations }| {
        let mut turns = Vec::new();
        let mut asked = None;
        for Said { from, value } in conversations {
            match from.as_str() {
                "human" | "user" => asked = Some(value),
                "gpt" | "chatgpt" | "assistant" => {
                    // An answer without a question is not a turn.
                    let Some(asked) = asked.take() else { continue };
                    let output_tokens = guess_tokens(&value);
                    turns.push(Turn { pause: Duration::ZERO, said: vec![Piece::Text(asked)], output_tokens });
                }
                _ => {}
            }
        }
        (!turns.is_empty()).then_some(Session { at: Duration::ZERO, class: 0, prefix: None, turns })
    });
    Ok(sessions.take(most).collect())
}

fn mooncake(path: &Path, text: &str, most: usize) -> Result<Vec<Session>, TrafficError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(most);
    let sessions = lines.map(|(index, line)| {
        let malformed = |source| TrafficError::Malformed {
            path: path.to_owned(),
            entry: index + 1,
            format: "a request of Mooncake's traces",
            source,
        };
        let block: Block = serde_json::from_str(line).map_err(malformed)?;
        let at = Duration::try_from_secs_f64(block.timestamp / 1e3).unwrap_or_default();
        let turn = Turn {
            pause: Duration::ZERO,
            said: block.pieces(index),
            output_tokens: block.output_length.max(1),
        };
        Ok(Session { at, class: 0, prefix: None, turns: vec![turn] })
    });
    sessions.collect()
}

// === impl Block ===

impl Block {
    /// A piece for each id; what ids do not cover belongs to this request alone.
    fn pieces(&self, index: usize) -> Vec<Piece> {
        let mut left = self.input_length.max(1);
        let mut pieces = Vec::with_capacity(self.hash_ids.len() + 1);
        for &seed in &self.hash_ids {
            let tokens = left.min(BLOCK_TOKENS);
            if tokens == 0 {
                break;
            }
            pieces.push(Piece::Drawn { seed, tokens });
            left -= tokens;
        }
        if left > 0 {
            pieces.push(Piece::Drawn { seed: !(index as u64), tokens: left });
        }
        pieces
    }
}
