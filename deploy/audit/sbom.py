"""The list of what a server's installation has (CycloneDX), from the environment and the pins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deploy.audit.verdict import pinned

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def of_server(
    environment: dict[str, Any],
    requirements: str,
    servers: Mapping[str, str],
    scripts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Reduce the list of an environment to the pinned packages, with hashes, servers in wheels and scripts.

    Args:
        environment: What ``cyclonedx-py environment`` wrote.
        requirements: The text of ``deploy/requirements.txt``.
        servers: The name and version of each server that a wheel has.
        scripts: The name and version of each npm package whose files are in the repository.

    Raises:
        ValueError: A pinned package is not installed in that version, so the list would be wrong.
    """
    pins = pinned(requirements)
    kept = {}
    for component in environment["components"]:
        pin = pins.get(re.sub(r"[-_.]+", "-", component["name"]).lower())
        if pin is not None and pin.split()[0] == component["version"]:
            hashes = [{"alg": "SHA-256", "content": one} for one in _HASH.findall(pin)]
            # Of the archives of all platforms: the component itself may have one hash of a kind only.
            component["externalReferences"] = [
                *component.get("externalReferences", ()),
                {
                    "type": "distribution",
                    "url": f"pkg:pypi/{component['name']}@{component['version']}",
                    "hashes": hashes,
                },
            ]
            kept[component["bom-ref"]] = component
    missing = len(pins) - len(kept)
    if missing:
        raise ValueError(
            f"{missing} packages of deploy/requirements.txt are not installed as pinned: run make install"
        )
    root = environment["metadata"]["component"]["bom-ref"]
    for name, version in servers.items():
        reference = f"{name.lower()}=={version}"
        kept[reference] = {
            "type": "application",
            "bom-ref": reference,
            "name": name,
            "version": version,
            "cpe": _cpe(name, version),
        }
    for name, version in scripts.items():
        purl = f"pkg:npm/{name}@{version}"
        kept[purl] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    added = [f"{name.lower()}=={version}" for name, version in servers.items()]
    added += [f"pkg:npm/{name}@{version}" for name, version in scripts.items()]
    refs = {root, *kept}
    listed = [one for one in environment["dependencies"] if one["ref"] in refs]
    listed += [{"ref": ref} for ref in added]
    for one in listed:
        one["dependsOn"] = [ref for ref in one.get("dependsOn", ()) if ref in refs]
        if one["ref"] == root:
            one["dependsOn"] += added
    return {**environment, "components": list(kept.values()), "dependencies": listed}


def _cpe(name: str, version: str) -> str:
    vendor = {"PostgreSQL": "postgresql", "Valkey": "lfprojects"}[name]
    return f"cpe:2.3:a:{vendor}:{name.lower()}:{version}:*:*:*:*:*:*:*"
