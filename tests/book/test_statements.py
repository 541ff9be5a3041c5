"""The statements of the page on performance on the PostgreSQL of Debian: it has extensions, and is older."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.clusters import migrate_for_roles
from storage.embedded.account import account_for
from storage.embedded.process import wait_until
from tests.book.blocks import read
from tests.harness.scratch import scratch

_START_S = 30.0
#: Where Debian has its servers.
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL of the system with pg_stat_statements"),
]


@pytest.fixture
def psql() -> Iterator[list[str]]:
    """The command for ``psql`` as a superuser on a migrated database, whose server counts statements."""
    with scratch("tidemark-statements-") as home:
        account = account_for(home)
        data = account.directory(home / "data")
        binaries = BINARIES[-1]
        made: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "tidemark",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **account.spawning)
        options = (
            "shared_preload_libraries=pg_stat_statements",
            "listen_addresses=",
            f"unix_socket_directories={data}",
        )
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *(part for option in options for part in ("-c", option))],
            stderr=subprocess.DEVNULL,
            **account.spawning,
        )
        command = [str(binaries / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-h", str(data), "-U", "tidemark"]
        try:
            ready: list[str | Path] = [binaries / "pg_isready", "-q", "-h", data]
            assert wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, _START_S)
            subprocess.run([*command, "-d", "postgres", "-c", "CREATE DATABASE tidemark"], check=True)
            migrate_for_roles(f"host={data} user=tidemark dbname=tidemark")
            yield [*command, "-d", "tidemark"]
        finally:
            server.terminate()
            server.wait()


def test_performance_page_statements_run_on_debian(psql: list[str]) -> None:
    statements = [block for block in read("docs/performance.md") if block.language == "sql"]
    assert len(statements) > 7
    printed = [subprocess.check_output(psql, input=block.text, text=True) for block in statements]
    of_all = next(text for text in printed if "longest_ms" in text)
    assert "CREATE TABLE" in of_all or "INSERT" in of_all
