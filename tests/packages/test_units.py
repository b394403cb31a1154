"""A cluster of the package's units under a systemd of their own, with an etcd and the real model."""

import json
import pathlib
import shutil

from conftest import only_in_full, run

MODEL = "smollm2-135m"
UNITS = ["baton-decode@decode-1", "baton-prefill@prefill-1", "baton-coordinator@coordinator-1"]
CALL = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "What is a relay race?"}]},
}
# Runs inside when all has been started; its directory is /look.
LOOK = f"""
cd /look
for _ in $(seq 300); do
    baton probe http://127.0.0.1:8000/ready && [ "$(baton admin nodes | grep -c ready)" = 2 ] && break
    sleep 0.2
done
timeout 60 baton batch call.jsonl answer.jsonl
for unit in {" ".join(UNITS)}; do
    systemctl stop "$unit"
    systemctl show --property Id,Result,ExecMainStatus,NRestarts "$unit"
done >stopped
"""
SERVICE = """
[Unit]
After=baton-coordinator@coordinator-1.service
[Service]
Type=oneshot
ExecStart=/bin/bash /look/look
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=file:/look/said
StandardError=file:/look/said
[Install]
WantedBy=multi-user.target
"""


def make(root, deb):
    run(
        "mmdebstrap",
        "--variant=minbase",
        "--include=dbus,etcd-server,systemd,systemd-sysv",
        f"--customize-hook=upload {deb} /tmp/baton.deb",
        '--customize-hook=chroot "$1" apt-get install --yes --no-install-recommends /tmp/baton.deb',
        "bookworm",
        root,
    )
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    look, models = root / "look", root / "var/lib/baton/models"
    look.mkdir()
    (look / "look").write_text(LOOK)
    (look / "call.jsonl").write_text(json.dumps(CALL) + "\n")
    (root / "etc/systemd/system/look.service").write_text(SERVICE)
    shutil.copytree(pathlib.Path.home() / ".cache/baton" / MODEL, models / MODEL)
    run("chroot", root, "chown", "--recursive", "baton:", "/var/lib/baton")
    run("chroot", root, "systemctl", "enable", "etcd", "look", *UNITS)


@only_in_full
def test_units_serve_together_and_drain_when_they_stop(deb, tmp_path):
    root = tmp_path / "root"
    make(root, deb)
    run("systemd-nspawn", "--register=no", "--keep-unit", "--private-network", "--boot", "-D", root, timeout=180)
    answers = root / "look/answer.jsonl"
    assert answers.exists(), (root / "look/said").read_text()
    (answer,) = map(json.loads, answers.read_text().splitlines())
    bill = answer["response"]["body"]["usage"]["baton_bill"]
    assert bill["prefill_node"] == "prefill-1" and bill["transfer_bytes"] > 0
    stopped = (root / "look/stopped").read_text()
    for unit in UNITS:
        assert f"Id={unit}.service" in stopped
    assert [stopped.count(good) for good in ["Result=success", "ExecMainStatus=0", "NRestarts=0"]] == [3, 3, 3], stopped
