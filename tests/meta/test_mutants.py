"""Are the tests able to fail? Each mutant breaks a copy of the code, and its tests have to turn red."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from storage.embedded.servers import Services
from tests.harness.mutants import MUTANTS, Mutant

_ROOT = Path(__file__).parents[2]
_COPIED = ("compose", "bench", "engine", "handlers", "storage", "tests")
_COPIED_FILES = ("run.py", "config.toml", "pyproject.toml")
#: A run of a mutant's few tests may take this long on a busy machine, and each further test this much more.
_RUN_S, _TEST_S = 120.0, 5.0
#: How a test says that a promise is broken, in its last lines or inside of an exception group.
_REASON = re.compile(r"^[E |+-]*(\w+\.)*(AssertionError|assert |Store\w+Error)", re.MULTILINE)

#: Stands beside the copied tests, so that all copies use the services of this run.
_CONFTEST = """
import os
from pathlib import Path

import pytest

import engine
from storage.embedded.servers import Services

assert Path(engine.__file__).parent.parent == Path(__file__).parent, "the copy tests itself"


@pytest.fixture(scope="session")
def services():
    return Services(os.environ["MUTANTS_DSN"], os.environ["MUTANTS_REDIS_URL"])


@pytest.fixture(scope="session")
def template():
    return os.environ["MUTANTS_TEMPLATE"]
"""


class Copy:
    """A copy of the project, to be broken."""

    def __init__(self, home: Path, services: Services, template: str) -> None:
        self._home = home
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "MUTANTS_DSN": services.dsn,
            "MUTANTS_REDIS_URL": services.redis_url,
            "MUTANTS_TEMPLATE": template,
        }
        for name in _COPIED:
            shutil.copytree(_ROOT / name, home / name)
        for name in _COPIED_FILES:
            shutil.copy2(_ROOT / name, home)
        (home / "conftest.py").write_text(_CONFTEST)

    def mutate(self, mutant: Mutant) -> None:
        """Break it."""
        file = self._home / mutant.file
        text = file.read_text()
        for old, new in mutant.changes:
            assert text.count(old) == 1, f"{mutant.file} has moved on: {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        file.write_text(text)

    def run(self, tests: list[str]) -> dict[str, str]:
        """Run tests and give each one's failure, empty where it passed."""
        report = self._home / "report.xml"
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
             f"--junitxml={report}", *tests],
            cwd=self._home,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_S + _TEST_S * len(tests),
            check=False,
        )  # fmt: skip
        assert ended.returncode in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, ended.stdout
        found: dict[str, str] = {}
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  # pytest wrote it, nobody else
            file = case.attrib["classname"].replace(".", "/")
            assert case.find("skipped") is None
            name = f"{file}.py::{case.attrib['name']}"
            failure = case.findtext("failure") or found.get(name, "")
            # What a test leaves behind when it fails may be an error at its end, too.
            assert failure or case.find("error") is None, ended.stdout
            found[name] = failure
        assert set(found) == set(tests), ended.stdout
        return found


@pytest.fixture(scope="session")
def sound(services: Services, template: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests pass on an unbroken copy."""
    copy = Copy(tmp_path_factory.mktemp("sound"), services, template)
    tests = sorted({test for mutant in MUTANTS.values() for test in mutant.red})
    found = copy.run(tests)
    assert found == dict.fromkeys(tests, "")


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_of_the_code_caught(mutant: Mutant, services: Services, template: str, tmp_path: Path) -> None:
    copy = Copy(tmp_path, services, template)
    copy.mutate(mutant)
    for test, failure in copy.run(list(mutant.red)).items():
        assert failure, f"{test} passes all the same"
        assert _REASON.search(failure), f"{test} fails beside the point: {failure}"
