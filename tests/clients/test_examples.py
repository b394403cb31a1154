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


def test_anthropics_client_streams():
    shown = run(sys.executable, EXAMPLES / "anthropic_client.py").splitlines()
    assert re.fullmatch(r"\(\d+ prompt tokens\)", shown[0]) and re.fullmatch(r"\(\d+ generated\)", shown[-1]), shown
    assert "".join(shown[1:-1]).strip(), shown


def test_clients_of_text_generation_go_on():
    shown = run(sys.executable, EXAMPLES / "text_generation_client.py", "One two three")
    text, counted = shown.rsplit("\n(", 1)
    assert text.startswith("One two three") and len(text) > len("One two three"), shown
    assert re.fullmatch(r"\d+ generated: (length|eos_token)\)\n", counted), shown
    chat, continued = run(sys.executable, EXAMPLES / "huggingface_client.py").rsplit("\nOne two three ", 1)
    assert chat.strip() and continued.strip()


def test_a_program_of_sglangs_language_runs():
    shown = run(sys.executable, EXAMPLES / "sglang_program.py").splitlines()
    answers = [re.fullmatch(r".+ \| for sports: (yes|no) \| a year: (19|20)\d\d", line) for line in shown]
    assert len(answers) == 2 and all(answers), shown


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
