"""The Debian package: what is in it, and that each part is what others take it for."""

import configparser
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
from conftest import ROOT, only_in_full, run

VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
UNITS = ["baton-local", "baton-coordinator@", "baton-prefill@", "baton-decode@"]
# What `systemd-analyze security` may find at most, of 10: a node sees cards and
# RDMA devices, a coordinator no device.
EXPOSURE = {"baton-coordinator@": 1.7, "baton-local": 2.0, "baton-prefill@": 2.0, "baton-decode@": 2.0}


def units(unpacked):
    return unpacked / "lib/systemd/system"


def arguments(unpacked, unit):
    """A unit's command, its program and the variable for more of it left out."""
    # Keys may be there more than once.
    text = configparser.ConfigParser(strict=False, interpolation=None)
    text.optionxform = str
    text.read(units(unpacked) / f"{unit}.service")
    program, *rest = shlex.split(text["Service"]["ExecStart"])
    assert program == "/usr/bin/baton" and rest.pop() == "$BATON_ARGS"
    return rest


def test_the_program_runs(baton):
    assert run(baton, "--version").split() == ["baton", VERSION]


def test_its_parts_are_listed_with_their_licences(unpacked):
    listed = json.loads(gzip.decompress((unpacked / "usr/share/doc/baton/baton.cdx.json.gz").read_bytes()))
    assert listed["metadata"]["component"]["version"] == VERSION
    assert {"tokio", "ucx-rs"} <= {part["name"] for part in listed["components"]}
    assert all(part.get("licenses") for part in listed["components"])


@only_in_full
def test_lintian_finds_nothing(deb):
    said = run("lintian", "--allow-root", "--fail-on", "error,warning", "--no-tag-display-limit", deb)
    assert not re.search("^[EW]:", said, re.MULTILINE), said


def test_what_a_person_edits_survives_an_upgrade(deb):
    conffiles = run("dpkg-deb", "--info", deb, "conffiles").split()
    assert conffiles == ["/etc/baton/cluster.toml", "/etc/baton/local.toml", "/etc/default/baton"]


def test_every_unit_starts_nodes_that_its_file_has(unpacked, baton):
    nodes = tomllib.loads((unpacked / "etc/baton/cluster.toml").read_text())["nodes"]
    for unit in UNITS:
        role = unit.removeprefix("baton-").rstrip("@")
        named = [node["id"] for node in nodes if role in node["roles"]] or [""]
        for name in named:
            given = [word.replace("%i", name).replace("/etc/", f"{unpacked}/etc/") for word in arguments(unpacked, unit)]
            said = run(baton, *given, "--check")
            assert (name or "local") in said, (unit, said)


def test_systemd_takes_every_unit(unpacked, tmp_path):
    # Beside systemd's own units, which they name.
    for tree in ["/usr/lib/systemd/system", units(unpacked)]:
        shutil.copytree(tree, tmp_path / "lib/systemd/system", symlinks=True, dirs_exist_ok=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    shutil.copy(unpacked / "usr/bin/baton", tmp_path / "usr/bin")
    for unit in UNITS:
        name = unit.replace("@", "@one") + ".service"
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", name], capture_output=True, text=True
        )
        assert "baton" not in said.stderr, said.stderr


def test_units_are_shut_in(unpacked):
    for unit in UNITS:
        name = unit.replace("@", "@one") + ".service"
        said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", f"--root={unpacked}", name)
        exposure = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)[1])
        assert exposure <= EXPOSURE[unit], said


@pytest.mark.parametrize(
    "shell, path",
    [
        ("bash", "usr/share/bash-completion/completions/baton"),
        ("zsh", "usr/share/zsh/vendor-completions/_baton"),
        ("fish", "usr/share/fish/vendor_completions.d/baton.fish"),
    ],
)
def test_shells_read_their_completions(unpacked, shell, path):
    run(shell, "-n", unpacked / path)


def test_man_reads_every_page(unpacked):
    pages = sorted((unpacked / "usr/share/man/man1").glob("*.1.gz"))
    assert len(pages) > 20
    for page in pages:
        said = subprocess.run(
            ["man", "--local-file", "--warnings", "--encoding=UTF-8", str(page)],
            capture_output=True,
            text=True,
            env=os.environ | {"MANROFFSEQ": "", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        )
        assert said.returncode == 0 and "SYNOPSIS" in said.stdout and not said.stderr, (page, said.stderr)
        text = gzip.decompress(page.read_bytes()).decode()
        run("mandoc", "-T", "lint", "-W", "error", input=text)
