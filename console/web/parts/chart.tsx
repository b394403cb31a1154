// Lines over the last minutes, and a budget that they should stay below.

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { age, clock } from "../format";
import type { Sample } from "../state/history";
import { type Frame, niceMax, path, xOf, yOf } from "../state/scale";
import { useWidth } from "./width";

export interface Series {
  name: string;
  /** Class of its colour. */
  tone: string;
  of: (sample: Sample) => number | null;
}

interface Props {
  title: string;
  note?: string | undefined;
  samples: readonly Sample[];
  series: readonly Series[];
  budget?: number | undefined;
  say: (value: number) => string;
}

const HEIGHT = 180;
const LEFT = 52;
/** So many minutes are shown: as few as hold what is known. */
const SPANS = [1, 2, 5];
/** Looks further apart than this are not joined. */
const GAP_MS = 20_000;
/** A budget that is further above the values is named, not drawn. */
const FAR = 4;

export function Chart({ title, note, samples, series, budget, say }: Props): JSX.Element {
  const [figure, width] = useWidth<HTMLDivElement>();
  const [pointed, setPointed] = useState<number | null>(null);
  const values = samples.flatMap((sample) => series.map((line) => line.of(sample) ?? 0));
  const greatest = Math.max(0, ...values);
  const isNear = budget !== undefined && (greatest === 0 || budget <= greatest * FAR);
  const now = samples.at(-1)?.at ?? Date.now();
  const max = niceMax(Math.max(greatest * 1.05, isNear ? budget * 1.08 : 0));
  const known_ms = now - (samples[0]?.at ?? now);
  const minutes = SPANS.find((minutes) => known_ms <= minutes * 60_000) ?? 5;
  const frame: Frame = { width, height: HEIGHT, left: LEFT, max, now, span: minutes * 60_000 };
  const shown = pointed === null ? samples.at(-1) : nearest(samples, frame, pointed);
  const known = (sample: Sample | undefined, line: Series): string => {
    const value = sample ? line.of(sample) : null;
    return value === null ? "–" : say(value);
  };
  return (
    <figure class="chart card">
      <figcaption>
        <h2>{title}</h2>
        <ul class="legend">
          {series.map((line) => (
            <li key={line.name}>
              <i class={line.tone} aria-hidden="true" />
              {line.name} <b>{known(shown, line)}</b>
            </li>
          ))}
          {budget !== undefined && (
            <li>
              <i class="tone-budget" aria-hidden="true" />
              budget <b>{say(budget)}</b>
            </li>
          )}
        </ul>
      </figcaption>
      <div
        ref={figure}
        class="chart-frame"
        onPointerMove={(event) => setPointed(event.clientX - event.currentTarget.getBoundingClientRect().left)}
        onPointerLeave={() => setPointed(null)}
      >
        {width > 0 && (
          <svg width={width} height={HEIGHT + 20} aria-hidden="true">
            <Axes frame={frame} say={say} />
            {isNear && <line class="budget-line" x1={LEFT} x2={width} y1={yOf(frame, budget)} y2={yOf(frame, budget)} />}
            {series.map((line) => (
              <path key={line.name} class={`line ${line.tone}`} d={path(frame, samples.map((sample) => ({ at: sample.at, value: line.of(sample) })), GAP_MS)} />
            ))}
            {pointed !== null && shown && <Pointer frame={frame} sample={shown} series={series} />}
          </svg>
        )}
      </div>
      <p class="chart-note">
        {pointed !== null && shown ? `At ${clock(shown.at)}.` : note}
        {budget !== undefined && !isNear && " The budget is above this scale."}
      </p>
    </figure>
  );
}

function nearest(samples: readonly Sample[], frame: Frame, x: number): Sample | undefined {
  const far = (sample: Sample): number => Math.abs(xOf(frame, sample.at) - x);
  return samples.reduce<Sample | undefined>((best, next) => (!best || far(next) < far(best) ? next : best), undefined);
}

function Axes({ frame, say }: { frame: Frame; say: (value: number) => string }): JSX.Element {
  const { left, width, height, max } = frame;
  const parts = frame.span > 120_000 && width >= 420 ? 5 : 2;
  const agos = Array.from({ length: parts + 1 }, (_, part) => frame.span * (1 - part / parts));
  return (
    <g class="axes">
      {[0, 0.5, 1].map((share) => {
        const y = height * (1 - share);
        return (
          <g key={share}>
            <line x1={left} x2={width} y1={y + 0.5} y2={y + 0.5} />
            <text x={left - 8} y={Math.max(10, y + 4)} class="end">
              {share === 0 ? "0" : say(max * share)}
            </text>
          </g>
        );
      })}
      {agos.map((ago) => (
        <text key={ago} x={xOf(frame, frame.now - ago)} y={height + 16} class={ago === 0 ? "end" : ago === frame.span ? "" : "middle"}>
          {ago === 0 ? "now" : `−${age(ago)}`}
        </text>
      ))}
    </g>
  );
}

function Pointer({ frame, sample, series }: { frame: Frame; sample: Sample; series: readonly Series[] }): JSX.Element {
  const x = xOf(frame, sample.at);
  return (
    <g>
      <line class="pointer" x1={x} x2={x} y1={0} y2={frame.height} />
      {series.map((line) => {
        const value = line.of(sample);
        return value === null ? null : <circle key={line.name} class={`point ${line.tone}`} cx={x} cy={yOf(frame, value)} r={3.5} />;
      })}
    </g>
  );
}
