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
    "docs/checklist.md": Run(Ground.SERVED),
    "docs/device-guide.md": Run(Ground.SERVED),
    "docs/index.md": Run(Ground.CHECKOUT),
    "docs/operations.md": Run(Ground.SERVED),
    "docs/performance.md": Run(Ground.SERVED),
    "docs/recovery.md": Run(Ground.CHECKOUT),
    "docs/scaling.md": Run(Ground.CHECKOUT),
    "docs/security-guide.md": Run(Ground.SERVED),
}

#: Blocks that a test of their own runs: by a beginning of their text, a section by its heading, a page by "".
RUN_BY: Final[dict[tuple[str, str], str]] = {
    ("docs/containers.md", "umask 077"): "tests/deploy/test_compose.py::test_page_makes_secrets_that_fit",
    ("README.md", "## A first session"): "tests/meta/test_docs.py::test_readme_first_session_runs_as_written",
    (
        "docs/outages.md",
        "",
    ): "tests/system/outages/test_outages.py::test_outage_is_found_and_mended_by_the_page",
    (
        "docs/performance.md",
        "CREATE EXTENSION",
    ): "tests/book/test_statements.py::test_performance_page_statements_run_on_debian",
}

_DEPLOYED: Final = "tests/system/test_first_deployment.py::test_ten_steps_deploy_and_upgrade_as_written"
RUN_BY.update(
    dict.fromkeys(
        [
            ("docs/deployment.md", "cd /opt/tidemark\n"),
            ("docs/deployment.md", "### 1. Roles"),
            ("docs/deployment.md", "### 2. Database"),
            ("docs/deployment.md", "### 3. Secrets and settings"),
            ("docs/deployment.md", "### 4. Migrations"),
            ("docs/deployment.md", "### 5. Tenant"),
            ("docs/deployment.md", "runuser -u tidemark -- .venv/bin/python run.py serve"),
            ("docs/deployment.md", "curl -sS --fail --retry 30"),
            ("docs/deployment.md", "### 7. nginx"),
            ("docs/deployment.md", "### 8. TLS"),
            ("docs/deployment.md", "### 9. Monitoring"),
            ("docs/deployment.md", "### 10. Smoke"),
            ("docs/upgrades.md", "cd /opt/tidemark-green"),
            ("docs/upgrades.md", "### Move the devices"),
            ("docs/upgrades.md", "### Rollback"),
        ],
        _DEPLOYED,
    )
)
RUN_BY["docs/upgrades.md", "SET lock_timeout"] = (
    "tests/storage/postgres/test_migrate.py::test_migrate_last_data_columns_made_before_are_used"
)

RUN_BY.update(
    {
        ("docs/scaling.md", f"### {what}"): (
            "tests/system/test_cells_page.py::test_cell_is_made_moved_renamed_and_removed_by_the_page"
        )
        for what in (
            "Make a cell",
            "On another database server",
            "Move a cell",
            "Rename a cell",
            "Remove a cell",
        )
    }
)

_SUITE: Final = "the tests themselves"
#: The bars of a bench judge the machine too: on a busy one they are missed, and nothing is wrong.
_BY_HAND: Final = "of load; run by hand, report in docs/benchmarks"
_SERVICE: Final = "needs PostgreSQL and systemd as services; the drill does the same on its own"
_ENGINE: Final = "needs an engine of containers"
_CITUS: Final = "needs Citus; tests/system/test_citus.py does the same where there is one"
_ROOT: Final = "changes files and services of the machine, as root"

