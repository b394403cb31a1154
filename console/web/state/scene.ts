// The cluster as it was last seen, and how it was before.

import { batch, signal } from "@preact/signals";
import { call, operatorKey, Refused, useKey } from "../api/client";
import type { Act, Cluster, Incident, Limits, Node, Pace, Queue, Request, Road } from "../api/types";
import { moved, sampled, type Sample } from "./history";
import { type Polling, poll } from "./polling";

export const cluster = signal<Cluster | null>(null);
export const nodes = signal<Node[]>([]);
export const roads = signal<Road[]>([]);
/** Prompts that were sent over each road between the last two looks, by `roadName`. */
export const handoffs = signal<Map<string, number>>(new Map());
export const requests = signal<Request[]>([]);
export const queues = signal<Queue[]>([]);
export const limits = signal<Limits | null>(null);
export const incidents = signal<Incident[]>([]);
export const acts = signal<Act[]>([]);
/** One for each look, the oldest first. */
export const history = signal<Sample[]>([]);

/** Whether the coordinator answers, and if not, why and when it is asked again. */
export type Contact =
  | { state: "waiting" }
  | { state: "seen"; at: number }
  | { state: "away"; why: string; since: number | null; next: number }
  | { state: "locked"; wrong: boolean };
export const contact = signal<Contact>({ state: "waiting" });

/** Looks at what seldom changes are made each so many times. */
const SELDOM = 4;

let looks = 0;
let seenAt: number | null = null;
let polling: Polling | undefined;

async function look(): Promise<boolean> {
  try {
    const often = Promise.all([
      call<Cluster>("cluster"),
      call<Node[]>("nodes"),
      call<Road[]>("topology"),
      call<Request[]>("requests"),
      call<Queue[]>("queue"),
      call<Pace>("pace"),
    ]);
    const seldom = looks % SELDOM === 0 ? lookSeldom() : undefined;
    const [[nowCluster, nowNodes, nowRoads, nowRequests, nowQueues, pace]] = await Promise.all([often, seldom]);
    // Whoever has left meanwhile sees nothing more.
    if (contact.value.state === "locked") return false;
    looks += 1;
    seenAt = Date.now();
    batch(() => {
      cluster.value = nowCluster;
      nodes.value = nowNodes;
      handoffs.value = moved(roads.value, nowRoads);
      roads.value = nowRoads;
      requests.value = nowRequests;
      queues.value = nowQueues;
      history.value = sampled(history.value, { at: Date.now(), pace }, nowQueues);
      contact.value = { state: "seen", at: Date.now() };
    });
    return true;
  } catch (error) {
    fail(error);
    return false;
  }
}

async function lookSeldom(): Promise<void> {
  const [nowLimits, nowIncidents, nowActs] = await Promise.all([
    call<Limits>("limits"),
    call<Incident[]>("incidents"),
    call<Act[]>("audit"),
  ]);
  batch(() => {
    limits.value = nowLimits;
    incidents.value = nowIncidents;
    acts.value = nowActs;
  });
}

function fail(error: unknown): void {
  if (contact.value.state === "locked") return;
  if (error instanceof Refused && error.status === 401) {
    end(operatorKey.value !== "");
    return;
  }
  const why = error instanceof Error ? error.message : String(error);
  contact.value = { state: "away", why, since: seenAt, next: Date.now() };
}

/** Begins to look, with whatever key there is. */
export function begin(): void {
  polling?.stop();
  contact.value = { state: "waiting" };
  polling = poll(look, (next) => {
    if (contact.value.state === "away") contact.value = { ...contact.value, next };
  });
}

/** Looks at everything now: something was done. */
export function refresh(): void {
  looks = 0;
  polling?.now();
}

/** Ends the session of an operator. */
export function lock(): void {
  end(false);
}

function end(wrong: boolean): void {
  polling?.stop();
  polling = undefined;
  useKey("");
  contact.value = { state: "locked", wrong };
}
