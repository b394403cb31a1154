"""Makes a CycloneDX list of what `cargo metadata` (standard input) says of package baton; see scripts/sbom."""

import json
import os
import sys
import tomllib
from datetime import datetime, timezone

ROOT = "baton"


def linked(nodes, root):
    """What is linked into a package: what it depends on, not to build or to test, and so on."""
    found, waiting = {}, [root]
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        normal = lambda dep: any(kind["kind"] is None for kind in dep["dep_kinds"])
        found[package] = sorted(dep["pkg"] for dep in nodes[package]["deps"] if normal(dep))
        waiting += found[package]
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    made = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
    }
    if package["license"]:
        # Older crates part licences by a slash.
        made["licenses"] = [{"expression": package["license"].replace("/", " OR ").replace("  ", " ")}]
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return made


def main(lock):
    metadata = json.load(sys.stdin)
    with open(lock, "rb") as file:
        locked = tomllib.load(file)["package"]
    checksums = {(one["name"], one["version"]): one.get("checksum") for one in locked}
    packages = {package["id"]: package for package in metadata["packages"]}
    root = next(id for id in metadata["workspace_members"] if packages[id]["name"] == ROOT)
    graph = linked({node["id"]: node for node in metadata["resolve"]["nodes"]}, root)
    made = sorted((id for id in graph if id != root), key=lambda id: purl(packages[id]))
    when = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": when.isoformat(),
            "component": component(packages[root], checksums) | {"type": "application"},
        },
        "components": [component(packages[id], checksums) for id in made],
        "dependencies": [
            {"ref": purl(packages[id]), "dependsOn": [purl(packages[on]) for on in graph[id]]}
            for id in [root, *made]
        ],
    }
    json.dump(bom, sys.stdout, indent=1)
    print()


main(sys.argv[1])
