// From values to places in a chart.

/** A round number that is no smaller. */
export function niceMax(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.999_999) ?? 10;
  return step * power;
}

export interface Frame {
  width: number;
  height: number;
  /** Room for the numbers of the axis. */
  left: number;
  /** The greatest value. */
  max: number;
  /** The newest moment, and how long is shown before it. */
  now: number;
  span: number;
}

export function xOf(frame: Frame, at: number): number {
  return frame.left + (frame.width - frame.left) * (1 - (frame.now - at) / frame.span);
}

export function yOf(frame: Frame, value: number): number {
  return frame.height * (1 - Math.min(1, value / frame.max));
}

/** A path through the values that are there; what is not there, or far apart, is a gap. */
export function path(frame: Frame, points: readonly { at: number; value: number | null }[], gap: number): string {
  let before: number | null = null;
  let drawn = "";
  for (const { at, value } of points) {
    if (value === null || at < frame.now - frame.span) {
      before = null;
      continue;
    }
    const joins = before !== null && at - before <= gap;
    drawn += `${joins ? "L" : "M"}${xOf(frame, at).toFixed(1)} ${yOf(frame, value).toFixed(1)}`;
    // A single point is seen too, as a dot.
    if (!joins) drawn += "h.01";
    before = at;
  }
  return drawn;
}
