// Where nodes stand in the picture of the cluster, and how lines run between them.

import type { Node, Request, Road } from "../api/types";
import { roadName } from "./history";

export interface Box {
  x: number;
  y: number;
  node: Node;
}

export interface Line {
  name: string;
  path: string;
  road: Road;
  /** Prompts and their KV on it now. */
  live: number;
  /** Where its rate is written. */
  label: { x: number; y: number };
}

export interface Stream {
  name: string;
  path: string;
  live: number;
}

export interface Picture {
  width: number;
  height: number;
  box: { width: number; height: number };
  prefill: Box[];
  decode: Box[];
  lines: Line[];
  streams: Stream[];
  /** The coordinator; none where there is no room. */
  seat: { x: number; y: number } | null;
  labelled: boolean;
}

interface Seen {
  nodes: readonly Node[];
  roads: readonly Road[];
  requests: readonly Request[];
  handoffs: ReadonlyMap<string, number>;
}

const ROW = 66;
const BOX_HEIGHT = 50;
const TOP = 26;
const WIDE = 620;
const MOST_LABELS = 8;

/** Prompts that are computed for each road, by name. */
export function running(requests: readonly Request[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { stage, prefill, decode } of requests) {
    if (stage !== "prefill" || prefill === null || decode === null) continue;
    const name = roadName({ prefill, decode });
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

export function picture(width: number, seen: Seen): Picture {
  const hasSeat = width >= WIDE;
  const box = { width: Math.round(Math.min(176, width * (hasSeat ? 0.22 : 0.36))), height: BOX_HEIGHT };
  const pool = (role: "prefill" | "decode"): Node[] => seen.nodes.filter((node) => node.roles.includes(role));
  const [from, to] = [pool("prefill"), pool("decode")];
  const rows = Math.max(1, from.length, to.length);
  const height = TOP + rows * ROW;
  const decodeX = hasSeat ? Math.round((width - box.width) / 2) : width - box.width;
  const place = (nodes: Node[], x: number): Box[] => {
    const first = TOP + ((rows - nodes.length) * ROW) / 2;
    return nodes.map((node, at) => ({ node, x, y: first + at * ROW + (ROW - BOX_HEIGHT) / 2 }));
  };
  const [prefill, decode] = [place(from, 0), place(to, decodeX)];
  const seat = hasSeat ? { x: width - box.width, y: TOP + (rows * ROW - BOX_HEIGHT) / 2 } : null;
  const labelled = seen.roads.length <= MOST_LABELS && decodeX - box.width >= 150;
  const lines = roadLines(prefill, decode, seen, box);
  return { width, height, box, prefill, decode, lines, streams: streams(decode, seat, box), seat, labelled };
}

function roadLines(prefill: Box[], decode: Box[], seen: Seen, box: Picture["box"]): Line[] {
  const computed = running(seen.requests);
  const lines = seen.roads.map((road): Line | null => {
    const at = prefill.findIndex(({ node }) => node.id === road.prefill);
    const from = prefill[at];
    const to = decode.find(({ node }) => node.id === road.decode);
    if (!from || !to) return null;
    const name = roadName(road);
    const [start, end] = [right(from, box), left(to, box)];
    // Rates of one prefill node stand above each other, those of the next one beside them.
    const share = prefill.length < 2 ? 0.5 : 0.34 + (0.32 * at) / (prefill.length - 1);
    const rise = 3 * share ** 2 - 2 * share ** 3;
    const label = { x: start.x + (end.x - start.x) * share, y: start.y + (end.y - start.y) * rise };
    const live = Math.max(computed.get(name) ?? 0, seen.handoffs.get(name) ?? 0);
    return { name, road, path: curve(start, end), live, label };
  });
  return lines.filter((line) => line !== null);
}

function streams(decode: Box[], seat: Picture["seat"], box: Picture["box"]): Stream[] {
  if (!seat) return [];
  return decode.map((from) => ({
    name: from.node.id,
    path: curve(right(from, box), left(seat, box)),
    live: from.node.in_flight,
  }));
}

type Point = { x: number; y: number };

function right(at: Point, box: Picture["box"]): Point {
  return { x: at.x + box.width, y: at.y + box.height / 2 };
}

function left(at: Point, box: Picture["box"]): Point {
  return { x: at.x, y: at.y + box.height / 2 };
}

function curve(from: Point, to: Point): string {
  const middle = (from.x + to.x) / 2;
  return `M${from.x} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
}
