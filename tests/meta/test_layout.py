"""The layout holds: small folders, short files, and every package says what lives in it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[2]
ROOMS = ("bench", "compose", "engine", "handlers", "storage", "tests")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PACKAGES = sorted({path.parent for path in FILES})
#: In a folder with more modules a reader has to search.
MODULES, TEST_MODULES = 20, 30
LINES = 400


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES, ids=_named)
def test_package_has_a_docstring(package: Path) -> None:
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8")))
    assert said, f"{_named(package)}/__init__.py: say in a sentence what lives there and what may not"


def test_folders_hold_few_modules() -> None:
    modules = Counter(path.parent for path in FILES if path.name != "__init__.py")
    for folder, count in modules.items():
        most = TEST_MODULES if folder.is_relative_to(ROOT / "tests") else MODULES
        assert count <= most, f"{_named(folder)} has {count} modules: split it by idea"


def test_files_are_short() -> None:
    for path in FILES:
        lines = len(path.read_text("utf-8").splitlines())
        if path.is_relative_to(ROOT / "tests"):
            continue
        assert lines <= LINES, f"{_named(path)} has {lines} lines: split it by idea"


def test_layout_longest_files_of_tests_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_layout_no_module_outside_its_package() -> None:
    loose = {_named(path) for room in ROOMS for path in (ROOT / room).glob("*.py")}
    loose = {name for name in loose if not name.startswith("compose/") and not name.endswith("/__init__.py")}
    assert loose == {"handlers/server.py", "bench/cli.py", "tests/conftest.py"}
