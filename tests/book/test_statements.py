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
        made = ("initdb", "-D", str(data), "-U", "tidemark", "-A", "trust", "--no-sync")
        subprocess.run(
            [binaries / made[0], *made[1:]], check=True, stdout=subprocess.DEVNULL, **account.spawning
        )
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
            ready = (str(binaries / "pg_isready"), "-q", "-h", str(data))
            assert wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, _START_S)
            subprocess.run([*command, "-d", "postgres", "-c", "CREATE DATABASE tidemark"], check=True)
            migrate_for_roles(f"host={data} user=tidemark dbname=tidemark")
            yield [*command, "-d", "tidemark"]
        finally:
            server.terminate()
            server.wait()


def printed(psql: list[str], column: str = "") -> str:
    """What the statements of the page print; that with a column alone, or all."""
    statements = [block.text for block in read("docs/performance.md") if block.language == "sql"]
    assert len(statements) > 7
    return "".join(run(psql, text) for text in statements if column in text)


def run(psql: list[str], statement: str, *, fails: bool = False) -> str:
    """Run a statement in a session of its own, whose end makes its statistics known."""
    ended = subprocess.run(psql, input=statement, stdout=subprocess.PIPE, text=True, check=False)
    assert bool(ended.returncode) is fails
    return ended.stdout


def test_performance_page_statements_run_on_debian(psql: list[str]) -> None:
    run(psql, "CREATE EXTENSION pg_stat_statements")
    run(psql, "SELECT pg_stat_statements_reset()")
    run(psql, "SELECT sum(n) FROM generate_series(1, 300000) AS n WHERE n <> 77")
    found = printed(psql)
    assert "SELECT sum(n) FROM generate_series($1, $2) AS n WHERE n <> $3" in found
    assert "77" not in printed(psql, "longest_ms").partition("sum(n)")[2].splitlines()[0]


#: 3,000 records of a tenant, whose feed is read as a server does.
_RECORDS = """
INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data)
SELECT 1, 'task', n::text, 1, n, 0, 1, '{}' FROM generate_series(1, 3000) AS n
"""
_FEED = (
    "SET enable_seqscan = off; SELECT id FROM records WHERE tenant_id = 1 AND seq > 2990 ORDER BY seq LIMIT 5"
)


def test_performance_page_statements_find_a_missing_and_a_useless_index(psql: list[str]) -> None:
    run(psql, _RECORDS)
    run(psql, _FEED)
    assert "3000" not in printed(psql, "entries_a_scan")
    run(psql, "DROP INDEX records_by_seq")
    run(psql, _FEED)
    assert "records_pkey" in (found := printed(psql, "entries_a_scan"))
    assert "3000" in found
    run(psql, "CREATE INDEX my_useless ON records (version)")
    assert "my_useless" in printed(psql, "idx_scan = 0")
    run(psql, "CREATE UNIQUE INDEX CONCURRENTLY my_broken ON records (version)", fails=True)
    assert "my_broken" in printed(psql, "unfinished")
