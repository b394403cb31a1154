// What the admin API says, as `admin/proto/admin.proto` has it. Times are milliseconds unless a name says otherwise.

export interface Cluster {
  ready: boolean;
  registry: string;
  nodes: Record<string, number>;
  /** Addresses by name; empty: the one that answers is alone. */
  coordinators: Record<string, string>;
}

export type Health = "joining" | "ready" | "draining" | "lost";
export type Role = "prefill" | "decode";

export interface Pages {
  free: number;
  cached: number;
  running: number;
  receiving: number;
  sending: number;
  quarantined: number;
  total: number;
  promised: number;
}

/** A step takes `base + unit * units + context * contexts` seconds. */
export interface Cost {
  base: number;
  unit: number;
  context: number;
}

export interface NodeLoad {
  running: number;
  waiting: number;
  waiting_prefill_tokens: number;
  running_context_tokens: number;
  step_prompt_tokens: number;
  left_over: number;
}

export interface Node {
  id: string;
  roles: Role[];
  epoch: number;
  incarnation: number;
  health: Health;
  slow: boolean;
  announced: boolean;
  model: string;
  control_addr: string;
  in_flight: number;
  load: NodeLoad;
  pages: Pages;
  step_model: { prefill: Cost | null; decode: Cost | null };
  indexed_pages: number;
}

export interface Road {
  model: string;
  prefill: string;
  decode: string;
  transport: string | null;
  bytes_per_second: number | null;
  made_per_second: number | null;
  verdict: "hidden" | "exposed" | "unknown";
  fallback: string | null;
  advice: string | null;
  /** Prompts sent this way since the decode node began. */
  handoffs: number;
}

export type Stage = "queued" | "routed" | "prefill" | "decode";

export interface Request {
  id: string;
  tenant: string;
  model: string;
  stage: Stage;
  priority: number;
  age_ms: number;
  left_ms: number;
  ttft_ms: number;
  itl_ms: number;
  prompt_tokens: number;
  tokens: number;
  attempts: number;
  decode: string | null;
  prefill: string | null;
}

export interface Queue {
  model: string;
  running: number;
  waiting: number;
  waiting_by_tenant: Record<string, number>;
  interval_ms: number | null;
}

export interface Limits {
  revision: number;
  max_running: number;
  max_waiting: number;
  max_wait_ms: number;
  ttft_ms: number;
  itl_ms: number;
}

/** `counts[n]` took less than `first_ms * ratio^n`, and not less than the step before. */
export interface Times {
  first_ms: number;
  ratio: number;
  counts: number[];
}

export interface Pace {
  ttft: Times;
  itl: Times;
}

export interface Incident {
  kind: string;
  node: string | null;
  words: string;
  first_ms: number;
  last_ms: number;
  times: number;
}

export interface Act {
  at_ms: number;
  who: string;
  what: string;
  whom: string | null;
  how: string | null;
  refused: string | null;
  rank: string;
  call: string;
}
