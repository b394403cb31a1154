#!/usr/bin/env python3
"""Our engine beside llama.cpp and Transformers: the engine part of scripts/bench-peers.

Every row: one probing run of each llama.cpp form, then pairs interleaved
(ours, llama.cpp's better form, Transformers), five by default. Ratios are of
pairs, medians shown, all runs beside them. Prints a Markdown table.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROWS = [("prefill", 512), ("prefill", 2048), ("decode", 1), ("decode", 8), ("decode", 32)]
CONTEXT, GENERATED = 128, 64
HERE = Path(__file__).parent


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


class Ours:
    def __init__(self, binary: str, model: str, threads: int, settings: list[str]):
        self.command = [binary, "bench", "row"]
        self.settings = ["--model", model, "--set", f"engine.threads={threads}"]
        self.settings += [part for setting in settings for part in ("--set", setting)]

    def row(self, kind: str, size: int) -> float:
        return float(output_of(*self.command, kind, str(size), *self.settings))


class LlamaCpp:
    def __init__(self, folder: str, model: str, threads: int):
        self.folder, self.model, self.threads = Path(folder), model, str(threads)

    def row(self, kind: str, size: int) -> float:
        if kind == "prefill":
            out = output_of(str(self.folder / "llama-bench"), "-m", self.model, "-t", self.threads,
                            "-p", str(size), "-n", "0", "-r", "1", "-o", "json")
            return json.loads(out)[0]["avg_ts"]
        context = size * (CONTEXT + GENERATED)
        out = output_of(str(self.folder / "llama-batched-bench"), "-m", self.model, "-t", self.threads,
                        "-tb", self.threads, "-c", str(context), "-b", "2048", "-ub", "512", "-npp", str(CONTEXT),
                        "-ntg", str(GENERATED), "-npl", str(size), "--output-format", "jsonl")
        return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])["speed_tg"]


class Transformers:
    def __init__(self, python: str, model: str, threads: int):
        command = [python, str(HERE / "transformers_rows.py"), model, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{' '.join(command)} does not start: run it by hand to see why")

    def row(self, kind: str, size: int) -> float:
        self.process.stdin.write(f"{kind} {size}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{', '.join(f'{value:,.0f}' for value in values)}]"


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baton", default="target/release/baton")
    parser.add_argument("--llama-bin", required=True)
    parser.add_argument("--python", help="a Python with Transformers; left out: not compared")
    parser.add_argument("--q4", required=True, help="the quantised file")
    parser.add_argument("--bf16", required=True, help="the same model in bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--row", action="append", help="one of the rows alone, for example decode:32 (repeat for several)")
    parser.add_argument("--set", action="append", default=[], help="a setting of ours")
    args = parser.parse_args()
    rows = [(kind, size) for kind, size in ROWS if not args.row or f"{kind}:{size}" in args.row]
    if not rows:
        parser.error(f"no such row; there are {', '.join(f'{kind}:{size}' for kind, size in ROWS)}")

    ours = Ours(args.baton, args.q4, args.threads, args.set)
    forms = {name: LlamaCpp(args.llama_bin, file, args.threads)
             for name, file in (("Q4_1", args.q4), ("bf16", args.bf16))}
    python = Transformers(args.python, args.q4, args.threads) if args.python else None
    print("| tokens/s | Baton | llama.cpp, better form | ratio | Transformers bf16 | ratio |")
    print("|---|---|---|---|---|---|", flush=True)
    for kind, size in rows:
        probes = {name: form.row(kind, size) for name, form in forms.items()}
        form = max(probes, key=probes.get)
        runs = {"ours": [], "llama": [], "python": []}
        for _ in range(args.pairs):
            runs["ours"].append(ours.row(kind, size))
            runs["llama"].append(forms[form].row(kind, size))
            if python:
                runs["python"].append(python.row(kind, size))
        name = f"{kind} {size}" + (" streams" if kind == "decode" else "")
        last = f"{shown(runs['python'])} | {ratio(runs['ours'], runs['python']):.2f}" if python else "– | –"
        other = ", ".join(f"{name} {rate:,.0f}" for name, rate in probes.items() if name != form)
        print(f"| {name} | {shown(runs['ours'])} | {form}: {shown(runs['llama'])} (once: {other}) "
              f"| {ratio(runs['ours'], runs['llama']):.2f} | {last} |", flush=True)


if __name__ == "__main__":
    main()
