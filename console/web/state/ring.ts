/** The newest `size` of what was pushed, the oldest first. Never changed in place, so that a signal sees it. */
export function push<T>(ring: readonly T[], item: T, size: number): T[] {
  return [...ring.slice(Math.max(0, ring.length - size + 1)), item];
}