#: Blocks that nothing runs, by a beginning of their text.
NOT_RUN: Final[dict[tuple[str, str], str]] = {
    ("docs/containers.md", "make wheel"): _ENGINE,
    ("docs/containers.md", "cd deploy/compose/secrets"): _ENGINE,
    ("docs/recovery.md", "install -d -m 0700 -o postgres"): _SERVICE,
    ("docs/recovery.md", 'runuser -u postgres -- psql -p 5432 -c "SELECT archived'): _SERVICE,
    ("docs/recovery.md", "runuser -u postgres -- pg_receivewal"): _SERVICE,
    ("docs/recovery.md", "(\n    set -e\n"): _SERVICE,
    ("docs/recovery.md", "install -d -m 0700 /var/backups/tidemark-keys"): _ROOT,
    ("docs/recovery.md", "bash deploy/recovery/copy_files.sh"): _ROOT,
    ("docs/recovery.md", "systemctl stop tidemark"): _SERVICE,
    ("docs/recovery.md", "runuser -u postgres -- psql -p 5432 -d tidemark"): _SERVICE,
    ("docs/recovery.md", 'runuser -u postgres -- psql -p 5432 -c "SELECT pg_wal'): _SERVICE,
    ("docs/recovery.md", "runuser -u tidemark -- .venv/bin/python run.py epoch"): _SERVICE,
    ("docs/recovery.md", "UPDATE upload_session"): _SERVICE,
    ("docs/recovery.md", "runuser -u tidemark -- .venv/bin/python run.py job"): _SERVICE,
    ("CONTRIBUTING.md", "make run"): _SUITE,
    ("CONTRIBUTING.md", ".venv/bin/python run.py bench --scenario limits"): f"5 minutes {_BY_HAND}",
    (
        "CONTRIBUTING.md",
        ".venv/bin/python run.py bench --url",
    ): f"a minute {_BY_HAND}, and needs rights to trace",
    ("README.md", "make run     #"): _SUITE,
    ("README.md", ".venv/bin/python run.py bench --quick"): f"15 minutes {_BY_HAND}",
    ("docs/benchmarks.md", ".venv/bin/python run.py bench --quick    "): f"5 hours {_BY_HAND}",
    (
        "docs/benchmarks.md",
        ".venv/bin/python run.py bench --scenario all --duration 300 --json",
    ): f"22 minutes {_BY_HAND}",
    ("docs/dependencies.md", "make audit"): "installs tools and asks databases of advisories",
    ("docs/dependencies.md", ".venv/bin/python -m deploy.audit"): "asks databases of advisories",
    (
        "docs/deployment.md",
        "runuser -u tidemark -- .venv/bin/python run.py tenant add smoke",
    ): "docs/checklist.md has it for the page's own server",
    ("docs/deployment.md", "cp deploy/systemd"): _ROOT,
    ("docs/upgrades.md", "release="): "installs from a registry",
    ("docs/upgrades.md", "sed 's#"): _ROOT,
    (
        "docs/operations.md",
        ".venv/bin/python run.py monitor --test",
    ): "tests/handlers/commands/test_monitor_alerts.py does",
    (
        "docs/operations.md",
        ".venv/bin/python run.py serve --workers 4",
    ): "two hosts with addresses of their own",
    ("docs/operations.md", 'psql "$dsn"'): "needs a bucket; tests/storage/blobs has one",
    ("docs/performance.md", ".venv/bin/python run.py bench --scenario limits"): f"3 minutes {_BY_HAND}",
    (
        "docs/releases.md",
        "make wheel\npython3",
    ): "installs from a registry; tests/meta/test_wheel.py does from what is here",
    ("docs/releases.md", "make wheel\nmake -s sbom"): "a step of a release, which installs tools",
    ("docs/scaling.md", ".venv/bin/python run.py bench --scenario faults"): f"3 minutes {_BY_HAND}",
    ("docs/scaling.md", "CREATE ROLE north LOGIN"): _CITUS,
    ("docs/scaling.md", "SELECT schema_name"): _CITUS,
    ("docs/scaling.md", "CALL citus_cleanup"): _CITUS,
    ("docs/security.md", ".venv/bin/python -m pytest -m security"): _SUITE,
    ("docs/testing.md", "make test   "): _SUITE,
    ("docs/testing.md", "TIDEMARK_TEST_CITUS="): _SUITE,
    ("docs/testing.md", "TIDEMARK_TEST_IN_CELL=1"): _SUITE,
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
    ): "10 minutes; docs/device-guide.md runs a short one",
}
