"""The container image, and the cluster of deploy/docker/compose.yaml, run by podman."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[2]
IMAGE = "localhost/baton:latest"
PORT = "18000"
URL = f"http://127.0.0.1:{PORT}"
NODES = ["prefill-1", "prefill-2", "decode-1", "decode-2", "coordinator-1"]
ENVIRONMENT = os.environ | {
    "BATON_IMAGE": IMAGE,
    "ETCD_IMAGE": "localhost/baton-etcd:latest",
    "BATON_PORT": PORT,
    # On this machine already; the image has no Python to fetch it with.
    "BATON_MODEL": "smollm2-135m",
    "BATON_MODELS": str(pathlib.Path.home() / ".cache/baton"),
}
PATIENCE = 120


def run(*command, fails=False):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT / "deploy/docker",
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
    )
    assert (done.returncode != 0) == fails, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def compose(*arguments):
    return run("podman-compose", "--profile", "once", *arguments)


@pytest.fixture(scope="module")
def key():
    """The cluster, up, and a key for it, as compose.yaml says at its top."""
    compose("down", "--volumes")
    # Addresses that a cluster which was killed still holds.
    shutil.rmtree("/var/lib/cni/networks/baton_cluster", ignore_errors=True)
    try:
        compose("run", "--rm", "certs")
        key = re.search("sk-baton-[0-9a-f-]+", compose("run", "--rm", "key"))[0]
        run("podman-compose", "up", "--detach")
        wait_for_nodes(4)
        yield key
    finally:
        compose("down", "--volumes")


def wait_for_nodes(wanted):
    end = time.monotonic() + PATIENCE
    ready = None
    while ready != wanted:
        assert time.monotonic() < end, f"{ready} nodes are ready: {logs()}"
        time.sleep(0.2)
        try:
            ready = json.load(urllib.request.urlopen(f"{URL}/ready", timeout=5))["ready_nodes"]
        except OSError:
            pass


def logs():
    return "\n".join(run("podman", "logs", "--tail", "5", f"baton_{node}_1") for node in NODES)


def ask(key):
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is a relay race?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    head = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{URL}/v1/chat/completions", json.dumps(body).encode(), head)
    return json.load(urllib.request.urlopen(request, timeout=60))


def test_the_image_is_small_and_has_nothing_but_the_program():
    (image,) = json.loads(run("podman", "image", "inspect", IMAGE))
    assert image["Size"] < 100e6
    assert image["Config"]["User"] == "65532:65532"
    run("podman", "run", "--rm", "--read-only", IMAGE, "--version")
    run("podman", "run", "--rm", "--entrypoint", "/bin/sh", IMAGE, "-c", "true", fails=True)


def test_an_image_alone_serves_on_a_root_that_it_cannot_write():
    name = "baton-alone"
    mock = ["serve", "--model", "mock", "--set", "engine.backend=mock"]
    run("podman", "run", "--detach", "--rm", "--name", name, "--read-only", "--cap-drop", "all", IMAGE, *mock)
    try:
        end = time.monotonic() + PATIENCE
        while subprocess.run(["podman", "healthcheck", "run", name], capture_output=True).returncode != 0:
            assert time.monotonic() < end, run("podman", "logs", name)
            time.sleep(0.2)
    finally:
        run("podman", "rm", "--force", "--time", "5", name)


def test_answers_are_split_and_need_a_key(key):
    bill = ask(key)["usage"]["baton_bill"]
    assert bill["prefill_node"] in NODES and bill["transfer_bytes"] > 0
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask("sk-baton-0-0")


def test_every_container_is_shut_in_and_well(key):
    for node in NODES:
        (container,) = json.loads(run("podman", "inspect", f"baton_{node}_1"))
        assert container["HostConfig"]["ReadonlyRootfs"] and not container["EffectiveCaps"], node
        run("podman", "healthcheck", "run", f"baton_{node}_1")


def test_a_node_that_is_stopped_leaves_and_comes_back(key):
    run("podman", "stop", "baton_decode-1_1")
    (stopped,) = json.loads(run("podman", "inspect", "baton_decode-1_1"))
    assert stopped["State"]["ExitCode"] == 0
    wait_for_nodes(3)
    assert ask(key)["usage"]["completion_tokens"] > 0
    run("podman", "start", "baton_decode-1_1")
    wait_for_nodes(4)
