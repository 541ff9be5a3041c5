"""Fixtures for all tests, and the rule that CI skips nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
import structlog
import uvloop

from compose.configuration import DEFAULTS, VARIABLE
from handlers.commands import deployment
from handlers.http.loop import watch as loop_watch

pytest_plugins = [
    "tests.harness.services",
    "tests.harness.in_process_server",
    "tests.harness.fronted",
    "tests.harness.servers.own_redis",
    "tests.harness.servers.own_s3",
    "tests.harness.supervised",
    "tests.harness.uploads.tus_js",
]

# A server in this process may have its first word to say while a command's output is looked at.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stdout))


#: Tests of Citus alone need one.
collect_ignore = [] if "TIDEMARK_TEST_CITUS" in os.environ else ["system/test_citus.py"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests, and the servers in them, on the event loop of a real server."""
    return {"uvloop": uvloop.new_event_loop}


# Nor may it say that its loop stood still: tests hold it up while they wait for a command.
loop_watch._UNKNOWN_S = float("inf")  # type: ignore[misc]  # a constant outside of tests


# A command in this process sets up no logs, nor does one that a fixture of a whole module runs: loggers keep
# what they are first used with, and every later test would be without what is below warnings.
deployment.configure = lambda *_, **__: None  # type: ignore[assignment, attr-defined]

# The settings of this machine are of a server that others rely on: no test, nor what it starts, looks there.
os.environ[VARIABLE] = str(DEFAULTS)

#: The files that take longest, which several processes have to begin with: else one has them left in the end,
#: while the others have nothing to do. Those that wait stand between those that compute.
LONGEST = (
    "meta/test_mutants.py",
    "system/test_nginx.py",
    "system/test_workers.py",
    "engine/plan/test_batch_model.py",
    "system/test_crash.py",
    "system/test_upload_crash.py",
    "clients/test_convergence.py",
    "bench/test_scenarios.py",
    "system/test_failover.py",
    "system/test_upload_several_processes.py",
    "storage/embedded/test_servers.py",
    "system/test_drain.py",
    "system/test_network_partition.py",
    "storage/stores/test_commit_hazards.py",
    "handlers/commands/test_completion.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where several processes share the tests."""
    if hasattr(config, "workerinput"):
        place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


_CI = os.environ.get("CI") == "true"


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} skips where CI=true, which skips nothing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collector of garbage from what lives as long as the run: modules and thousands of tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that skips as a whole."""
    report = yield
    _refuse_skip(report)
    return report
