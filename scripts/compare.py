"""Asks two servers the same and compares what they say.

compare.py LOCAL SPLIT REQUESTS SEED ADMIN [--kill PID]

Half of the answers are drawn at temperature 1 from a seed, half are the likeliest; every fourth
caller of SPLIT leaves after a few tokens. Then all pages of its nodes must come free, by its admin
API. With --kill the process is killed while callers wait; without, KV must have travelled.
"""

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from urllib.parse import urlsplit

LOCAL, SPLIT, REQUESTS, SEED = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ADMIN = sys.argv[5]
KILL = int(sys.argv[7]) if "--kill" in sys.argv else None
LEAVES_AFTER = 5


MODEL = json.load(urllib.request.urlopen(LOCAL + "/v1/models"))["data"][0]["id"]


def body(index):
    draw = random.Random(SEED * 1000 + index)
    prompt = [draw.randrange(1000, 100_000) for _ in range(draw.choice([40, 300, 900, 2500]))]
    return {
        "model": MODEL, "prompt": prompt, "max_tokens": draw.randrange(24, 64), "ignore_eos": True,
        "stream": True, "temperature": index % 2, "seed": index,
    }


def ask(url, request, leaves):
    """The text of an answer, or of its beginning."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    connection.request("POST", "/v1/completions", json.dumps(request), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read()[:300]}")
    text, events, done = "", 0, False
    for line in response:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(str(event))
        text += "".join(choice["text"] for choice in event["choices"])
        events += 1
        if leaves and events == LEAVES_AFTER:
            break
    connection.close()
    if not (done or leaves):
        raise RuntimeError("an answer without an end")
    return text


def ask_all(url, requests, leave):
    answers = [None] * len(requests)

    def one(index):
        try:
            answers[index] = ask(url, requests[index], leave and index % 4 == 3)
        except Exception as error:  # noqa: BLE001: told below
            answers[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    if leave and KILL:
        time.sleep(0.15)
        os.kill(KILL, signal.SIGKILL)
    for thread in threads:
        thread.join()
    return answers


def busy_nodes():
    """Nodes with pages that are neither free nor cached, or not all of which are accounted for."""
    nodes = json.load(urllib.request.urlopen(ADMIN + "/admin/v1/nodes"))
    pages = {node["id"]: node["pages"] for node in nodes if node["health"] == "ready"}
    return {name: own for name, own in pages.items() if own["free"] + own["cached"] != own["total"]}, list(pages)


def wait_for_pages():
    until = time.time() + 20
    while True:
        busy, nodes = busy_nodes()
        if nodes and not busy:
            return f"all pages of {' and '.join(nodes)} free"
        if time.time() > until:
            raise SystemExit(f"    pages are not free: {busy}")
        time.sleep(0.1)


requests = [body(index) for index in range(REQUESTS)]
expected, found = ask_all(LOCAL, requests, False), ask_all(SPLIT, requests, True)
wrong = 0
for index, (one, other) in enumerate(zip(expected, found)):
    same = isinstance(one, str) and isinstance(other, str) and other and (
        one.startswith(other) if index % 4 == 3 else one == other)
    if not same:
        wrong += 1
        print(f"    request {index}: {str(one)[:80]!r} but {str(other)[:80]!r}")
paths = json.load(urllib.request.urlopen(SPLIT + "/ready"))["kv_paths"]
distinct = len({text for text in expected if isinstance(text, str)})
print(f"    {REQUESTS - wrong} of {REQUESTS} equal, {distinct} different answers, "
      f"{'a node killed at work, ' if KILL else ''}{wait_for_pages()}, paths {paths}")
sys.exit(bool(wrong) or distinct < REQUESTS // 2 or (not KILL and not paths))
