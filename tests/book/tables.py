"""How each block of commands of the book is run, and which are not, with the reason.

A new page with commands gets a line in ``RUNS``. A block that the runner cannot run gets a line in ``RUN_BY``
or ``NOT_RUN``, by its page and the beginning of its text. tests/book/test_blocks.py names what is missing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.book.runner import Ground


class Run(NamedTuple):
    """How a page is run. One that takes less than three seconds need not be slow."""

    ground: Ground
    slow: bool = True


#: Pages whose blocks the runner runs in order, without those of the other two tables.
RUNS: Final[dict[str, Run]] = {
    "docs/device-guide.md": Run(Ground.SERVED),
    "docs/index.md": Run(Ground.CHECKOUT),
}

#: Blocks that a test of their own runs: by a beginning of their text, a section by its heading, a page by "".
RUN_BY: Final[dict[tuple[str, str], str]] = {
    ("README.md", "## A first session"): "tests/meta/test_docs.py::test_readme_first_session_runs_as_written",
    (
        "docs/outages.md",
        "",
    ): "tests/system/outages/test_outages.py::test_outage_is_found_and_mended_by_the_page",
}

_SUITE: Final = "the tests themselves"
_BENCH: Final = "minutes of load; run by hand, docs/benchmarks.md has what it measured"
_ROOT: Final = "sets up accounts and services of the machine, as root"

#: Blocks that nothing runs, by a beginning of their text.
NOT_RUN: Final[dict[tuple[str, str], str]] = {
    ("CONTRIBUTING.md", "make run"): _SUITE,
    ("CONTRIBUTING.md", ".venv/bin/python run.py bench --scenario limits"): _BENCH,
    (
        "CONTRIBUTING.md",
        ".venv/bin/python run.py bench --url",
    ): "records a process, which few machines of CI let",
    ("README.md", "make run     #"): _SUITE,
    ("README.md", ".venv/bin/python run.py bench --quick"): _BENCH,
    (
        "docs/benchmarks.md",
        ".venv/bin/python run.py bench --quick    ",
    ): "hours of load; run by hand, this page has the results",
    ("docs/benchmarks.md", ".venv/bin/python run.py bench --quick --json"): _BENCH,
    ("docs/dependencies.md", "make audit"): "installs tools and asks databases of advisories",
    ("docs/dependencies.md", ".venv/bin/python -m deploy.audit"): "asks databases of advisories",
    ("docs/operations.md", ".venv/lib/python3*"): "not run yet",
    ("docs/operations.md", "CREATE ROLE tidemark"): "not run yet",
    ("docs/operations.md", "curl -H"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py monitor --test"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py serve --workers 4"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py nginx --workers 4"): "not run yet",
    ("docs/operations.md", "make install-server"): "not run yet",
    ("docs/operations.md", "sudo -u"): "not run yet",
    ("docs/operations.md", "cp deploy/systemd"): "not run yet",
    (
        "docs/operations.md",
        ".venv/bin/python run.py policy set --tenant acme --domain task --policy field_merge --fallback",
    ): "not run yet",
    (
        "docs/operations.md",
        ".venv/bin/python run.py policy set --tenant acme --domain task --policy field_merge\n",
    ): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py device list"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py device restore"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py token revoke"): "not run yet",
    ("docs/operations.md", ".venv/bin/python -c"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py audit"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py analytics"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py job list"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py export"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py conflicts"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py quarantine"): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py tenant usage"): "not run yet",
    ("docs/operations.md", "SELECT t.name"): "not run yet",
    ("docs/operations.md", 'psql "$dsn"'): "not run yet",
    ("docs/operations.md", ".venv/bin/python run.py epoch"): "not run yet",
    ("docs/operations.md", "SET lock_timeout"): "not run yet",
    (
        "docs/releases.md",
        "make wheel\npython3",
    ): "installs from a registry; tests/meta/test_wheel.py has it from what is here",
    ("docs/releases.md", "make wheel\nmake -s sbom"): "a step of a release; installs tools",
    ("docs/scaling.md", ".venv/bin/python -m bench.tools.capacity"): "not run yet",
    ("docs/scaling.md", "SELECT create_reference_table"): "needs Citus",
    ("docs/security.md", ".venv/bin/python -m pytest -m security"): _SUITE,
    ("docs/testing.md", "make test   "): _SUITE,
    (
        "docs/testing.md",
        "HYPOTHESIS_PROFILE=deep make test TESTS=tests/engine/plan/test_batch_model.py",
    ): _SUITE,
    ("docs/testing.md", ".venv/bin/python -m tests.system.outages"): _SUITE,
    ("docs/testing.md", "make fuzz"): "30 minutes, and installs tools",
    ("docs/testing.md", "HYPOTHESIS_PROFILE=deep make test TESTS=tests/fuzz"): _SUITE,
    ("docs/testing.md", ".venv-fuzz/bin/python -m tests.fuzz.child"): "needs inputs of an earlier search",
    ("docs/testing.md", "TIDEMARK_KILLS=20"): _SUITE,
    (
        "docs/testing.md",
        "HYPOTHESIS_PROFILE=deep make test TESTS=tests/engine/plan/test_clock_world.py",
    ): _SUITE,
    (
        "docs/testing.md",
        ".venv/bin/python -m bench.tools.convergence",
    ): "10 minutes; tests/clients/test_convergence.py has a short one",
}
