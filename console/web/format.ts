// Numbers and times as people read them.

const NARROW = "\u202f";

function unit(value: string, name: string): string {
  return `${value}${NARROW}${name}`;
}

/** Three digits that matter. */
function short(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** A time; nothing is a dash. */
export function ms(time: number | null | undefined): string {
  if (time === null || time === undefined) return "–";
  if (time < 1) return unit((1000 * time).toFixed(0), "µs");
  if (time < 1000) return unit(short(time), "ms");
  return time < 60_000 ? unit(short(time / 1000), "s") : age(time);
}

/** A stretch of time in its two greatest units. */
export function age(time: number): string {
  const seconds = Math.max(0, Math.floor(time / 1000));
  const parts: [number, string][] = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "m"],
    [seconds % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  const shown = first < 0 ? parts.slice(-1) : parts.slice(first, first + 2).filter(([count], at) => at === 0 || count > 0);
  return shown.map(([count, name]) => unit(`${count}`, name)).join(" ");
}

export function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

/** A count in few letters. */
export function compact(value: number): string {
  return value.toLocaleString("en-US", { notation: "compact", maximumFractionDigits: 1 });
}

export function rate(bytesPerSecond: number | null): string {
  if (bytesPerSecond === null) return "not measured";
  return bytesPerSecond >= 1e9 ? unit(short(bytesPerSecond / 1e9), "GB/s") : unit(short(bytesPerSecond / 1e6), "MB/s");
}

export function bytes(value: number): string {
  if (value >= 1e9) return unit(short(value / 1e9), "GB");
  if (value >= 1e6) return unit(short(value / 1e6), "MB");
  return value >= 1e3 ? unit(short(value / 1e3), "kB") : unit(`${value}`, "B");
}

export function percent(share: number | null): string {
  return share === null ? "–" : unit(share === 1 ? "100" : (100 * share).toFixed(1), "%");
}

/** One thing or several. */
export function things(value: number, one: string, several = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : several}`;
}

export function clock(at: number): string {
  return new Date(at).toLocaleTimeString(undefined, { hour12: false });
}
