// The conversation of the playground: kept in this tab, gone with it.

import { batch, signal } from "@preact/signals";
import { chat, type Message, models, type Usage } from "../api/chat";
import { Refused } from "../api/client";

export interface Turn {
  question: string;
  answer: string;
  usage: Usage | null;
  first_ms: number | null;
  total_ms: number | null;
  problem: string | null;
}

const KEY = "baton.api-key";

export const served = signal<string[]>([]);
export const model = signal("");
export const system = signal("");
export const maxTokens = signal(256);
export const temperature = signal(0.7);
export const apiKey = signal(sessionStorage.getItem(KEY) ?? "");
/** Whether the API asked for a key. */
export const wantsKey = signal(false);
export const turns = signal<Turn[]>([]);
export const problem = signal<string | null>(null);
const stop = signal<AbortController | null>(null);

export function isBusy(): boolean {
  return stop.value !== null;
}

export function useApiKey(key: string): void {
  apiKey.value = key;
  sessionStorage.setItem(KEY, key);
}

function wordsOf(error: unknown): string {
  if (error instanceof Refused && error.status === 401) wantsKey.value = true;
  return error instanceof Error ? error.message : String(error);
}

/** Finds out what is served. */
export async function learn(): Promise<void> {
  try {
    const names = await models(apiKey.value);
    batch(() => {
      served.value = names;
      if (!names.includes(model.value)) model.value = names[0] ?? "";
      problem.value = null;
    });
  } catch (error) {
    problem.value = wordsOf(error);
  }
}

function messages(question: string): Message[] {
  const said = turns.value
    .filter((turn) => turn.problem === null && turn.answer !== "")
    .flatMap((turn): Message[] => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]);
  const first: Message[] = system.value.trim() === "" ? [] : [{ role: "system", content: system.value }];
  return [...first, ...said, { role: "user", content: question }];
}

function change(part: Partial<Turn>): void {
  turns.value = turns.value.map((turn, at) => (at === turns.value.length - 1 ? { ...turn, ...part } : turn));
}

/** Asks, and shows the answer as it comes. */
export async function say(question: string): Promise<void> {
  // Who is quick asks before it is known what is served.
  if (model.value === "") await learn();
  const begins = { question, answer: "", usage: null, first_ms: null, total_ms: null };
  if (model.value === "") {
    turns.value = [...turns.value, { ...begins, problem: problem.value ?? "no model is served" }];
    return;
  }
  const wanted = { model: model.value, messages: messages(question), max_tokens: maxTokens.value, temperature: temperature.value };
  const began = performance.now();
  const since = (): number => performance.now() - began;
  const stopping = new AbortController();
  stop.value = stopping;
  turns.value = [...turns.value, { ...begins, problem: null }];
  let answer = "";
  try {
    for await (const piece of chat(wanted, apiKey.value, stopping.signal)) {
      if (typeof piece !== "string") {
        change({ usage: piece });
        continue;
      }
      if (answer === "") change({ first_ms: since() });
      answer += piece;
      change({ answer });
    }
    change({ total_ms: since() });
  } catch (error) {
    change({ problem: stopping.signal.aborted ? "stopped" : wordsOf(error), total_ms: since() });
  } finally {
    stop.value = null;
  }
}

export function halt(): void {
  stop.value?.abort();
}

/** Begins anew. */
export function forget(): void {
  halt();
  turns.value = [];
}
