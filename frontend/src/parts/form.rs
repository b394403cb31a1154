//! How models write calls and thoughts, told by their chat templates.

use baton_model::ModelText;

/// Control tokens that any form knows.
pub const MARKS: [&str; 6] =
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"];

/// Tokens of a prompt in which its last word is found.
const TAIL: usize = 8;

/// How the answers of a model are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Whether it may think first.
    pub thinks: bool,
    /// Whether the prompt ends within thoughts.
    pub begins_thinking: bool,
    /// How it calls tools; none: there are no tools.
    pub calls: Option<CallForm>,
}

/// How a model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// Hermes, Qwen, SmolLM3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    Hermes,
    /// Llama 3: `{"name": …, "parameters": {…}}`, several parted by `;`.
    Llama,
    /// Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`.
    Mistral,
    /// An object or an array of them, where the model was not told how.
    Json,
}

// === impl CallForm ===

impl CallForm {
    /// All forms.
    #[cfg(any(test, fuzzing))]
    pub const ALL: [Self; 4] = [Self::Hermes, Self::Llama, Self::Mistral, Self::Json];

    /// That of a model. A template that knows no tools is told of them in words.
    pub fn of(text: &ModelText) -> Self {
        Self::of_template(text.template_source().unwrap_or_default(), text.template_reads("tools"))
    }

    pub(super) fn of_template(template: &str, reads_tools: bool) -> Self {
        match () {
            () if !reads_tools => Self::Json,
            () if template.contains("<tool_call>") => Self::Hermes,
            () if template.contains("[TOOL_CALLS]") => Self::Mistral,
            () if template.contains("<|python_tag|>") || template.contains("ipython") => Self::Llama,
            () => Self::Json,
        }
    }

    /// What comes before calls, wherever they are.
    pub fn open(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("<tool_call>"),
            Self::Llama => Some("<|python_tag|>"),
            Self::Mistral => Some("[TOOL_CALLS]"),
            Self::Json => None,
        }
    }

    /// What comes behind them.
    pub fn close(self) -> Option<&'static str> {
        (self == Self::Hermes).then_some("</tool_call>")
    }

    /// Whether an answer may begin with a call without its mark.
    pub fn is_bare(self) -> bool {
        matches!(self, Self::Llama | Self::Json)
    }

    /// Characters between calls that are no text.
    pub fn parts(self) -> &'static [char] {
        match self {
            Self::Hermes => &[],
            Self::Llama => &[';', ','],
            Self::Mistral | Self::Json => &['[', ',', ']'],
        }
    }
}

/// Whether a model thinks before it answers.
pub fn thinks(text: &ModelText) -> bool {
    text.template_source().is_some_and(|template| template.contains("</think>"))
}

/// Whether a prompt ends within thoughts.
pub fn ends_thinking(text: &ModelText, prompt: &[u32]) -> bool {
    text.decode(&prompt[prompt.len().saturating_sub(TAIL)..]).trim_end().ends_with("<think>")
}
