"""A cluster of five processes and an etcd, with a Prometheus that scrapes it and a collector of its
traces, for as long as a test."""

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODES = ["prefill-1", "prefill-2", "decode-1", "decode-2", "coordinator"]
# Something is wrong when what takes a second takes this long.
PATIENCE = 60.0


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def until(what, look):
    """What `look` returns, once it is something."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(what)


class Processes(contextlib.ExitStack):
    """Children that end with this, with their output in files."""

    def __init__(self, work):
        super().__init__()
        self.work = work

    def start(self, name, *command):
        log = self.work / f"{name}.log"
        child = subprocess.Popen(command, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT)
        self.callback(self.end, child)
        return child, log

    @staticmethod
    def end(child):
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def announced(self, name, pattern, *command):
        """Starts a process and waits for what it says."""
        child, log = self.start(name, *command)

        def look():
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{log.read_text()}")
            return re.search(pattern, log.read_text())

        return until(f"{name} to say {pattern}", look).group(1)


def start_cluster(processes, *more):
    """With more settings; returns the API's URL and the addresses of everybody's metrics."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    processes.start(
        "etcd", "etcd", "--data-dir", str(processes.work / "etcd"), "--listen-client-urls", client,
        "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"default={peer}",
    )  # fmt: skip
    settings = [
        f'registry.endpoints=["{client}"]', "engine.backend=mock", "engine.mock={step_us_base=2000}",
        "coordinator.policy=predicted", "coordinator.local_prefill_below_tokens=0",
        "frontend.listen=127.0.0.1:0", "metrics_listen=127.0.0.1:0", "admin.listen=127.0.0.1:0",
        *more,
    ]  # fmt: skip
    sets = [word for setting in settings for word in ("--set", setting)]
    addresses = {}
    for node in NODES:
        says = r"ready at http://(\S+)" if node == "coordinator" else r"metrics at http://(\S+)/metrics"
        serve = ["target/release/baton", "serve", "--config", "cluster-configs/2p2d.toml", "--node", node]
        addresses[node] = processes.announced(node, says, *serve, *sets)
    url = f"http://{addresses['coordinator']}"
    until("all nodes", lambda: json.loads(get(f"{url}/ready"))["ready_nodes"] == 4)
    return url, addresses


def start_prometheus(processes, addresses):
    """Scrapes every second, with the rules of the repository. Returns its URL."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {"job_name": "baton", "static_configs": [{"targets": list(addresses.values())}]}
        ],
        "rule_files": [str(ROOT / "deploy/prometheus" / name) for name in ("alerts.yml", "vllm.yml")],
    }
    # JSON is YAML.
    file = processes.work / "prometheus.yml"
    file.write_text(json.dumps(config))
    listen = f"127.0.0.1:{free_port()}"
    processes.start(
        "prometheus", "prometheus", f"--config.file={file}", f"--web.listen-address={listen}",
        f"--storage.tsdb.path={processes.work / 'tsdb'}",
    )  # fmt: skip
    return f"http://{listen}"


def start_collector(processes):
    """Rotel, which takes OTLP and writes down what it gets. Returns where it listens, and that file."""
    grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    _, written = processes.start(
        "rotel", ".cache/rotel/rotel/rotel-agent", "start", "--exporter", "blackhole",
        "--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http,
        "--debug-log", "traces", "--debug-log-verbosity", "detailed",
    )  # fmt: skip
    return f"http://{grpc}", written


def query(prometheus, expression):
    """The values that an expression has now; none while Prometheus is not there, or not ready (503)."""
    words = urllib.parse.urlencode({"query": expression})
    try:
        answer = json.loads(get(f"{prometheus}/api/v1/query?{words}"))
    except urllib.error.HTTPError as refused:
        if refused.code == 503:
            return []
        raise AssertionError(f"{expression}: {refused.read().decode()}") from refused
    except OSError:
        return []
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def ask(url, tokens=8, **headers):
    """One streamed answer, read to its end."""
    body = {"model": "smollm2-135m", "prompt": "word " * 40 + str(time.monotonic_ns()), "max_tokens": tokens, "stream": True}
    call = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"} | headers
    )
    with urllib.request.urlopen(call, timeout=PATIENCE) as answer:
        assert answer.read().endswith(b"data: [DONE]\n\n")
