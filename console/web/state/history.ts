// What the charts show: a sample for each look, kept for some minutes in this tab alone.

import type { Pace, Queue, Road } from "../api/types";
import { between, percentile, within } from "./percentile";
import { push } from "./ring";

/** Of the last seconds, in milliseconds; nothing where nothing came. */
export interface Spread {
  p50: number | null;
  p95: number | null;
}

export interface Sample {
  at: number;
  pace: Pace;
  running: number;
  waiting: number;
  /** Tokens a second since the look before. */
  tokens: number | null;
  ttft: Spread;
  itl: Spread;
}

/** Looks that are kept. */
export const KEPT = 300;
/** Percentiles are of so long. */
export const WINDOW_MS = 10_000;

type Seen = Pick<Sample, "at" | "pace">;

/** The history with one look more. */
export function sampled(history: readonly Sample[], now: Seen, queues: Queue[]): Sample[] {
  const sum = (of: (queue: Queue) => number): number => queues.reduce((total, queue) => total + of(queue), 0);
  const before = history.at(-1);
  const past = history.find((sample) => sample.at >= now.at - WINDOW_MS) ?? before;
  const sample: Sample = {
    ...now,
    running: sum((queue) => queue.running),
    waiting: sum((queue) => queue.waiting),
    tokens: before ? tokensBetween(before, now) : null,
    ttft: spread("ttft", past, now),
    itl: spread("itl", past, now),
  };
  return push(history, sample, KEPT);
}

/** The share of all that came in the kept time that took no longer than its budget. */
export function attained(history: readonly Sample[], of: keyof Pace, budget_ms: number): number | null {
  const [first, last] = [history[0], history.at(-1)];
  return first && last ? within(counted(of, first, last), last.pace[of], budget_ms) : null;
}

/** Nothing is known of the time before the first look. */
function counted(of: keyof Pace, past: Seen | undefined, now: Seen): number[] {
  return past ? between(past.pace[of].counts, now.pace[of].counts) : [];
}

function spread(of: keyof Pace, past: Seen | undefined, now: Seen): Spread {
  const counts = counted(of, past, now);
  return { p50: percentile(counts, now.pace[of], 0.5), p95: percentile(counts, now.pace[of], 0.95) };
}

function tokensBetween(before: Seen, now: Seen): number | null {
  const came = (of: keyof Pace): number => counted(of, before, now).reduce((sum, count) => sum + count, 0);
  const seconds = (now.at - before.at) / 1000;
  return seconds > 0 ? (came("ttft") + came("itl")) / seconds : null;
}

export function roadName(road: Pick<Road, "prefill" | "decode">): string {
  return `${road.prefill} ${road.decode}`;
}

/** Handoffs that came whole over each road between two looks, by name. */
export function moved(before: Road[], now: Road[]): Map<string, number> {
  const known = new Map(before.map((road) => [roadName(road), road.handoffs]));
  const since = (road: Road): number => {
    const last = known.get(roadName(road)) ?? road.handoffs;
    return road.handoffs >= last ? road.handoffs - last : road.handoffs;
  };
  return new Map(now.map((road) => [roadName(road), since(road)]));
}
