// Percentiles of what lies between two looks at counts that only grow.

import type { Times } from "../api/types";

/** What was counted between two looks; all of the newer one, if the counter began anew between them. */
export function between(older: number[], newer: number[]): number[] {
  const grown = newer.map((count, step) => count - (older[step] ?? 0));
  return grown.some((count) => count < 0) ? newer : grown;
}

/** The value that `share` of the counted ones stay below, in milliseconds; null of none. */
export function percentile(counts: number[], scale: Pick<Times, "first_ms" | "ratio">, share: number): number | null {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  let rest = share * total;
  for (const [step, count] of counts.entries()) {
    if (count > 0 && rest <= count) {
      const upper = scale.first_ms * scale.ratio ** step;
      const lower = step === 0 ? 0 : upper / scale.ratio;
      return lower + (upper - lower) * (rest / count);
    }
    rest -= count;
  }
  return null;
}

/** The share of the counted ones that took no longer than `limit_ms`; null of none. */
export function within(counts: number[], scale: Pick<Times, "first_ms" | "ratio">, limit_ms: number): number | null {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  let kept = 0;
  for (const [step, count] of counts.entries()) {
    const upper = scale.first_ms * scale.ratio ** step;
    const lower = step === 0 ? 0 : upper / scale.ratio;
    kept += count * Math.min(1, Math.max(0, (limit_ms - lower) / (upper - lower)));
  }
  return kept / total;
}
