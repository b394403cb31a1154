// Processes of a cluster under test, on free ports of this machine. They end with what started them.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const BATON = process.env["BATON_BIN"] ?? resolve(ROOT, "target/release/baton");
const PATIENCE_MS = 60_000;

/** A process and the lines that it has written. */
export class Process {
  private written = "";
  private readonly child: ChildProcess;

  constructor(program: string, args: string[]) {
    this.child = spawn(program, args, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"] });
    for (const output of [this.child.stdout, this.child.stderr]) {
      output?.on("data", (bytes: Buffer) => (this.written += bytes.toString()));
    }
  }

  /** What a line has behind `words`, as soon as there is one. */
  async said(words: string): Promise<string> {
    const end = Date.now() + PATIENCE_MS;
    while (Date.now() < end && this.child.exitCode === null) {
      const line = this.written.split("\n").find((line) => line.includes(words));
      if (line !== undefined) return (line.split(words)[1] ?? "").trim();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`a process never said ${JSON.stringify(words)}:\n${this.written}`);
  }

  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 15_000);
    await once(this.child, "exit");
    clearTimeout(timer);
  }
}

export function serve(args: string[], settings: string[]): Process {
  return new Process(BATON, ["serve", ...args, ...settings.flatMap((setting) => ["--set", setting])]);
}

/** A key for a tenant or an operator; `file` keeps its digest. */
export function newKey(tenant: string, file: string): string {
  const made = execFileSync(BATON, ["key", "new", "--tenant", tenant, "--file", file], { stdio: ["ignore", "pipe", "ignore"] });
  return made.toString().trim();
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

async function answers(url: string): Promise<boolean> {
  return fetch(url).then((response) => response.ok, () => false);
}

/** An etcd that answers, and where it is. */
export async function etcd(dir: string): Promise<{ process: Process; url: string }> {
  const [url, peer] = [`http://127.0.0.1:${await freePort()}`, `http://127.0.0.1:${await freePort()}`];
  const own = ["--listen-client-urls", url, "--advertise-client-urls", url];
  const peers = ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", `default=${peer}`];
  const process_ = new Process(process.env["BATON_ETCD"] ?? "etcd", ["--data-dir", dir, ...own, ...peers]);
  while (!(await answers(`${url}/health`))) await new Promise((resolve) => setTimeout(resolve, 50));
  return { process: process_, url };
}
