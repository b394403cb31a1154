"""The package that scripts/package-deb has made, unpacked."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
only_in_full = pytest.mark.skipif("BATON_FULL" not in os.environ, reason="takes long: scripts/test-packages --full")


def run(*command, **options):
    """Runs a command, which must succeed, and returns what it said on stdout."""
    options.setdefault("input", "")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def deb():
    (deb,) = (ROOT / "target/debian").glob("baton_*.deb")
    return deb


@pytest.fixture(scope="session")
def unpacked(deb, tmp_path_factory):
    place = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "--extract", deb, place)
    return place


@pytest.fixture(scope="session")
def baton(unpacked):
    return unpacked / "usr/bin/baton"
