// What the console computes, without a browser.

import { expect, test } from "@playwright/test";
import { events } from "../web/api/events";
import type { Node, Pages, Request, Road } from "../web/api/types";
import { age, bytes, ms, percent, things } from "../web/format";
import { timeline } from "../web/state/bill";
import { KEPT, moved, type Sample, sampled } from "../web/state/history";
import { picture } from "../web/state/layout";
import { between, percentile, within } from "../web/state/percentile";
import { pauseAfter } from "../web/state/polling";
import { niceMax, path } from "../web/state/scale";

const SCALE = { first_ms: 1, ratio: 2 };

test("percentiles lie in the step that they fall into", () => {
  // One below 1 ms, two from 1 to 2, one from 4 to 8.
  const counts = [1, 2, 0, 1];
  expect(percentile(counts, SCALE, 0.5)).toBeCloseTo(1.5);
  expect(percentile(counts, SCALE, 1)).toBeCloseTo(8);
  expect(percentile([0, 0], SCALE, 0.5)).toBeNull();
  expect(within(counts, SCALE, 2)).toBeCloseTo(0.75);
  expect(within(counts, SCALE, 6)).toBeCloseTo(0.875);
  expect(within([], SCALE, 6)).toBeNull();
});

test("a counter that began anew counts from nothing", () => {
  expect(between([1, 5], [2, 9])).toEqual([1, 4]);
  expect(between([7, 5], [2, 9])).toEqual([2, 9]);
});

test("history keeps the newest and measures by windows", () => {
  const times = (count: number): { first_ms: number; ratio: number; counts: number[] } => ({ ...SCALE, counts: [0, count] });
  let history: Sample[] = [];
  for (let look = 0; look < KEPT + 5; look += 1) {
    const pace = { ttft: times(look), itl: times(3 * look) };
    history = sampled(history, { at: 1000 * look, pace }, []);
  }
  const last = history.at(-1);
  expect(history).toHaveLength(KEPT);
  expect(history[0]?.at).toBe(5000);
  expect(last?.tokens).toBeCloseTo(4);
  expect(last?.ttft.p50).toBeCloseTo(1.5);
  expect(sampled([], { at: 0, pace: { ttft: times(9), itl: times(9) } }, [])[0]?.ttft.p50).toBeNull();
});

test("a hidden or refused page asks seldom", () => {
  expect(pauseAfter(0, false)).toBe(1000);
  expect([1, 2, 3, 30].map((failures) => pauseAfter(failures, false))).toEqual([2000, 4000, 8000, 15000]);
  expect(pauseAfter(0, true)).toBe(15000);
});

test("numbers are said in their units", () => {
  const plain = (text: string): string => text.replaceAll("\u202f", " ");
  expect([0.05, 3.14159, 41.5, 999, 1234, 90_000, null].map((time) => plain(ms(time)))).toEqual(["50 µs", "3.14 ms", "41.5 ms", "999 ms", "1.23 s", "1 m 30 s", "–"]);
  expect([0, 60_000, 3_661_000, 90_000_000].map((time) => plain(age(time)))).toEqual(["0 s", "1 m", "1 h 1 m", "1 d 1 h"]);
  expect([12, 4_600, 2.5e9].map((size) => plain(bytes(size)))).toEqual(["12 B", "4.60 kB", "2.50 GB"]);
  expect([0, 0.999, 1, null].map((share) => plain(percent(share)))).toEqual(["0.0 %", "99.9 %", "100 %", "–"]);
  expect([things(1, "node"), things(2000, "node")]).toEqual(["1 node", "2,000 nodes"]);
});

test("a chart's scale is round, and gaps are gaps", () => {
  expect([0, 0.9, 7, 41, 100, 101].map(niceMax)).toEqual([1, 1, 8, 50, 100, 150]);
  const frame = { width: 100, height: 10, left: 0, max: 10, now: 10, span: 10 };
  const at = (at: number, value: number | null): { at: number; value: number | null } => ({ at, value });
  expect(path(frame, [at(0, 0), at(5, 10), at(7, null), at(10, 5)], 6)).toBe("M0.0 10.0h.01L50.0 0.0M100.0 5.0h.01");
});

