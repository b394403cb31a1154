//! The `usage` object.

use std::time::Duration;

use baton_protocol::Bill;
use schemars::JsonSchema;
use serde::Serialize;

use crate::generation::Used;

/// Tokens used, and, as an extension, where the time went.
#[derive(Serialize, JsonSchema)]
pub struct Usage<'a> {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    baton_bill: Option<BillWords<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct PromptDetails {
    cached_tokens: u32,
}

/// [`Bill`] with times in milliseconds.
#[derive(Serialize, JsonSchema)]
struct BillWords<'a> {
    queue_ms: f64,
    /// Attempts before the one that ended the answer, lost with their nodes.
    earlier_ms: f64,
    prefill_ms: f64,
    transfer_ms: f64,
    exposed_ms: f64,
    decode_ms: f64,
    transfer_bytes: u64,
    transfer_pages: u32,
    repaired_frames: u32,
    /// null: the decode node prefilled itself.
    prefill_node: Option<&'a str>,
}

impl<'a> Usage<'a> {
    /// Of all prompts together; the bill is told where there is one prompt.
    pub fn of(used: &'a [Used]) -> Self {
        let sum = |part: fn(&Used) -> u32| used.iter().map(part).sum();
        let prompt_tokens: u32 = sum(|used| used.prompt_tokens);
        let completion_tokens: u32 = sum(|used| used.completion_tokens);
        let bill = if let [only] = used { only.bill.as_ref() } else { None };
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: sum(|used| used.cached_tokens) },
            baton_bill: bill.map(BillWords::from),
        }
    }
}

impl<'a> From<&'a Bill> for BillWords<'a> {
    fn from(bill: &'a Bill) -> Self {
        let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
        Self {
            queue_ms: ms(bill.queue),
            earlier_ms: ms(bill.earlier),
            prefill_ms: ms(bill.prefill),
            transfer_ms: ms(bill.transfer),
            exposed_ms: ms(bill.exposed),
            decode_ms: ms(bill.decode),
            transfer_bytes: bill.transfer_bytes,
            transfer_pages: bill.transfer_pages,
            repaired_frames: bill.repaired_frames,
            prefill_node: bill.prefill_node.as_ref().map(|node| node.0.as_str()),
        }
    }
}
