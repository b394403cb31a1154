"""What the program needs of a system, and the one that scripts/package-binary makes on an old Debian."""

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import urllib.request

import pytest
from conftest import ROOT, only_in_full, run

# What every glibc is, and what feature ucx links. Cards' libraries are looked for at run time.
GLIBC = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
SPLIT = {"libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"}  # of glibc before 2.34
UCX = {"libibverbs.so.1", "libmlx5.so.1"}
OLDEST = (2, 28)
# A Debian with a glibc of 2.31, and where it lies.
OLD = ("bullseye", "http://deb.debian.org/debian")
MODEL = "smollm2-135m"


def libraries(program):
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", "--wide", program)))


def newest_glibc(program):
    """The newest version of glibc that a symbol is of."""
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", run("readelf", "--version-info", "--wide", program))
    return max((int(major), int(minor)) for major, minor in versions)


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """The archive's folder, unpacked."""
    (archive,) = (ROOT / "target/binary").glob("baton-*.tar.gz")
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=archive.parent)
    place = tmp_path_factory.mktemp("binary")
    run("tar", "-xzf", archive, "-C", place)
    return place / archive.name.removesuffix(".tar.gz")


def test_libraries_beside_glibc_are_optional(baton):
    assert libraries(baton) <= GLIBC | UCX
    # Whatever built it, its own glibc is not older than that.
    assert newest_glibc(baton) >= OLDEST


@only_in_full
def test_one_file_needs_nothing_but_an_old_glibc(binary):
    assert libraries(binary / "baton") <= GLIBC | SPLIT
    assert newest_glibc(binary / "baton") <= OLDEST


@only_in_full
def test_the_archive_has_manuals_and_words_for_shells(binary):
    names = {str(path.relative_to(binary)) for path in binary.rglob("*") if path.is_file()}
    parts = json.loads((binary / "baton.cdx.json").read_text())["components"]
    assert {"tokio"} == {part["name"] for part in parts} & {"tokio", "ucx-rs"}
    assert {"baton", "LICENSE", "completions/baton", "completions/_baton", "completions/baton.fish"} < names
    assert sum(name.startswith("man/") for name in names) > 20
    assert platform.machine() in binary.name


@only_in_full
def test_it_answers_on_an_old_debian(binary, tmp_path):
    root = tmp_path / "root"
    suite, mirror = OLD
    run("mmdebstrap", "--variant=minbase", suite, root, mirror)
    shutil.copy(binary / "baton", root / "usr/local/bin")
    shutil.copytree(pathlib.Path.home() / ".cache/baton" / MODEL, root / "root/.cache/baton" / MODEL)
    settings = ["frontend.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0"]
    serve = ["chroot", root, "baton", "serve", "--model", MODEL]
    server = subprocess.Popen(
        [*serve, *(word for setting in settings for word in ("--set", setting))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": "/root", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    try:
        url = next(found[1] for line in server.stdout if (found := re.search(r"ready at (http://\S+)", line)))
        body = {"model": MODEL, "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello!"}]}
        headers = {"content-type": "application/json"}
        call = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(call, timeout=120) as answer:
            events = answer.read().decode().split("\n\n")
    finally:
        server.terminate()
        server.wait(60)
    *chunks, done, _ = events
    said = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"].get("content") for chunk in chunks]
    assert done == "data: [DONE]" and "".join(filter(None, said)).strip()
