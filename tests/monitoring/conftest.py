"""One cluster for all tests, and who watches it."""

import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import Processes, ask, start_cluster, start_collector, start_prometheus


class Running(NamedTuple):
    url: str
    # Of everybody's metrics, by node.
    addresses: dict[str, str]
    prometheus: str
    # What the collector of traces writes.
    collected: Path


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    """A cluster that is asked all the time; calls that do not say so are not traced."""
    with Processes(tmp_path_factory.mktemp("monitoring")) as processes:
        otlp, collected = start_collector(processes)
        url, addresses = start_cluster(processes, f"traces.otlp={otlp}", "traces.sampled=0")
        prometheus = start_prometheus(processes, addresses)
        stop = threading.Event()

        def load():
            while not stop.wait(0.05):
                ask(url)

        callers = [threading.Thread(target=load) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            yield Running(url, addresses, prometheus, collected)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
