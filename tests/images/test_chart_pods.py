"""The pods of the Helm chart, their containers run by podman as a kubelet would: arguments, mounts, users, probes."""

import json
import os
import pathlib
import re
import subprocess
import time
import urllib.request

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = "172.31.78"
ADDRESSES = {"etcd": f"{NETWORK}.2", "coordinator": f"{NETWORK}.10", "prefill": f"{NETWORK}.11", "decode": f"{NETWORK}.12"}
ETCD = f"https://{ADDRESSES['etcd']}:2379"
VALUES = {
    "image": {"repository": "localhost/baton", "tag": "latest"},
    "model": "smollm2-135m",
    "etcd": {"endpoints": [ETCD]},
    "settings": {"engine.threads": "1"},
    "coordinator": {"replicas": 1, "persistence": {"enabled": False}},
}
PATIENCE = 120


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def eventually(what, ask):
    end = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return answer


def name(role):
    return f"baton-chart-{role}"


def secret(place, files):
    """As the kubelet lays a secret for a pod's fsGroup."""
    place.mkdir()
    for file in files:
        (place / file.name).write_bytes(file.read_bytes())
        os.chown(place / file.name, 0, 65532)
        os.chmod(place / file.name, 0o440)
    return place


def start(pod, role, place, secrets):
    """Runs a pod's one container; volumes that it may write are tmpfs, but for the models."""
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = []
    for mount in container["volumeMounts"]:
        volume, path = volumes[mount["name"]], mount["mountPath"]
        if "configMap" in volume:
            mounts += ["--volume", f"{place}/config:{path}:ro"]
        elif "secret" in volume:
            files = secrets[volume["secret"]["secretName"]]
            wanted = {item["key"] for item in volume["secret"].get("items", [])} or set(files)
            laid = secret(place / f"{role}-{mount['name']}", [files[key] for key in wanted])
            mounts += ["--volume", f"{laid}:{path}:ro"]
        elif mount["name"] == "models":
            mounts += ["--volume", f"{pathlib.Path.home()}/.cache/baton:{path}"]
        else:
            mounts += ["--mount", f"type=tmpfs,destination={path},tmpfs-mode=1777"]
    inside = container["securityContext"]
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['fsGroup']}"
    shut = ["--user", user, "--security-opt", "no-new-privileges", *(f"--cap-drop={cap}" for cap in inside["capabilities"]["drop"])]
    pod_is = {"$(POD_NAME)": f"relay-{role}-0", "$(POD_IP)": ADDRESSES[role]}
    given = [re.sub(r"\$\(\w+\)", lambda found: pod_is[found[0]], word) for word in container["args"]]
    network = ["--network", f"baton-chart:ip={ADDRESSES[role]}"]
    assert inside["readOnlyRootFilesystem"]
    run("podman", "run", "--detach", "--name", name(role), "--read-only", *shut, *network, *mounts, container["image"], *given)
    return container


def make(place):
    """The chart's objects, and the secrets that docs/install.md makes for it."""
    baton, certs = ROOT / "target/release/baton", place / "certs"
    run(baton, "certs", "init", "--cluster", "baton", "--name", "nodes.baton", "--name", ADDRESSES["etcd"], "--out", certs)
    key = run(baton, "key", "new", "--tenant", "me", "--file", place / "keys.toml").strip()
    files = {"baton-certs": {file.name: file for file in certs.iterdir()}, "baton-keys": {"keys.toml": place / "keys.toml"}}
    (place / "values.yaml").write_text(yaml.safe_dump(VALUES))
    rendered = run(ROOT / ".cache/helm/helm", "template", "relay", ROOT / "deploy/helm/baton", "--values", place / "values.yaml")
    objects = list(yaml.safe_load_all(rendered))
    (place / "config").mkdir()
    (config,) = [made for made in objects if made["kind"] == "ConfigMap"]
    (place / "config/cluster.toml").write_text(config["data"]["cluster.toml"])
    return objects, files, key


def start_etcd(place):
    certs = secret(place / "etcd", [place / "certs" / file for file in ["ca.crt", "etcd.crt", "etcd.key"]])
    tls = ["--cert-file=/certs/etcd.crt", "--key-file=/certs/etcd.key", "--trusted-ca-file=/certs/ca.crt", "--client-cert-auth"]
    urls = ["--data-dir=/tmp/etcd", "--listen-client-urls=https://0.0.0.0:2379", f"--advertise-client-urls={ETCD}"]
    where = ["--network", f"baton-chart:ip={ADDRESSES['etcd']}", "--volume", f"{certs}:/certs:ro"]
    run("podman", "run", "--detach", "--name", name("etcd"), *where, "localhost/baton-etcd", "etcd", *urls, *tls)


def clear():
    for role in ADDRESSES:
        subprocess.run(["podman", "rm", "--force", "--time", "5", name(role)], capture_output=True)
    subprocess.run(["podman", "network", "rm", "--force", "baton-chart"], capture_output=True)


@pytest.fixture
def cluster(tmp_path):
    clear()
    try:
        run("podman", "network", "create", "--subnet", f"{NETWORK}.0/24", "baton-chart")
        objects, files, key = make(tmp_path)
        start_etcd(tmp_path)
        pods = {
            made["metadata"]["labels"]["app.kubernetes.io/component"]: made["spec"]["template"]["spec"]
            for made in objects
            if made["kind"] in ["Deployment", "StatefulSet"]
        }
        yield {role: start(pod, role, tmp_path, files) for role, pod in pods.items()}, key
    finally:
        clear()


def passes(role, probe):
    if get := probe.get("httpGet"):
        try:
            return urllib.request.urlopen(f"http://{ADDRESSES[role]}:8000{get['path']}", timeout=5).status == 200
        except OSError:
            return False
    return subprocess.run(["podman", "exec", name(role), *probe["exec"]["command"]], capture_output=True).returncode == 0


def test_pods_of_the_chart_serve_together(cluster):
    containers, key = cluster
    assert set(containers) == {"coordinator", "prefill", "decode"}
    for role, container in containers.items():
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            eventually(
                f"{role}'s {probe}: {run('podman', 'logs', '--tail', '5', name(role))}",
                lambda: passes(role, container[probe]),
            )
    api = f"http://{ADDRESSES['coordinator']}:8000"
    eventually("both nodes", lambda: json.load(urllib.request.urlopen(f"{api}/ready"))["ready_nodes"] == 2)
    body = {"model": VALUES["model"], "max_tokens": 16, "messages": [{"role": "user", "content": "What is a relay race?"}]}
    head = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    answer = json.load(urllib.request.urlopen(urllib.request.Request(f"{api}/v1/chat/completions", json.dumps(body).encode(), head)))
    bill = answer["usage"]["baton_bill"]
    assert bill["prefill_node"] == "relay-prefill-0" and bill["transfer_bytes"] > 0
