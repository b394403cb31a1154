// Calls to the listener that the page came from.

import { signal } from "@preact/signals";

/** Why a call came to nothing. Status 0: nobody answered. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

const KEY = "baton.operator-key";
const PATIENCE_MS = 10_000;

/** The operator's key, for as long as the tab lives. */
export const operatorKey = signal(sessionStorage.getItem(KEY) ?? "");

export function useKey(key: string): void {
  operatorKey.value = key;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Headers by which the admin API knows who calls. */
export function asOperator(): Record<string, string> {
  return operatorKey.value ? { authorization: `Bearer ${operatorKey.value}` } : {};
}

/** One call to the admin API; `path` is below `/admin/v1/`. */
export async function call<T>(path: string, method = "GET", body?: unknown): Promise<T> {
  const init: RequestInit = { method, headers: asOperator(), signal: AbortSignal.timeout(PATIENCE_MS) };
  if (body !== undefined) init.body = JSON.stringify(body);
  const response = await fetch(`/admin/v1/${path}`, init).catch(() => {
    throw new Refused(0, "the coordinator does not answer");
  });
  const said = (await response.json().catch(() => null)) as { error?: string } | null;
  if (!response.ok || said === null) throw new Refused(response.status, said?.error ?? `answered ${response.status}`);
  return said as T;
}
