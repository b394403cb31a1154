// What the tests look at: a split cluster that serves the small model, and coordinators in other states.

import { test as base } from "@playwright/test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { etcd, newKey, type Process, serve } from "./processes.ts";

export interface Cluster {
  /** The console. */
  page: string;
  /** The API for users. */
  api: string;
  /** A coordinator over the same etcd that knows no node. */
  lonely: string;
}

/** One process that asks operators and users for keys. */
export interface Keyed {
  page: string;
  operator: string;
  user: string;
  process: Process;
}

const NODES = ["prefill-1", "prefill-2", "decode-1", "decode-2"];
const ANYWHERE = ["frontend.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"];

async function startCluster(dir: string, started: Process[]): Promise<Cluster> {
  const registry = await etcd(join(dir, "etcd"));
  started.push(registry.process);
  const settings = [`registry.endpoints=["${registry.url}"]`, ...ANYWHERE];
  const node = (name: string, more: string[] = []): Process => {
    const process = serve(["--config", "cluster-configs/2p2d.toml", "--node", name], [...settings, ...more]);
    started.push(process);
    return process;
  };
  for (const name of NODES) node(name, ["engine.pages=1024"]);
  const coordinator = node("coordinator");
  const lonely = node("coordinator", ["cluster=lonely"]);
  const api = await coordinator.said("ready at ");
  await untilReady(api);
  return { api, page: await coordinator.said("console at "), lonely: await lonely.said("console at ") };
}

async function untilReady(api: string): Promise<void> {
  for (let looks = 0; looks < 600; looks += 1) {
    const said = await fetch(`${api}/ready`).then((response) => response.text(), () => "");
    if (said.includes(`"ready_nodes":${NODES.length}`)) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("the nodes did not become ready");
}

async function startKeyed(dir: string): Promise<Keyed> {
  const [operators, users] = [join(dir, "operators.toml"), join(dir, "users.toml")];
  const [operator, user] = [newKey("ann", operators), newKey("acme", users)];
  const mock = ["model=mock", "engine.backend=mock", "engine.mock.decode_us_per_sequence=2000"];
  const process = serve([], [...mock, ...ANYWHERE, `admin.keys_file=${operators}`, `frontend.keys_file=${users}`]);
  return { page: await process.said("console at "), operator, user, process };
}

/** Requests that come as others end, until it is stopped. */
export class Traffic {
  private readonly stopping = new AbortController();
  private readonly readers: Promise<void>[];

  constructor(api: string, readers: number, tokens = 90) {
    this.readers = Array.from({ length: readers }, (_, reader) => this.read(api, reader, tokens));
  }

  private async read(api: string, reader: number, tokens: number): Promise<void> {
    for (let turn = 0; !this.stopping.signal.aborted; turn += 1) {
      // Each begins with other words, so that every prompt has KV to hand over.
      const content = `${reader}.${turn} ${"Tell me about the relay race and its batons. ".repeat(6 + 5 * ((reader + turn) % 4))}`;
      const body = { model: "smollm2-135m", messages: [{ role: "user", content }], max_tokens: tokens, stream: true, ignore_eos: true };
      const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal: this.stopping.signal };
      await fetch(`${api}/v1/chat/completions`, init).then((response) => response.text()).catch(() => undefined);
    }
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    await Promise.all(this.readers);
  }
}

export const test = base.extend<{ keyed: Keyed }, { cluster: Cluster }>({
  cluster: [
    async ({}, use) => {
      const dir = mkdtempSync(join(tmpdir(), "baton-console-"));
      const started: Process[] = [];
      try {
        await use(await startCluster(dir, started));
      } finally {
        // etcd last, so that the others can take their entries back.
        const [registry, ...others] = started;
        await Promise.all(others.map((process) => process.end()));
        await registry?.end();
        rmSync(dir, { recursive: true, force: true });
      }
    },
    { scope: "worker", timeout: 120_000 },
  ],
  keyed: async ({}, use) => {
    const dir = mkdtempSync(join(tmpdir(), "baton-console-"));
    const keyed = await startKeyed(dir);
    await use(keyed);
    await keyed.process.end();
    rmSync(dir, { recursive: true, force: true });
  },
});
