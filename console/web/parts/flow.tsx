// The cluster as a picture: prefill nodes, decode nodes, the coordinator, and what moves between them.

import type { JSX } from "preact";
import { count, rate, things } from "../format";
import { type Box, type Line, type Picture, picture } from "../state/layout";
import { cluster, handoffs, nodes, requests, roads } from "../state/scene";
import { useWidth } from "./width";

export function Flow(): JSX.Element {
  const [frame, width] = useWidth<HTMLDivElement>();
  const seen = { nodes: nodes.value, roads: roads.value, requests: requests.value, handoffs: handoffs.value };
  const drawn = width > 0 ? picture(width, seen) : null;
  return (
    <div ref={frame} class="flow">
      {drawn && <Drawing drawn={drawn} />}
    </div>
  );
}

function Drawing({ drawn }: { drawn: Picture }): JSX.Element {
  const { width, height, box, prefill, decode, lines, streams, seat } = drawn;
  const live = lines.filter((line) => line.live > 0);
  const said = live.map(({ road }) => `${road.prefill} to ${road.decode}`).join(", ");
  const words = `${things(prefill.length, "prefill node")}, ${things(decode.length, "decode node")}. Handoffs now: ${said || "none"}.`;
  const title = (x: number, text: string): JSX.Element => (
    <text class="flow-title" x={x + box.width / 2} y={14}>
      {text}
    </text>
  );
  return (
    <svg width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={words}>
      {title(0, "Prefill pool")}
      {title(decode[0]?.x ?? width - box.width, "Decode pool")}
      {seat && title(seat.x, coordinatorWords())}
      {streams.map((stream) => (
        <path key={stream.name} class={stream.live > 0 ? "stream live" : "stream"} d={stream.path} />
      ))}
      {lines.map((line) => (
        <path key={line.name} class={`road ${line.road.verdict}`} d={line.path}>
          <title>{roadWords(line)}</title>
        </path>
      ))}
      {live.map((line) => (
        <path key={line.name} class="handoff" d={line.path} data-road={line.name} />
      ))}
      {drawn.labelled && lines.map((line) => <Rate key={line.name} line={line} />)}
      {[...prefill, ...decode].map((at) => (
        <NodeBox key={`${at.x} ${at.node.id}`} at={at} box={box} />
      ))}
      {seat && <Seat x={seat.x} y={seat.y} box={box} />}
    </svg>
  );
}

function coordinatorWords(): string {
  const known = Object.keys(cluster.value?.coordinators ?? {}).length;
  return known > 1 ? `One of ${known} coordinators` : "Coordinator";
}

function roadWords({ road, live }: Line): string {
  const how = road.transport ?? "nothing has come this way yet";
  return `${road.prefill} to ${road.decode}: ${how}, ${rate(road.bytes_per_second)}, ${things(live, "handoff")} now`;
}

function Rate({ line }: { line: Line }): JSX.Element | null {
  if (line.road.bytes_per_second === null) return null;
  return (
    <text class={line.live > 0 ? "flow-rate live" : "flow-rate"} x={line.label.x} y={line.label.y + 3}>
      {rate(line.road.bytes_per_second)}
    </text>
  );
}

function NodeBox({ at: { x, y, node }, box }: { at: Box; box: Picture["box"] }): JSX.Element {
  const { total, free, cached } = node.pages;
  const used = total > 0 ? (total - free - cached) / total : 0;
  const room = Math.max(4, Math.floor((box.width - 34) / 7.2));
  const name = node.id.length > room ? `${node.id.slice(0, room - 1)}…` : node.id;
  const doing = box.width < 140 ? `${count(node.load.running)} run` : `${count(node.load.running)} running`;
  const waits = node.load.waiting > 0 ? `, ${count(node.load.waiting)} wait` : "";
  return (
    <g transform={`translate(${x} ${y})`} class={`flow-node ${node.health}${node.slow ? " slow" : ""}`}>
      <rect width={box.width} height={box.height} rx={8} />
      <circle cx={15} cy={17} r={4} />
      <text class="flow-name" x={26} y={21}>
        {name}
      </text>
      <text class="flow-load" x={12} y={37}>
        {node.health === "ready" ? doing + waits : node.health}
      </text>
      <rect class="flow-used-track" x={12} y={box.height - 7} width={box.width - 24} height={2} rx={1} />
      <rect class="flow-used" x={12} y={box.height - 7} width={(box.width - 24) * used} height={2} rx={1} />
    </g>
  );
}

function Seat({ x, y, box }: { x: number; y: number; box: Picture["box"] }): JSX.Element {
  const running = requests.value.filter((request) => request.stage === "decode").length;
  const known = Object.keys(cluster.value?.coordinators ?? {});
  return (
    <g transform={`translate(${x} ${y})`} class="flow-node seat">
      <rect width={box.width} height={box.height} rx={8} />
      <text class="flow-name" x={12} y={21}>
        {known.length === 1 ? known[0] : "this one"}
      </text>
      <text class="flow-load" x={12} y={37}>
        {things(running, "answer")} streaming
      </text>
    </g>
  );
}
