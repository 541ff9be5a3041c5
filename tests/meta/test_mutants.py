"""Are the tests able to fail? Each mutant breaks a copy of the code, and its tests have to turn red."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from storage.embedded.servers import Services
from tests.harness.mutants import MUTANTS, Mutant
from tests.harness.scratch import scratch

_ROOT = Path(__file__).parents[2]
_COPIED = ("compose", "bench", "engine", "handlers", "storage", "tests")
_COPIED_FILES = ("run.py", "config.toml", "pyproject.toml")
#: A run of a mutant's few tests may take this long on a busy machine, and each further test this much more.
_RUN_S, _TEST_S = 120, 5
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


class Runner:
    """A process that runs the tests of one copy after the other."""

    def __init__(self, services: Services, template: str) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "MUTANTS_DSN": services.dsn,
            "MUTANTS_REDIS_URL": services.redis_url,
            "MUTANTS_TEMPLATE": template,
        }
        self._process = subprocess.Popen(
            [sys.executable, _ROOT / "tests" / "harness" / "mutant_runner.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, home: Path, output: Path, patience_s: int, arguments: list[str]) -> int:
        """Be pytest in the directory ``home``; gives its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        run = {"home": str(home), "output": str(output), "patience_s": patience_s, "arguments": arguments}
        self._process.stdin.write(json.dumps(run) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate()


class Copy:
    """A copy of the project, to be broken."""

    def __init__(self, home: Path, runner: Runner) -> None:
        self._home = home
        self._runner = runner
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
        report, output = self._home / "report.xml", self._home / "output.txt"
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--junitxml={report}"]
        # Its plugins are there before it could rewrite their asserts.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = self._runner.run(self._home, output, _RUN_S + _TEST_S * len(tests), [*options, *tests])
        said = output.read_text()
        assert status in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, f"{status}: {said}"
        found: dict[str, str] = {}
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  # pytest wrote it, nobody else
            file = case.attrib["classname"].replace(".", "/")
            assert case.find("skipped") is None
            name = f"{file}.py::{case.attrib['name']}"
            failure = case.findtext("failure") or found.get(name, "")
            # What a test leaves behind when it fails may be an error at its end, too.
            assert failure or case.find("error") is None, said
            found[name] = failure
        assert set(found) == set(tests), said
        return found


@pytest.fixture(scope="module")
def runner(services: Services, template: str) -> Iterator[Runner]:
    made = Runner(services, template)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def sound(runner: Runner) -> None:
    """The tests pass on an unbroken copy."""
    tests = sorted({test for mutant in MUTANTS.values() for test in mutant.red})
    with scratch("tidemark-sound-") as home:
        found = Copy(home, runner).run(tests)
    assert found == dict.fromkeys(tests, "")


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_of_the_code_caught(mutant: Mutant, runner: Runner) -> None:
    with scratch("tidemark-mutant-") as home:
        copy = Copy(home, runner)
        copy.mutate(mutant)
        found = copy.run(list(mutant.red))
    for test, failure in found.items():
        assert failure, f"{test} passes all the same"
        assert _REASON.search(failure), f"{test} fails beside the point: {failure}"
