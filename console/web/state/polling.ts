// When to look again: each second, seldom while nobody sees it, ever more seldom while nobody answers.

const EVERY_MS = 1_000;
const HIDDEN_MS = 15_000;
const LONGEST_MS = 15_000;

/** The pause after a look, given how many have failed in a row. */
export function pauseAfter(failures: number, hidden: boolean): number {
  const pause = failures === 0 ? EVERY_MS : Math.min(LONGEST_MS, EVERY_MS * 2 ** failures);
  return hidden ? Math.max(HIDDEN_MS, pause) : pause;
}

export interface Polling {
  /** Looks now, whatever the pause. */
  now(): void;
  stop(): void;
}

/**
 * Calls `look` until it is stopped, never twice at once. `look` answers whether it went well;
 * `paused` is told when the next one comes.
 */
export function poll(look: () => Promise<boolean>, paused: (until: number) => void): Polling {
  let failures = 0;
  let timer: number | undefined;
  let looking = false;
  let again = false;
  let stopped = false;

  async function once(): Promise<void> {
    if (looking) {
      again = true;
      return;
    }
    window.clearTimeout(timer);
    looking = true;
    failures = (await look()) ? 0 : failures + 1;
    looking = false;
    if (stopped) return;
    const pause = again ? 0 : pauseAfter(failures, document.hidden);
    again = false;
    paused(Date.now() + pause);
    timer = window.setTimeout(once, pause);
  }
  const seen = (): void => {
    if (!document.hidden) void once();
  };
  document.addEventListener("visibilitychange", seen);
  void once();
  return {
    now: () => void once(),
    stop: () => {
      stopped = true;
      window.clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
