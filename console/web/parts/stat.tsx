import type { JSX } from "preact";

interface Props {
  label: string;
  value: string;
  note: string;
  tone?: "good" | "bad" | undefined;
  /** What is drawn behind it, the oldest first. */
  trend: readonly (number | null)[];
}

const WIDTH = 96;
const HEIGHT = 24;

/** One number, what it is measured by, and how it was of late. */
export function Stat({ label, value, note, tone, trend }: Props): JSX.Element {
  return (
    <div class="stat card">
      <dt>{label}</dt>
      <dd class={tone === "bad" ? "value bad" : "value"}>{value}</dd>
      <dd class="note">{note}</dd>
      {trend.some((value) => value !== null && value > 0) && (
        <svg class="spark" width={WIDTH} height={HEIGHT} viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
          <path d={spark(trend)} />
        </svg>
      )}
    </div>
  );
}

function spark(trend: readonly (number | null)[]): string {
  const greatest = Math.max(1e-9, ...trend.map((value) => value ?? 0));
  const step = WIDTH / Math.max(1, trend.length - 1);
  let drawn = "";
  let joins = false;
  for (const [at, value] of trend.entries()) {
    if (value !== null) drawn += `${joins ? "L" : "M"}${(at * step).toFixed(1)} ${(HEIGHT - 1 - (value / greatest) * (HEIGHT - 3)).toFixed(1)}`;
    joins = value !== null;
  }
  return drawn;
}
