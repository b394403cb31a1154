"""The examples, against a running Baton."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def run(*command):
    # Nothing but Baton is asked.
    environment = {**os.environ, "BATON_URL": URL, "NO_PROXY": "*", "LANGSMITH_TRACING": "false"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("example", ["langchain_agent.py", "litellm_agent.py"])
def test_an_agent_calls_a_tool_and_answers(example):
    shown = run(sys.executable, EXAMPLES / example)
    calls, answers = shown.split("answers: ")
    assert calls.startswith("calls: weather {'city': ")
    assert answers.strip()


def test_node():
    node = shutil.which("node")
    packages = EXAMPLES / "openai_node" / "node_modules"
    if node is None or not packages.exists():
        pytest.skip("NODE'S CLIENT IS NOT TESTED: no node, or its packages could not be fetched")
    shown = run(node, EXAMPLES / "openai_node" / "example.mjs")
    found = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert {"said", "picked", "responded", "doubled", "pieces"} <= set(found), shown
    assert int(found["doubled"]) % 2 == 0
    assert int(found["pieces"].split()[0]) > 1
