"""Rules, dashboard and reference of metrics, each held to a real Prometheus that scrapes a split cluster."""

import json
import math
import os
import re
import subprocess

import pytest
from cluster import ROOT, get, query, until

RULES = ROOT / "deploy/prometheus"
REFERENCE = ROOT / "docs/metrics.md"


def queries():
    board = json.loads((ROOT / "deploy/grafana/baton.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "10s").replace("$node", ".*")


def described(addresses):
    """Name, kind and help of everything that any process exports."""
    found = {}
    for address in addresses.values():
        help_of = {}
        for line in get(f"http://{address}/metrics").splitlines():
            if match := re.match(r"# HELP (\S+) (.*)", line):
                help_of[match[1]] = match[2].removesuffix(".")
            elif match := re.match(r"# TYPE (\S+) (\S+)", line):
                name = f"{match[1]}_total" if match[2] == "counter" else match[1]
                found[name] = (match[2], help_of.get(match[1], ""))
    return found


def reference(found):
    """The page of `docs/`."""
    head = [
        "# Metrics",
        "",
        "What `/metrics` of a coordinator and of its nodes export, as `scripts/test-metrics --write` reads it "
        "from a cluster of them. Times are in seconds. `deploy/prometheus` has alerts and the names of vLLM's "
        "metrics, `deploy/grafana` a dashboard.",
        "",
        "| metric | kind | what it counts |",
        "|---|---|---|",
    ]
    rows = [f"| `{name}` | {kind} | {words[:1].upper()}{words[1:]} |" for name, (kind, words) in sorted(found.items())]
    return "\n".join([*head, *rows]) + "\n"


def test_rules_are_read_and_alerts_come_in_time():
    subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=RULES, check=True)
    subprocess.run(["promtool", "test", "rules", "alerts.test.yml"], cwd=RULES, check=True)


def test_every_process_is_scraped(running):
    processes = float(len(running.addresses))
    until("all processes", lambda: query(running.prometheus, 'sum(up{job="baton"})') == [processes])


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_every_panel_has_data(running, title, expression):
    until(f"{title}: {expression}", lambda: any(map(math.isfinite, query(running.prometheus, expression))))


def test_dashboards_of_vllm_have_data(running):
    names = re.findall(r'record: "(\S+)"', (RULES / "vllm.yml").read_text())
    assert len(names) > 20
    for name in names:
        until(name, lambda name=name: query(running.prometheus, f"sum({name})"))


def test_a_sound_cluster_alerts_nobody(running):
    # Rules have been evaluated by now: those of vLLM's names have.
    until("rules", lambda: query(running.prometheus, "sum(vllm:generation_tokens_total)"))
    assert query(running.prometheus, 'ALERTS{alertname=~"Baton.*"}') == []


def test_the_reference_tells_of_every_metric(running):
    legs = "sum(baton_decode_handoff_legs_total)"
    until("handoffs", lambda: any(value > 0 for value in query(running.prometheus, legs)))
    page = reference(described(running.addresses))
    if os.environ.get("BATON_WRITE"):
        REFERENCE.write_text(page)
    assert REFERENCE.read_text() == page, "scripts/test-metrics --write makes it anew"
