"""What ``make install-server`` installs: all that the program imports, and nothing to develop with."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
ROOMS = ("bench", "compose", "engine", "handlers", "storage")
#: It runs in an environment of its own, with packages that the product's has not.
PEER = ROOT / "bench" / "peers" / "channels_server.py"
MODULES = [ROOT / "run.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
PROGRAM = [path for path in MODULES if path != PEER]


def _imported(path: Path) -> Iterator[str]:
    """The packages of others that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                modules = [one.name for one in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case _:
                continue
        for module in modules:
            name = module.partition(".")[0]
            if name not in sys.stdlib_module_names and not (ROOT / name).exists() and name != "run":
                yield name


def test_install_server_installs_run_time_packages_only() -> None:
    made = subprocess.run(
        ["/usr/bin/env", "make", "--dry-run", "install-server", "VENV=/nowhere"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert re.findall(r"-r (\S+)", made) == ["deploy/requirements.txt"]
    pinned = (ROOT / "deploy" / "requirements.txt").read_text("utf-8")
    named = set(re.findall(r"^([a-z0-9-]+)==", pinned, re.MULTILINE))
    packages = packages_distributions()
    imported = {name for path in PROGRAM for name in _imported(path)}
    for name in imported:
        assert any(one.lower().replace("_", "-") in named for one in packages[name]), name
    peer = {"channels", "daphne", "django"}
    assert peer <= set(_imported(PEER)), "it needs no environment of its own"
    assert named & peer == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    development = {re.split(r"[<>=\[]", one)[0].lower() for one in project["optional-dependencies"]["dev"]}
    assert named & development == set()


def test_pinned_releases_install_on_the_oldest_python_that_the_project_takes() -> None:
    """A newer Python installs releases that the oldest one refuses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    pinned = (ROOT / "deploy" / "requirements-dev.txt").read_text("utf-8")
    named = set(re.findall(r"^([a-z0-9-]+)==", pinned, re.MULTILINE))
    installed = {one.name.lower().replace("_", "-").replace(".", "-"): one for one in distributions()}
    assert named <= installed.keys()
    wanted = {name: installed[name].metadata for name in named}
    takes = {name: one["Requires-Python"] for name, one in wanted.items() if "Requires-Python" in one}
    assert {name: one for name, one in takes.items() if oldest not in SpecifierSet(one)} == {}
