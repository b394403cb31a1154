// One node: what it is, has to do, holds and costs, and what may be done to it.

import type { JSX } from "preact";
import type { Cost, Node, Role } from "../api/types";
import { count, ms } from "../format";
import { nodes } from "../state/scene";
import { drain, setRoles, undrain } from "../state/steering";
import { ask } from "./dialog";
import { PagesBar } from "./pages-bar";

const CHOICES: { roles: Role[]; name: string }[] = [
  { roles: ["prefill"], name: "Make prefill" },
  { roles: ["decode"], name: "Make decode" },
  { roles: ["prefill", "decode"], name: "Make both" },
];

export function NodeCard({ node }: { node: Node }): JSX.Element {
  return (
    <article class="node card" aria-labelledby={`node-${node.id}`} data-node={node.id}>
      <header>
        <h3 id={`node-${node.id}`}>{node.id}</h3>
        {node.roles.map((role) => (
          <span key={role} class={`chip role-${role}`}>
            {role}
          </span>
        ))}
        <span class={`health ${node.slow ? "slow" : node.health}`}>{node.slow ? "slow" : node.health}</span>
      </header>
      <p class="node-about">
        {node.model} · {node.control_addr} · epoch {node.epoch}
        {!node.announced && " · not in the registry"}
      </p>
      <Work node={node} />
      <PagesBar pages={node.pages} of={node.id} />
      <footer>
        <Buttons node={node} />
      </footer>
    </article>
  );
}

function Work({ node }: { node: Node }): JSX.Element {
  const { load, step_model: steps } = node;
  const figures: [string, string, string][] = [
    ["running", count(load.running), "answers in its batch"],
    ["waiting", count(load.waiting), "answers and prompts that wait"],
  ];
  if (node.roles.includes("prefill")) {
    figures.push(["prompt tokens", count(load.waiting_prefill_tokens), "to be computed"]);
    figures.push(["prefill step", prefillStep(steps.prefill, load.step_prompt_tokens), "full of prompts, as it has learnt"]);
  }
  if (node.roles.includes("decode")) {
    figures.push(["context", count(load.running_context_tokens), "tokens that running answers attend to"]);
    figures.push(["decode step", decodeStep(steps.decode, load.running, load.running_context_tokens), "with these answers, as it has learnt"]);
  }
  return (
    <dl class={node.roles.length > 1 ? "work of-both" : "work"}>
      {figures.map(([name, value, meaning]) => (
        <div key={name} title={`${name}: ${meaning}`}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function prefillStep(cost: Cost | null, tokens: number): string {
  return cost && tokens > 0 ? ms(1000 * (cost.base + cost.unit * tokens)) : "–";
}

function decodeStep(cost: Cost | null, answers: number, context: number): string {
  return cost ? ms(1000 * (cost.base + cost.unit * Math.max(1, answers) + cost.context * context)) : "–";
}

function Buttons({ node }: { node: Node }): JSX.Element {
  if (node.health === "lost") return <span class="note">It does not answer: nothing can be told to it.</span>;
  const same = (roles: Role[]): boolean => roles.length === node.roles.length && roles.every((role) => node.roles.includes(role));
  return (
    <>
      {node.health === "draining" ? (
        <button type="button" class="button" onClick={() => ask(undrain(node))}>
          Undrain
        </button>
      ) : (
        <button type="button" class="button" onClick={() => ask(drain(node, nodes.value))}>
          Drain
        </button>
      )}
      <span class="spread" />
      {CHOICES.filter(({ roles }) => !same(roles)).map(({ roles, name }) => (
        <button key={name} type="button" class="button quiet" onClick={() => ask(setRoles(node, roles, nodes.value))}>
          {name}
        </button>
      ))}
    </>
  );
}
