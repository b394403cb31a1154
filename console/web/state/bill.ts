// A request's bill as a line of time: what came one after the other, and the transfer beside it.

import type { Bill } from "../api/chat";

export interface Part {
  name: "queue" | "earlier" | "prefill" | "wait" | "decode" | "transfer";
  meaning: string;
  from_ms: number;
  took_ms: number;
}

export interface Line {
  total_ms: number;
  /** One after the other, together all of the time. */
  parts: Part[];
  /** Hidden behind the prompt but for what `wait` shows; none: nothing was handed over. */
  transfer: Part | null;
}

export function timeline(bill: Bill): Line {
  const steps: [Part["name"], number, string][] = [
    ["queue", bill.queue_ms, "for a place and the first prefill step"],
    ["earlier", bill.earlier_ms, "attempts that were lost with their nodes"],
    ["prefill", bill.prefill_ms, "first prefill step to first token"],
    ["wait", bill.exposed_ms, "for the rest of the KV, with the first token out already"],
    ["decode", bill.decode_ms, "KV complete to last token"],
  ];
  let from_ms = 0;
  // Most answers have one attempt.
  const parts = steps.filter(([name, took_ms]) => name !== "earlier" || took_ms > 0).map(([name, took_ms, meaning]): Part => {
    const part = { name, meaning, from_ms, took_ms };
    from_ms += took_ms;
    return part;
  });
  const complete = bill.queue_ms + bill.earlier_ms + bill.prefill_ms + bill.exposed_ms;
  const began = Math.max(0, complete - bill.transfer_ms);
  const transfer: Part = { name: "transfer", meaning: "first frame to last frame", from_ms: began, took_ms: complete - began };
  return { total_ms: from_ms, parts, transfer: bill.prefill_node === null ? null : transfer };
}
