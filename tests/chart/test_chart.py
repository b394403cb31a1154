"""The Helm chart: what it makes of values, that Kubernetes takes it, and that the binary has what it asks for."""

import copy
import os
import pathlib
import re
import subprocess
import tomllib
import urllib.request

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
HERE = ROOT / "tests/chart"
CHART = ROOT / "deploy/helm/baton"
HELM = ROOT / ".cache/helm/helm"
BATON = ROOT / "target/release/baton"
VALUES = ["default", "full", "small"]
# Of operators' own, which Kubernetes itself knows nothing of.
FOREIGN = {"ScaledObject", "ServiceMonitor"}


def helm(*arguments):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True)


def rendered(values):
    made = helm("template", "relay", CHART, "--namespace", "serving", "--values", HERE / f"{values}.yaml")
    assert made.returncode == 0, made.stderr
    return made.stdout


def objects(values):
    return [made for made in yaml.safe_load_all(rendered(values)) if made]


def of_kind(values, *kinds):
    return [made for made in objects(values) if made["kind"] in kinds]


def containers(values):
    """Baton's container of each role."""
    for made in of_kind(values, "Deployment", "StatefulSet"):
        container, *_ = made["spec"]["template"]["spec"]["containers"]
        assert container["name"] == "baton"
        yield made["metadata"]["labels"]["app.kubernetes.io/component"], container


@pytest.mark.parametrize("values", VALUES)
def test_lint(values):
    said = helm("lint", "--strict", CHART, "--values", HERE / f"{values}.yaml")
    assert said.returncode == 0, said.stdout


def test_the_chart_is_of_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert chart["version"] == chart["appVersion"] == workspace["version"]


@pytest.mark.parametrize("values", VALUES)
def test_golden(values):
    """`BATON_WRITE=1` writes the files anew, to be read in a diff."""
    golden = HERE / f"golden/{values}.yaml"
    if "BATON_WRITE" in os.environ:
        golden.write_text(rendered(values))
    assert rendered(values) == golden.read_text()


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("version", ["1.30", "1.35"])
def test_kubernetes_takes_it(values, version):
    kinds = set()
    for made in objects(values):
        kinds.add(made["kind"])
        if made["kind"] not in FOREIGN:
            kubernetes_validate.validate(made, version, strict=True)
    assert {"ConfigMap", "Deployment", "StatefulSet", "PodDisruptionBudget", "Service"} <= kinds


