"""Are the tests able to fail? Each mutant breaks a copy of the code, and its tests have to turn red."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from psycopg2.extensions import parse_dsn

from bench.harness.clusters import as_role
from storage.embedded.servers import Services
from storage.postgres.roles.connecting import connecting_role
from tests.harness.forks import Forks
from tests.harness.mutants import MUTANTS, Mutant
from tests.harness.scratch import scratch
from tests.harness.services import Databases, execute

_ROOT = Path(__file__).parents[2]
_COPIED = ("compose", "bench", "docs", "engine", "handlers", "storage", "tests")
_COPIED_FILES = ("run.py", "config.toml", "pyproject.toml")
#: A run of a mutant's few tests may take this long on a busy machine, and each further test this much more.
_RUN_S, _TEST_S = 120, 5
#: How a test says that a promise is broken, in its last lines or inside of an exception group.
_REASON = re.compile(r"^[E |+-]*(\w+\.)*(AssertionError|assert |Store\w+Error)", re.MULTILINE)

#: What the project uses of others, and takes longest to import. The project itself is imported from the copy.
_IMPORTED = (
    *("_pytest.junitxml", "aiohttp.web", "aiopg", "anyio.from_thread", "click.testing", "cronsim"),
    *("cryptography.x509", "hypothesis.strategies", "jsonschema_rs", "jwt", "msgspec", "obstore.store"),
    *("orjson", "psutil", "psycopg2.extras", "puremagic", "pytest_aiohttp.plugin", "pytest_asyncio.plugin"),
    *("redis.asyncio.cluster", "structlog.stdlib", "uvloop", "xdist.plugin", "yoyo.backends.core.postgresql"),
)

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

    def __init__(self, home: Path, forks: Forks, environment: Mapping[str, str]) -> None:
        self._home = home
        self._forks = forks
        self._environment = environment
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
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--junitxml={report}"]
        # Its plugins are there before it could rewrite their asserts.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status, said, wrong = self._forks.run(
            ["-m", "pytest", *options, *tests],
            self._home,
            self._environment,
            patience_s=_RUN_S + _TEST_S * len(tests),
        )
        said += wrong
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


Copied = Callable[[Path], Copy]


@pytest.fixture(scope="module")
def copied(services: Services, databases: Databases, template: str) -> Iterator[Copied]:
    """Make copies in a directory, to be tested on the services of this run.

    A mutant may use sequences, which servers have no right to: else it would be refused before it does harm.
    """
    with databases.copy(template) as dsn:
        execute(
            dsn,
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {connecting_role(as_role(dsn, 'serving'))}",
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "MUTANTS_DSN": services.dsn,
            "MUTANTS_REDIS_URL": services.redis_url,
            "MUTANTS_TEMPLATE": parse_dsn(dsn)["dbname"],
        }
        forks = Forks(*_IMPORTED)
        yield lambda home: Copy(home, forks, environment)
        forks.stop()


@pytest.fixture(scope="module")
def sound(copied: Copied) -> None:
    """The tests pass on an unbroken copy."""
    tests = sorted({test for mutant in MUTANTS.values() for test in mutant.red})
    with scratch("tidemark-sound-") as home:
        found = copied(home).run(tests)
    assert found == dict.fromkeys(tests, "")


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_of_the_code_caught(mutant: Mutant, copied: Copied) -> None:
    with scratch("tidemark-mutant-") as home:
        copy = copied(home)
        copy.mutate(mutant)
        found = copy.run(list(mutant.red))
    for test, failure in found.items():
        assert failure, f"{test} passes all the same"
        assert _REASON.search(failure), f"{test} fails beside the point: {failure}"