test("a bill's parts follow each other, and the transfer ends where waiting ends", () => {
  const bill = { queue_ms: 1, earlier_ms: 3, prefill_ms: 10, transfer_ms: 8, exposed_ms: 2, decode_ms: 20, transfer_bytes: 0, transfer_pages: 0, repaired_frames: 0 };
  const line = timeline({ ...bill, prefill_node: "p" });
  expect(line.total_ms).toBe(36);
  expect(line.parts.map((part) => part.from_ms)).toEqual([0, 1, 4, 14, 16]);
  expect(line.transfer).toMatchObject({ from_ms: 8, took_ms: 8 });
  expect(timeline({ ...bill, prefill_node: null }).transfer).toBeNull();
  const once = timeline({ ...bill, earlier_ms: 0, prefill_node: "p" });
  expect(once.parts.map((part) => part.name)).toEqual(["queue", "prefill", "wait", "decode"]);
  expect(timeline({ ...bill, transfer_ms: 99, prefill_node: "p" }).transfer).toMatchObject({ from_ms: 0, took_ms: 16 });
});

const NO_PAGES: Pages = { free: 8, cached: 0, running: 0, receiving: 0, sending: 0, quarantined: 0, total: 8, promised: 0 };

function node(id: string, roles: Node["roles"]): Node {
  const load = { running: 0, waiting: 0, waiting_prefill_tokens: 0, running_context_tokens: 0, step_prompt_tokens: 0, left_over: 0 };
  const known = { epoch: 0, incarnation: 1, health: "ready", slow: false, announced: true, model: "m", control_addr: "", in_flight: 0 } as const;
  return { ...known, id, roles, load, pages: NO_PAGES, step_model: { prefill: null, decode: null }, indexed_pages: 0 };
}

function road(prefill: string, decode: string, handoffs = 0): Road {
  const unknown = { transport: null, bytes_per_second: null, made_per_second: null, fallback: null, advice: null };
  return { ...unknown, model: "m", verdict: "unknown", prefill, decode, handoffs };
}

test("handoffs between two looks are told by road", () => {
  const before = [road("p1", "d1", 3), road("p1", "d2", 9)];
  const now = [road("p1", "d1", 5), road("p1", "d2", 2), road("p2", "d1", 7)];
  // The second's decode node was restarted; nothing is known yet of what the third did before.
  expect([...moved(before, now)]).toEqual([["p1 d1", 2], ["p1 d2", 2], ["p2 d1", 0]]);
});

test("the picture has a line for each road and says which are live", () => {
  const nodes = [node("p1", ["prefill"]), node("p2", ["prefill"]), node("d1", ["decode"]), node("both", ["prefill", "decode"])];
  const roads = [road("p1", "d1"), road("p2", "d1"), road("p1", "both"), road("gone", "d1")];
  const request = { stage: "prefill", prefill: "p1", decode: "d1" } as Request;
  const seen = { nodes, roads, requests: [request, { ...request, stage: "decode" } as Request], handoffs: new Map([["p2 d1", 4]]) };
  const drawn = picture(1000, seen);
  expect(drawn.lines.map((line) => [line.name, line.live])).toEqual([["p1 d1", 1], ["p2 d1", 4], ["p1 both", 0]]);
  expect([drawn.prefill.length, drawn.decode.length, drawn.streams.length]).toEqual([3, 2, 2]);
  const narrow = picture(300, seen);
  expect([narrow.seat, narrow.streams, narrow.labelled]).toEqual([null, [], false]);
  for (const { x, y } of [...narrow.prefill, ...narrow.decode]) {
    expect(x + narrow.box.width).toBeLessThanOrEqual(300);
    expect(y + narrow.box.height).toBeLessThanOrEqual(narrow.height);
  }
});

test("events come whole, however their bytes are cut", async () => {
  const bytes = new TextEncoder().encode(': hello\n\ndata: {"a":"é"}\n\ndata: two\r\ndata: lines\r\n\r\ndata: [DONE]\n\ndata: cut');
  for (const size of [1, 3, 7, bytes.length]) {
    const parts = Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.slice(at * size, (at + 1) * size));
    const stream = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const part of parts) controller.enqueue(part);
        controller.close();
      },
    });
    const said: string[] = [];
    for await (const event of events(stream)) said.push(event);
    expect(said).toEqual(['{"a":"é"}', "two\nlines", "[DONE]"]);
  }
});
