"""One request's trace, whole across processes, as a collector that others made writes it."""

import re
import secrets

from cluster import ask, until

# Every span of a handed-off request, and what it is a part of.
WHOLE = {
    "POST /v1/completions": None,
    "admission": "POST /v1/completions",
    "attempt": "POST /v1/completions",
    "generate": "attempt",
    "handoff": "generate",
    "frames": "handoff",
    "decode": "generate",
    "prefill": "handoff",
    "queue": "prefill",
}

SAID = re.compile(
    r"service\.instance\.id: Str\((?P<node>\S+)\)"
    r"|Trace ID +: (?P<trace>\w+)\s+Parent ID +: (?P<parent>\w*)\s+ID +: (?P<id>\w+)\s+Name +: (?P<name>.+)"
)


def spans(collected, trace):
    """Spans of a trace, each with the node that it came from."""
    node = None
    for said in SAID.finditer(collected.read_text()):
        if said["node"]:
            node = said["node"]
        elif said["trace"] == trace:
            yield said.groupdict() | {"node": node}


def test_a_trace_is_whole_across_processes(running):
    caller, traces = secrets.token_hex(8), []

    # Nodes send what they have every few seconds; not every prompt is worth a handoff.
    def handed_off():
        traces.append(secrets.token_hex(16))
        ask(running.url, traceparent=f"00-{traces[-1]}-{caller}-01")
        told = (list(spans(running.collected, trace)) for trace in traces)
        return next((found for found in told if len(found) >= len(WHOLE)), None)

    found = until("a handoff that is told whole", handed_off)
    names = {span["id"]: span["name"] for span in found}
    assert {span["name"]: names.get(span["parent"]) for span in found} == WHOLE
    (root,) = (span for span in found if span["name"] == "POST /v1/completions")
    assert root["parent"] == caller
    roles = {span["name"]: span["node"].split("-")[0] for span in found}
    assert (roles["attempt"], roles["decode"], roles["prefill"]) == ("coordinator", "decode", "prefill")


def test_calls_that_do_not_ask_for_it_are_not_traced(running):
    trace = secrets.token_hex(16)
    ask(running.url, traceparent=f"00-{trace}-{secrets.token_hex(8)}-00")
    asked = secrets.token_hex(16)
    ask(running.url, traceparent=f"00-{asked}-{secrets.token_hex(8)}-01")
    until("the later call", lambda: list(spans(running.collected, asked)))
    assert not list(spans(running.collected, trace))