def test_the_schemas_refuse_what_is_wrong():
    (config,) = of_kind("default", "ConfigMap")
    wrong = copy.deepcopy(config) | {"datas": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.35", strict=True)


@pytest.mark.parametrize("values", VALUES)
def test_the_binary_takes_every_process(values, tmp_path):
    """Settings, arguments and roles, by the loader that a pod runs."""
    (config,) = of_kind(values, "ConfigMap")
    file = tmp_path / "cluster.toml"
    file.write_text(config["data"]["cluster.toml"])
    roles = set()
    for role, container in containers(values):
        pod = {"/etc/baton/cluster.toml": str(file), "$(POD_NAME)": f"relay-{role}-0", "$(POD_IP)": "10.1.2.3"}
        given = [re.sub("|".join(map(re.escape, pod)), lambda found: pod[found[0]], word) for word in container["args"]]
        said = subprocess.run([BATON, *given, "--check"], capture_output=True, text=True)
        assert said.returncode == 0 and f"relay-{role}-0" in said.stdout, (role, said.stderr)
        assert subprocess.run([BATON, *given, "--set", "no.such=1", "--check"], capture_output=True).returncode != 0
        roles.add(role)
    assert roles == {"coordinator", "prefill", "decode"}


def test_probes_and_scrapes_ask_what_is_served():
    server = subprocess.Popen(
        [BATON, "serve", "--model", "mock", "--set", "engine.backend=mock", "--set", "frontend.listen=127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = next(found[1] for line in server.stdout if (found := re.match("ready at (http://.*)", line)))
        asked = {"/metrics"}
        for _, container in containers("default"):
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                if get := container[probe].get("httpGet"):
                    asked.add(get["path"])
                else:
                    assert container[probe]["exec"]["command"] == ["baton", "probe"]
        assert asked == {"/health", "/ready", "/metrics"}
        for path in asked:
            assert urllib.request.urlopen(url + path).status == 200
        # What nodes' probes ask without being told, and where nodes listen for it.
        assert "http://127.0.0.1:8000/health" in subprocess.check_output([BATON, "probe", "--help"], text=True)
        assert 'metrics_listen = "127.0.0.1:8000"' in of_kind("default", "ConfigMap")[0]["data"]["cluster.toml"]
    finally:
        server.terminate()
        server.wait()


def test_advice_is_a_metric_that_there_is():
    asked = [made["spec"]["triggers"][0]["metadata"]["query"] for made in of_kind("full", "ScaledObject")]
    asked += [made["spec"]["metrics"][0]["external"]["metric"]["name"] for made in of_kind("small", "HorizontalPodAutoscaler")]
    names = {name for query in asked for name in re.findall(r"\bbaton_\w+", query)}
    assert len(asked) == 4 and names == {"baton_wanted_nodes"}
    # Which scripts/test-metrics reads from a cluster.
    assert "`baton_wanted_nodes`" in (ROOT / "docs/metrics.md").read_text()
    assert 'balancer = "advise"' in of_kind("full", "ConfigMap")[0]["data"]["cluster.toml"]
    scaled = {made["metadata"]["name"] for made in of_kind("full", "ScaledObject")}
    for made in of_kind("full", "Deployment"):
        assert made["metadata"]["name"] in scaled and "replicas" not in made["spec"]


@pytest.mark.parametrize("values", VALUES)
def test_pods_are_shut_in_and_have_time_to_drain(values):
    (config,) = of_kind(values, "ConfigMap")
    grace = int(re.search(r"grace_ms = (\d+)", config["data"]["cluster.toml"])[1]) / 1000
    for made in of_kind(values, "Deployment", "StatefulSet"):
        pod = made["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        assert pod["terminationGracePeriodSeconds"] >= grace + 15
        for container in pod["containers"]:
            inside = container["securityContext"]
            assert inside["readOnlyRootFilesystem"] and not inside["allowPrivilegeEscalation"]
            assert inside["capabilities"] == {"drop": ["ALL"]}
        # A role's certificate is that role's alone.
        role = made["metadata"]["labels"]["app.kubernetes.io/component"]
        (certs,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "certs"]
        assert {item["key"] for item in certs["items"]} == {"ca.crt", f"{role}.crt", f"{role}.key"}


def test_metrics_of_nodes_are_shown_by_a_proxy_alone():
    (config,) = of_kind("full", "ConfigMap")
    listen = tomllib.loads(config["data"]["cluster.toml"])["metrics_listen"]
    for made in of_kind("full", "Deployment"):
        baton, proxy = made["spec"]["template"]["spec"]["containers"]
        assert f"--upstream=http://{listen}/" in proxy["args"] and "--allow-paths=/metrics" in proxy["args"]
        # Its token is its own, and Baton's container has none.
        assert [mount["name"] for mount in proxy["volumeMounts"]] == ["token"]
        assert "token" not in [mount["name"] for mount in baton["volumeMounts"]]
    (nodes,) = [made for made in of_kind("full", "NetworkPolicy") if made["metadata"]["name"].endswith("-nodes")]
    (rule,) = [rule for rule in nodes["spec"]["ingress"] if {"port": 8443} in rule["ports"]]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]
    assert not [made for made in objects("default") if "8443" in str(made)]


def test_cards_and_rdma_come_by_value():
    for role, container in containers("full"):
        limits = container["resources"]["limits"]
        devices = {name: limit for name, limit in limits.items() if "/" in name}
        assert devices == ({} if role == "coordinator" else {"nvidia.com/gpu": 1, "rdma/hca_shared_devices_a": 1})


@pytest.mark.parametrize(
    "wrong, why",
    [
        ("settings.engine\\.threads=4", "threads"),
        ("autoscaling.kind=often", "kind"),
        ("replica=3", "replica"),
        ("certs.existingSecret=", "existingSecret"),
        ("prefill.rdma.count=1", "rdma.resource"),
    ],
)
def test_wrong_values_are_refused(wrong, why):
    said = helm("template", "relay", CHART, "--set", wrong)
    assert said.returncode != 0 and why in said.stderr, said.stderr
