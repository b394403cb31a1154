#!/usr/bin/env python3
"""Our transfers beside NIXL and Mooncake: the transfer part of scripts/bench-peers.

Every round runs each of them once, one after the other: two processes, 64
blocks at once (64 MiB at most) out of 64 MiB of memory into as much, which is
compared at the end. A batch of theirs ends when their library says that it has
arrived. With --perftest, ours over UCX beside its own benchmark, which sends one
block again and again, and never looks at it: out of a cache where it fits into
one, and from memory only with messages of 64 MiB. Prints a Markdown table:
medians of the rounds, all of them beside.
"""

import argparse
import json
import mmap
import os
import re
import socket
import statistics
import subprocess
import sys
import time

POOL, AT_ONCE = 64 << 20, 64
PATTERN = bytes(range(251)) * (POOL // 251 + 1)


class Memory:
    """The pool of one process, in pages of its own."""

    def __init__(self, filled: bool):
        import numpy

        self.map = mmap.mmap(-1, POOL)
        self.map.write(PATTERN[:POOL] if filled else bytes(POOL))
        self.address = numpy.frombuffer(self.map, dtype=numpy.uint8).ctypes.data

    def batches(self, block: int) -> list[list[int]]:
        """Offsets of blocks, a list a batch; all of them cover the pool."""
        count = min(AT_ONCE, POOL // block)
        offsets = range(0, POOL, block)
        return [list(offsets[at:at + count]) for at in range(0, len(offsets), count)]


class Nixl:
    """UCX over the transports of UCX_TLS, by active writes."""

    def __init__(self, memory: Memory, name: str):
        from nixl_cu13._api import nixl_agent, nixl_agent_config

        self.memory, self.agent = memory, nixl_agent(name, nixl_agent_config(backends=["UCX"]))
        self.agent.register_memory([(memory.address, POOL, 0, "")], "DRAM")

    def where(self) -> str:
        return self.agent.get_agent_metadata().hex()

    def meet(self, where: str, address: int) -> None:
        self.there, self.address = self.agent.add_remote_agent(bytes.fromhex(where)), address

    def prepare(self, block: int) -> None:
        def sides(peer: str, base: int):
            blocks = [(base + offset, block, 0) for offset in range(0, POOL, block)]
            return self.agent.prep_xfer_dlist(peer, blocks, "DRAM")

        here, there = sides("", self.memory.address), sides(self.there, self.address)
        numbers = [[offset // block for offset in batch] for batch in self.memory.batches(block)]
        # Merged, blocks that happen to lie side by side would be one.
        self.ready = [self.agent.make_prepped_xfer("WRITE", here, batch, there, batch, skip_desc_merge=True)
                      for batch in numbers]

    def send(self, batch: int) -> None:
        state = self.agent.transfer(self.ready[batch])
        while state == "PROC":
            state = self.agent.check_xfer_state(self.ready[batch])
        assert state == "DONE", state


class Mooncake:
    """Its TCP transport, by batches that wait for their end."""

    def __init__(self, memory: Memory, name: str):
        from mooncake.engine import TransferEngine

        self.memory, self.engine = memory, TransferEngine()
        assert self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert self.engine.register_memory(memory.address, POOL) == 0

    def where(self) -> str:
        return f"127.0.0.1:{self.engine.get_rpc_port()}"

    def meet(self, where: str, address: int) -> None:
        self.there, self.address = where, address

    def prepare(self, block: int) -> None:
        self.ready = [([self.memory.address + offset for offset in batch],
                       [self.address + offset for offset in batch], [block] * len(batch))
                      for batch in self.memory.batches(block)]

    def send(self, batch: int) -> None:
        here, there, lengths = self.ready[batch]
        assert self.engine.batch_transfer_sync_write(self.there, here, there, lengths) == 0


PEERS = {"nixl": Nixl, "mooncake": Mooncake}


def target(peer: str) -> None:
    """Says where it is, waits for a line, and says whether what arrived is right."""
    memory = Memory(filled=False)
    end = PEERS[peer](memory, "target")
    print(json.dumps([end.where(), memory.address]), flush=True)
    sys.stdin.readline()
    print(memory.map[:] == PATTERN[:POOL], flush=True)


def initiator(peer: str, blocks: list[int], mib: int) -> None:
    """GB/s of each block size, a JSON list."""
    memory = Memory(filled=True)
    end = PEERS[peer](memory, "initiator")
    end.meet(*json.loads(sys.stdin.readline()))
    rates = []
    for block in blocks:
        end.prepare(block)
        batches = memory.batches(block)
        end.send(0)
        rounds = max(2, (mib << 20) // (block * len(batches[0])))
        begun = time.perf_counter()
        for at in range(rounds):
            end.send(at % len(batches))
        took = time.perf_counter() - begun
        rates.append(rounds * block * len(batches[0]) / 1e9 / took)
        for batch in range(len(batches)):
            end.send(batch)
    print(json.dumps(rates), flush=True)


def run(args: argparse.Namespace, peer: str, more: dict[str, str]) -> list[float]:
    """One round of theirs."""
    command = [args.python, __file__, "--blocks", ",".join(map(str, args.blocks)), "--mib", str(args.mib), "--end", peer]
    environment = {**os.environ, **more}

    def start(end: str) -> subprocess.Popen:
        return subprocess.Popen([*command, end], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True, env=environment)

    def said(process: subprocess.Popen) -> str:
        # Libraries write to stdout too.
        return next((line for line in process.stdout if line[0] in "[TF"), "")

    def tell(process: subprocess.Popen, line: str) -> None:
        process.stdin.write(line)
        process.stdin.flush()

    with start("target") as there, start("initiator") as here:
        try:
            tell(here, said(there))
            rates = json.loads(said(here) or "null")
            tell(there, "\n")
            if rates is None or said(there).strip() != "True":
                sys.exit(f"{peer} failed: run {' '.join(command)} target by hand to see why")
            return rates
        finally:
            there.kill()
            here.kill()


def ours(args: argparse.Namespace, transport: str, more: dict[str, str] | None = None) -> dict[str, list[float]]:
    """One round of ours with and without checksums, and the yardsticks of the same run."""
    command = [args.baton, "bench", "transfer", "--transport", transport, "--runs", "1", "--mib", str(args.mib)]
    rates: dict[str, list[float]] = {"crc32c": [], "none": [], "stream": [], "shared": [], "copy": []}
    for block in args.blocks:
        at_once = str(min(AT_ONCE, POOL // block))
        out = subprocess.run([*command, "--block", str(block), "--at-once", at_once], check=True,
                             stdout=subprocess.PIPE, text=True, env={**os.environ, **(more or {})}).stdout
        rows = re.findall(r"x ?\d+ +([\d.]+) .*stream ([\d.]+), shared ([\d.]+), copy ([\d.]+)", out)
        (checked, *yardsticks), (plain, *_) = rows
        for name, rate in zip(rates, (checked, plain, *yardsticks)):
            rates[name].append(float(rate))
    return rates


def perftest(args: argparse.Namespace, tls: str, message: int = 0) -> list[float]:
    """One round of ucx_perftest for each block size; of messages of another size where one is told."""
    rates, environment = [], {**os.environ, "UCX_TLS": tls, "UCX_NET_DEVICES": "lo", "UCX_MM_ERROR_HANDLING": "y",
                              "UCX_MEM_EVENTS": "n"}
    for block in args.blocks if not message else [message]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        count = str(max(2, (args.mib << 20) // block))
        there = subprocess.Popen([args.perftest, "-p", port], stdout=subprocess.DEVNULL, env=environment)
        try:
            time.sleep(0.5)
            here = [args.perftest, "127.0.0.1", "-p", port, "-t", "tag_bw", "-e", "-f", "-s", str(block), "-n", count, "-w", "4"]
            out = subprocess.run(here, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            # iterations, three latencies, bandwidth in MiB/s, the average one again, rates
            rates.append(float(out.split("\n")[-2].split()[4]) * (1 << 20) / 1e9)
        finally:
            there.kill()
            there.wait()
    return rates * (len(args.blocks) if message else 1)


def compare_ucx(args: argparse.Namespace) -> None:
    """Ours over UCX beside UCX's own benchmark, over TCP and over shared memory."""
    for road, tls in (("TCP", "tcp"), ("shared memory", "all")):
        columns: dict[str, list[list[float]]] = {}
        for _ in range(args.rounds):
            mine = ours(args, "ucx", {"UCX_TLS": tls})
            found = {"ucx, crc32c": mine["crc32c"], "ucx, none": mine["none"], "perftest, one block": perftest(args, tls),
                     "perftest, 64 MiB": perftest(args, tls, POOL), "shared": mine["shared"]}
            for name, rates in found.items():
                columns.setdefault(name, []).append(rates)
        print(f"Over {road}:\n\n| block | {' | '.join(columns)} | crc32c, none over perftest of 64 MiB |")
        print(f"|{'---|' * (len(columns) + 2)}")
        for at, block in enumerate(args.blocks):
            cells = {name: [rates[at] for rates in rounds] for name, rounds in columns.items()}
            over = [statistics.median(own / other for own, other in zip(cells[f"ucx, {checksum}"], cells["perftest, 64 MiB"]))
                    for checksum in ("crc32c", "none")]
            print(f"| {shown_size(block)} | {' | '.join(map(shown, cells.values()))} | {over[0]:.2f}, {over[1]:.2f} |", flush=True)
        print()


ROADS = {
    "tcp": (("stream",), {"NIXL, UCX over TCP": ("nixl", {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}),
                       "Mooncake, TCP": ("mooncake", {"MC_FORCE_TCP": "1"})}),
    "shm": (("shared", "copy"), {"NIXL, UCX over shared memory": ("nixl", {"UCX_TLS": "tcp,shm,self", "UCX_NET_DEVICES": "lo"})}),
}


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{', '.join(f'{value:.2f}' for value in values)}]"


def shown_size(block: int) -> str:
    return f"{block >> 20} MiB" if block >> 20 else f"{block >> 10} KiB"


def compare(args: argparse.Namespace) -> None:
    for transport, (yardsticks, peers) in ROADS.items():
        columns: dict[str, list[list[float]]] = {}
        for _ in range(args.rounds):
            mine = ours(args, transport)
            found = {f"{transport}, crc32c": mine["crc32c"], f"{transport}, none": mine["none"]}
            found |= {name: run(args, *how) for name, how in peers.items()} | {name: mine[name] for name in yardsticks}
            for name, rates in found.items():
                columns.setdefault(name, []).append(rates)
        print(f"| block | {' | '.join(columns)} | crc32c, none over {yardsticks[0]} | crc32c over the best of theirs |")
        print(f"|{'---|' * (len(columns) + 3)}")
        for at, block in enumerate(args.blocks):
            cells = {name: [rates[at] for rates in rounds] for name, rounds in columns.items()}
            best = [max(cells[name][at] for name in peers) for at in range(args.rounds)]
            def over(own: str, others: list[float]) -> str:
                pairs = zip(cells[f"{transport}, {own}"], others)
                return f"{statistics.median(own / other for own, other in pairs):.2f}"

            usual = ", ".join(over(own, cells[yardsticks[0]]) for own in ("crc32c", "none"))
            print(f"| {shown_size(block)} | {' | '.join(map(shown, cells.values()))} | {usual} | {over('crc32c', best)} |", flush=True)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baton", default="target/release/baton")
    parser.add_argument("--python", default=sys.executable, help="a Python with nixl_cu13, mooncake and numpy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128, help="moved for each figure")
    parser.add_argument("--blocks", default=[16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20],
                        type=lambda text: [int(block) for block in text.split(",")])
    parser.add_argument("--perftest", help="compares with this ucx_perftest instead")
    parser.add_argument("--end", nargs=2, metavar=("PEER", "END"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    match args.end:
        case [peer, "target"]:
            target(peer)
        case [peer, _]:
            initiator(peer, args.blocks, args.mib)
        case _ if args.perftest:
            compare_ucx(args)
        case _:
            compare(args)


if __name__ == "__main__":
    main()
