//! A call in no dialect's words: what every dialect is translated into.

use std::time::Duration;

use baton_protocol::{Pooling, Sampling};
use serde_json::{Map, Value};

use crate::{
    grammars,
    reply::Reply,
    tools::{Choice, Tools},
};

/// A call whose shape is right, and how its answer is written.
pub struct Call {
    pub ask: Ask,
    pub reply: Box<dyn Reply>,
}

/// What is asked for; token ids are not yet checked against a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The model's name; none: the only one that is served.
    pub model: Option<String>,
    /// At least one; each becomes a request of its own.
    pub prompts: Vec<Prompt>,
    pub parameters: Parameters,
}

/// What to continue, and where in the body it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub param: String,
    pub content: Content,
    /// Keep only that many tokens, the last ones.
    pub truncate: Option<Truncate>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Messages for the model's template.
    Chat(Box<Conversation>),
    /// Text to tokenize, after the token that begins a text if `begins` and the model wants one.
    Text { text: String, begins: bool },
    /// Tokens.
    Tokens(Vec<u32>),
}

/// A limit on a prompt's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// As many as the answer leaves room for.
    ToFit,
    /// At most this many.
    To(u32),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// `[{"role": …, "content": …}]`, contents joined to one string each. Calls and their
    /// results are as OpenAI writes them, with arguments as objects.
    pub messages: Value,
    pub tools: Option<Tools>,
    /// Bytes of all contents.
    pub bytes: usize,
    pub ending: Ending,
    /// Further variables of the template, and the parameter that holds them.
    pub variables: Map<String, Value>,
    /// How much the model is to think first, and the parameter that says so.
    pub effort: Option<Named<String>>,
}

/// How the prompt of a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Where the template wants an answer to begin.
    Answer,
    /// With the last message, closed.
    Message,
    /// Within the last message, for the answer to continue it.
    Within,
}

/// A value, and the name under which the client gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<T> {
    pub value: T,
    pub param: &'static str,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// The seed in it counts only if `seeded`.
    pub sampling: Sampling,
    pub seeded: bool,
    /// What the answer must be; in `sampling` once it is checked.
    pub grammar: Option<grammars::Asked>,
    pub max_tokens: Option<Named<u32>>,
    /// Where the client gave no maximum and the context leaves that much.
    pub usual_tokens: u32,
    pub min_tokens: Named<u32>,
    pub ignore_eos: bool,
    pub stop_token_ids: Named<Vec<u32>>,
    pub stop_strings: Vec<String>,
    /// Whether the stop string that ends an answer is part of its text.
    pub shows_stop: bool,
    /// Whether control tokens are spelled out in the text.
    pub spells_control: bool,
    /// Answers that are generated for each prompt.
    pub choices: u32,
    /// Of them only this many are shown, the likeliest first.
    pub best: Option<u32>,
    /// How many alternatives tokens carry; none: no log-probabilities at all.
    pub logprobs: Option<u32>,
    /// What is told of each prompt's tokens.
    pub told: Option<Named<Told>>,
    /// Whether the answer, of one token, is not shown, as to a call for none.
    pub hides_answer: bool,
    /// Whether an embedding of each prompt is wanted in place of an answer, and how it is made.
    pub embedding: Option<Pooling>,
    pub stream: bool,
    /// Until the end of the answer; no later than the server's own limit.
    pub deadline: Option<Duration>,
    /// Place in line where no header says one; none: nothing was said of it.
    pub tier: Option<Tier>,
}

/// OpenAI's tiers of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Flex,
    Default,
    Priority,
}

/// How likely the tokens of a prompt are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// From which one on; none: of none.
    pub start: Option<u32>,
    /// How many alternatives each carries.
    pub top: u32,
}

/// A call is short up to this many bytes of prompts: some 60 µs of tokenizing.
const SHORT_BYTES: usize = 1024;
/// What a message or a prompt costs beside its bytes, in bytes.
const PART_BYTES: usize = 32;
/// Checking token ids costs less than tokenizing bytes.
const IDS_OF_A_BYTE: usize = 16;

// === impl Told ===

impl Told {
    /// The first of a prompt's tokens that is told of. Nothing is before token 0 that it could
    /// follow from.
    pub fn from(&self, prompt_tokens: usize) -> usize {
        self.start.map_or(prompt_tokens, |start| start.max(1) as usize).min(prompt_tokens)
    }
}

// === impl Ask ===

impl Ask {
    /// The conversation that is to go on, if it is one.
    pub fn conversation(&self) -> Option<&Conversation> {
        match &self.prompts.first()?.content {
            Content::Chat(conversation) => Some(conversation),
            Content::Text { .. } | Content::Tokens(_) => None,
        }
    }

    /// Tools, unless none may be called.
    pub fn tools(&self) -> Option<&Tools> {
        self.conversation()?.tools.as_ref().filter(|tools| tools.choice != Choice::None)
    }

    /// Whether it takes less time to tokenize and check than to hand it to another thread and
    /// to be told. Grammars take longer, whatever their length.
    pub fn is_short(&self) -> bool {
        let cost = |prompt: &Prompt| match &prompt.content {
            Content::Chat(chat) => chat.bytes + PART_BYTES * chat.messages.as_array().map_or(0, Vec::len),
            Content::Text { text, .. } => text.len(),
            Content::Tokens(tokens) => tokens.len() / IDS_OF_A_BYTE,
        };
        let bytes: usize = self.prompts.iter().map(|prompt| PART_BYTES + cost(prompt)).sum();
        bytes <= SHORT_BYTES && self.parameters.grammar.is_none() && self.tools().is_none()
    }
}

// === impl Parameters ===

impl Default for Parameters {
    /// One whole answer, as long as the context allows.
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            seeded: false,
            grammar: None,
            max_tokens: None,
            usual_tokens: u32::MAX,
            min_tokens: Named { value: 0, param: "min_tokens" },
            ignore_eos: false,
            stop_token_ids: Named { value: Vec::new(), param: "stop_token_ids" },
            stop_strings: Vec::new(),
            shows_stop: false,
            spells_control: false,
            choices: 1,
            best: None,
            logprobs: None,
            told: None,
            hides_answer: false,
            embedding: None,
            stream: false,
            deadline: None,
            tier: None,
        }
    }
}

// === impl Tier ===

impl Tier {
    /// Its place in line, among -100 to 100.
    pub fn priority(self) -> i32 {
        match self {
            Self::Flex => -10,
            Self::Default => 0,
            Self::Priority => 10,
        }
    }

    /// As OpenAI calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Default => "default",
            Self::Priority => "priority",
        }
    }
}
