"""deploy/docker/compose.yaml beside the settings that it mounts; scripts/test-images runs it."""

import subprocess
import tomllib

import yaml
from test_chart import BATON, ROOT

HERE = ROOT / "deploy/docker"
SERVICES = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
SETTINGS = tomllib.loads((HERE / "cluster.toml").read_text())


def test_every_node_has_a_container_with_its_address():
    nodes = {node["id"]: node["listen"] for node in SETTINGS["nodes"]}
    for name, listen in nodes.items():
        service = SERVICES[name]
        assert listen == f"{service['networks']['cluster']['ipv4_address']}:7000"
        given = [word.replace("/etc/baton", str(HERE)) for word in service["command"]]
        said = subprocess.run([BATON, *given, "--check"], capture_output=True, text=True)
        assert said.returncode == 0 and name in said.stdout, said.stderr
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert set(SERVICES) - set(nodes) == {"certs", "model", "key", "etcd"}


def test_etcd_is_where_nodes_look():
    etcd = SERVICES["etcd"]["networks"]["cluster"]["ipv4_address"]
    assert SETTINGS["registry"]["endpoints"] == [f"https://{etcd}:2379"]
    assert etcd in SERVICES["certs"]["command"] and SETTINGS["tls"]["name"] in SERVICES["certs"]["command"]
