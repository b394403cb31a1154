// What an operator can do to a node or a request, and what will come of it in words.

import type { Node, Request, Role } from "../api/types";
import { call } from "../api/client";
import { things } from "../format";

/** Something that changes the cluster, before it is done. */
export interface Deed {
  title: string;
  /** What will happen, a sentence each. */
  words: string[];
  /** What is written on the button. */
  verb: string;
  grave: boolean;
  /** Why it is refused unless it is insisted on. */
  insist: string | null;
  /** Does it, and says what came of it. */
  act: (force: boolean) => Promise<string>;
}

const GIVES: Record<Role, string> = { prefill: "runs prompts", decode: "generates tokens" };

function others(node: Node, nodes: readonly Node[], role: Role): Node[] {
  return nodes.filter(
    (other) => other.id !== node.id && other.model === node.model && other.health === "ready" && other.roles.includes(role),
  );
}

function names(nodes: readonly Node[]): string {
  const ids = nodes.map((node) => node.id);
  if (ids.length > 3) return `${ids.slice(0, 2).join(", ")} and ${ids.length - 2} more`;
  return ids.length < 2 ? ids.join("") : `${ids.slice(0, -1).join(", ")} and ${ids.at(-1) ?? ""}`;
}

function left(role: Role, node: Node, rest: readonly Node[]): string {
  return rest.length === 0
    ? `No other ready node of ${node.model} ${GIVES[role]}.`
    : `New work of this kind goes to ${names(rest)}.`;
}

export function drain(node: Node, nodes: readonly Node[]): Deed {
  const { running, waiting } = node.load;
  const isLast = node.roles.includes("decode") && others(node, nodes, "decode").length === 0;
  const at = `nodes/${encodeURIComponent(node.id)}/drain`;
  return {
    title: `Drain ${node.id}?`,
    words: [
      "It takes no new work.",
      running + waiting === 0 ? "It has nothing to finish." : `It finishes the ${things(running + waiting, "sequence")} that it has.`,
      ...node.roles.map((role) => left(role, node, others(node, nodes, role))),
      "Undraining it, or restarting it, lets it take work again.",
    ],
    verb: "Drain",
    grave: true,
    insist: isLast ? `It is the last decode node of ${node.model}: requests for this model cannot be served without it.` : null,
    act: async (force) => {
      await call<Node>(at, "POST", { force });
      return `${node.id} is draining`;
    },
  };
}

export function undrain(node: Node): Deed {
  return {
    title: `Undrain ${node.id}?`,
    words: [`It takes new work again: it ${node.roles.map((role) => GIVES[role]).join(" and ")}.`],
    verb: "Undrain",
    grave: false,
    insist: null,
    act: async () => {
      await call<Node>(`nodes/${encodeURIComponent(node.id)}/undrain`, "POST");
      return `${node.id} takes work again`;
    },
  };
}

/** Gives a node these roles and takes others from it. */
export function setRoles(node: Node, roles: Role[], nodes: readonly Node[]): Deed {
  const lost = node.roles.filter((role) => !roles.includes(role));
  const gained = roles.filter((role) => !node.roles.includes(role));
  const lastOf = lost.filter((role) => others(node, nodes, role).length === 0);
  return {
    title: `Make ${node.id} ${roles.map((role) => `a ${role}`).join(" and ")} node?`,
    words: [
      ...gained.map((role) => `From now on it ${GIVES[role]}.`),
      ...lost.map((role) => `It gets no new ${role} work and finishes what it has. ${left(role, node, others(node, nodes, role))}`),
      "Restarting it gives it the roles of its configuration again.",
    ],
    verb: "Change role",
    grave: lost.length > 0,
    insist: lastOf.length > 0 ? `It is the last ${lastOf.join(" and ")} node of ${node.model}.` : null,
    act: async (force) => {
      await call<Node>(`nodes/${encodeURIComponent(node.id)}/roles`, "PUT", { roles, force });
      return `${node.id} is a ${roles.join(" and ")} node`;
    },
  };
}

export function cancel(request: Request): Deed {
  return {
    title: "Cancel this request?",
    words: [
      `Its reader is told that an operator cancelled it; ${things(request.tokens, "token")} went out so far.`,
      "Its pages are freed on every node that holds some.",
    ],
    verb: "Cancel request",
    grave: true,
    insist: null,
    act: async () => {
      await call<Request[]>(`requests/${encodeURIComponent(request.id)}`, "DELETE");
      return `Request ${request.id.slice(0, 8)} is cancelled`;
    },
  };
}
