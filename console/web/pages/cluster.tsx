import type { JSX } from "preact";
import type { Node } from "../api/types";
import { compact, count, ms, percent, rate, things } from "../format";
import { Empty } from "../parts/empty";
import { Flow } from "../parts/flow";
import { NodeCard } from "../parts/node-card";
import { Stat } from "../parts/stat";
import { attained } from "../state/history";
import { cluster, contact, history, limits, nodes, queues, roads } from "../state/scene";

export function ClusterPage(): JSX.Element {
  if (contact.value.state === "waiting") return <Empty title="Looking at the cluster…" />;
  const { value: all } = nodes;
  const is = (role: "prefill" | "decode", node: Node): boolean => node.roles.includes(role);
  const pools = [
    { title: "Prefill pool", of: all.filter((node) => is("prefill", node) && !is("decode", node)) },
    { title: "Decode pool", of: all.filter((node) => is("decode", node) && !is("prefill", node)) },
    { title: "In both pools", of: all.filter((node) => is("prefill", node) && is("decode", node)) },
  ];
  return (
    <>
      <h1>Cluster</h1>
      <Numbers />
      {all.length === 0 ? (
        <Empty title="No nodes">
          {cluster.value?.registry === "away" ? (
            "The registry does not answer, and no node was known before."
          ) : (
            <>
              No prefill or decode node has announced itself yet. Start one with <code>baton serve --role decode</code> over the same registry.
            </>
          )}
        </Empty>
      ) : (
        <>
          <section class="card flow-card" aria-labelledby="flow-title">
            <h2 id="flow-title">Who streams to whom</h2>
            <Flow />
            <Roads />
          </section>
          <div class="pools">
            {pools
              .filter(({ of }) => of.length > 0)
              .map(({ title, of }) => (
                <Pool key={title} title={title} of={of} />
              ))}
          </div>
        </>
      )}
    </>
  );
}

function Pool({ title, of }: { title: string; of: Node[] }): JSX.Element {
  return (
    <section aria-label={title}>
      <h2 class="pool-title">
        {title} <span class="note">{things(of.length, "node")}</span>
      </h2>
      <div class="pool">
        {of.map((node) => (
          <NodeCard key={node.id} node={node} />
        ))}
      </div>
    </section>
  );
}

function Numbers(): JSX.Element {
  const samples = history.value.slice(-60);
  const last = samples.at(-1);
  const sum = (of: "running" | "waiting"): number => queues.value.reduce((total, queue) => total + queue[of], 0);
  const budget = limits.value;
  const time = (name: "ttft" | "itl", label: string): JSX.Element => {
    const limit = budget?.[`${name}_ms`];
    const worst = last?.[name].p95 ?? null;
    const kept = limit === undefined ? null : attained(history.value, name, limit);
    const note = limit === undefined ? "" : kept === null ? `budget ${ms(limit)}` : `${percent(kept)} within ${ms(limit)}`;
    const isLate = limit !== undefined && worst !== null && worst > limit;
    return <Stat label={label} value={ms(worst)} note={note} tone={isLate ? "bad" : undefined} trend={samples.map((sample) => sample[name].p95)} />;
  };
  return (
    <dl class="stats">
      <Stat label="Running" value={count(sum("running"))} note={budget ? `of ${count(budget.max_running)} for each model` : ""} trend={samples.map((sample) => sample.running)} />
      <Stat label="Waiting" value={count(sum("waiting"))} note={budget ? `at most ${ms(budget.max_wait_ms)}` : ""} trend={samples.map((sample) => sample.waiting)} />
      <Stat label="Tokens a second" value={last?.tokens ? compact(last.tokens) : "0"} note="to readers of this coordinator" trend={samples.map((sample) => sample.tokens)} />
      {time("ttft", "First token, p95")}
      {time("itl", "Between tokens, p95")}
    </dl>
  );
}

/** The lines of the picture as a table. */
function Roads(): JSX.Element | null {
  const known = roads.value;
  if (known.length === 0) return <p class="note">No two nodes hand KV to each other: each runs its own prompts.</p>;
  return (
    <details class="roads" open={known.length <= 8}>
      <summary>{things(known.length, "link")}</summary>
      <div class="scroll" role="region" aria-label="Links" tabIndex={0}>
        <table>
          <thead>
            <tr>
              <th scope="col">From</th>
              <th scope="col">To</th>
              <th scope="col">Transport</th>
              <th scope="col" class="number">Carries</th>
              <th scope="col" class="number">Prompts make</th>
              <th scope="col" class="number">Handoffs</th>
              <th scope="col">Transfer</th>
            </tr>
          </thead>
          <tbody>
            {known.map((road) => (
              <tr key={`${road.prefill} ${road.decode}`}>
                <th scope="row">{road.prefill}</th>
                <td>{road.decode}</td>
                <td title={road.fallback ? `not ${road.fallback}` : undefined}>{road.transport ?? "–"}</td>
                <td class="number">{rate(road.bytes_per_second)}</td>
                <td class="number">{rate(road.made_per_second)}</td>
                <td class="number">{count(road.handoffs)}</td>
                <td title={road.advice ?? undefined}>
                  <span class={`verdict ${road.verdict}`}>{road.verdict}</span>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {known.map((road) => road.advice && <p key={`${road.prefill} ${road.decode}`} class="advice"><b>{road.prefill} to {road.decode}:</b> {road.advice}</p>)}
    </details>
  );
}
