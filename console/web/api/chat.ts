// The API for users, through the coordinator's own listener: `/console/api` leads to it inside the process.

import { asOperator, Refused } from "./client";
import { events } from "./events";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

/** Where the time of a request went, in milliseconds. */
export interface Bill {
  queue_ms: number;
  earlier_ms: number;
  prefill_ms: number;
  transfer_ms: number;
  exposed_ms: number;
  decode_ms: number;
  transfer_bytes: number;
  transfer_pages: number;
  repaired_frames: number;
  prefill_node: string | null;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  baton_bill?: Bill;
}

export interface Ask {
  model: string;
  messages: Message[];
  max_tokens: number;
  temperature: number;
}

interface Chunk {
  choices: { delta: { content?: string | null }; finish_reason: string | null }[];
  usage?: Usage | null;
  error?: { message: string };
}

const BASE = "/console/api/v1";

function headers(apiKey: string): Record<string, string> {
  const key: Record<string, string> = apiKey ? { "x-api-key": apiKey } : {};
  return { ...asOperator(), ...key, "content-type": "application/json" };
}

async function refusal(response: Response): Promise<Refused> {
  const said = (await response.json().catch(() => null)) as { error?: string | { message?: string } } | null;
  const words = typeof said?.error === "string" ? said.error : said?.error?.message;
  return new Refused(response.status, words ?? `answered ${response.status}`);
}

/** Names of the models that are served. */
export async function models(apiKey: string): Promise<string[]> {
  const response = await fetch(`${BASE}/models`, { headers: headers(apiKey) });
  if (!response.ok) throw await refusal(response);
  const listed = (await response.json()) as { data: { id: string }[] };
  return listed.data.map((model) => model.id);
}

/** Streams an answer: pieces of text, and at last the usage. */
export async function* chat(ask: Ask, apiKey: string, stop: AbortSignal): AsyncGenerator<string | Usage> {
  const body = JSON.stringify({ ...ask, stream: true, stream_options: { include_usage: true } });
  const response = await fetch(`${BASE}/chat/completions`, { method: "POST", headers: headers(apiKey), body, signal: stop });
  if (!response.ok || !response.body) throw await refusal(response);
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const chunk = JSON.parse(event) as Chunk;
    if (chunk.error) throw new Refused(response.status, chunk.error.message);
    const text = chunk.choices[0]?.delta.content;
    if (text) yield text;
    if (chunk.usage) yield chunk.usage;
  }
}
