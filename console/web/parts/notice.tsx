// Short words about what was done, read out where screens are read out.

import { signal } from "@preact/signals";
import type { JSX } from "preact";

const SHOWN_MS = 6_000;
const notice = signal<string | null>(null);
let timer: number | undefined;

export function tell(words: string): void {
  window.clearTimeout(timer);
  notice.value = words;
  timer = window.setTimeout(() => (notice.value = null), SHOWN_MS);
}

export function Notice(): JSX.Element {
  return (
    <div class="notice" role="status" aria-live="polite">
      {notice.value !== null && <p>{notice.value}</p>}
    </div>
  );
}
