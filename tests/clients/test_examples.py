"""The examples, against a running Baton."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest

URL = os.environ.get("BATON_URL", "http://127.0.0.1:8000").rstrip("/")
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


# Nothing but Baton is asked.
ENVIRONMENT = {**os.environ, "BATON_URL": URL, "NO_PROXY": "*", "LANGSMITH_TRACING": "false"}


def run(*command):
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("example", ["langchain_agent.py", "litellm_agent.py"])
def test_an_agent_calls_a_tool_and_answers(example):
    shown = run(sys.executable, EXAMPLES / example)
    calls, answers = shown.split("answers: ")
    assert calls.startswith("calls: weather {'city': ")
    assert answers.strip()


def computed():
    """Requests that nodes were given, as the coordinator counts them."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"{URL}/metrics").read().decode()
    return sum(int(count) for count in re.findall(r"^baton_requests_total\{.*\} (\d+)$", text, re.MULTILINE))


def test_a_pipeline_that_gives_up_gets_each_answer_once():
    before = computed()
    shown = run(sys.executable, EXAMPLES / "duragraph_documents.py")
    found = dict(line.split(": ", 1) for line in shown.splitlines())
    assert shown.count("title: ") == 3 and int(found["answers"]) == 6, shown
    assert int(found["given up"]) >= 6, "the first try of each is too short for any answer"
    assert computed() - before == 6


def test_a_pipeline_that_is_killed_goes_on_and_computes_nothing_twice(tmp_path):
    before = computed()
    command = [sys.executable, EXAMPLES / "dbos_documents.py", tmp_path / "steps.db", f"run-{os.urandom(4).hex()}"]
    asked = []
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as first:
        while len(asked) < 3:
            line = first.stdout.readline()
            assert line, "it ended before it could be killed"
            if line.startswith("asks: ") and line not in asked:
                asked.append(line)
        # Its third call is under way.
        first.kill()
    shown = run(*command)
    assert shown.count("title: ") == 3 and "answers: 6" in shown, shown
    assert not any(line.strip() in shown.splitlines() for line in asked[:2]), "what has its answer is not asked again"
    assert computed() - before == 6


def test_node():
    node = shutil.which("node")
    packages = EXAMPLES / "openai_node" / "node_modules"
    if node is None or not packages.exists():
        pytest.skip("NODE'S CLIENT IS NOT TESTED: no node, or its packages could not be fetched")
    shown = run(node, EXAMPLES / "openai_node" / "example.mjs")
    found = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert {"said", "picked", "responded", "doubled", "pieces", "alike", "batch", "tries"} <= set(found), shown
    assert int(found["doubled"]) % 2 == 0
    assert int(found["pieces"].split()[0]) > 1
    assert found["batch"] == "completed 3 answers"
    assert int(found["tries"].split()[0]) > 1
