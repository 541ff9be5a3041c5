"""The one seam for transactions: its settings, what it writes, and a commit that is cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.runtime.ports import StoreError, StorePoisonError, StoreUnknownError
from storage.embedded.servers import Services
from storage.postgres.commands import command_database
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.remedies import DatabaseFaultError
from storage.postgres.transactions import LOCAL_SETTINGS
from tests.harness.services import execute, named, rows

_ADD = Statement("INSERT INTO tenants (name) VALUES (%(name)s::text) RETURNING name")
_NAMES = "SELECT name FROM tenants ORDER BY name"
_END = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """One connection to an empty database."""
    database = Database(dsn, 1)
    yield database
    await database.close()


async def test_transaction_block_that_ends_is_committed_once(database: Database, dsn: str) -> None:
    async with database.transaction() as transaction:
        assert await transaction.run((_ADD,), {"name": "acme"}) == [("acme",)]
        assert await transaction.query("SELECT count(*)::int FROM tenants") == [(1,)]
        assert rows(dsn, _NAMES) == []
    assert rows(dsn, _NAMES) == [("acme",)]


@pytest.mark.parametrize("prepared", [True, False])
async def test_transaction_block_that_raises_writes_nothing_and_frees_its_connection(
    database: Database, dsn: str, *, prepared: bool
) -> None:
    async def fail() -> None:
        async with database.transaction() as transaction:
            await transaction.run((_ADD,), {"name": "acme"})
            if prepared:
                await transaction.run((_ADD,), {"name": "acme"})
            else:
                await transaction.query("SELECT 1 / 0")

    for _ in range(2):
        with pytest.raises(StorePoisonError):
            await fail()
    assert rows(dsn, _NAMES) == []
    assert await database.query("SELECT 1") == [(1,)]


async def test_transaction_whose_first_statement_fails_leaves_no_open_transaction(database: Database) -> None:
    with pytest.raises(StoreError):
        async with database.transaction() as transaction:
            await transaction.query("SELECT FROM nothing_of_that_name")
    assert await database.query("SELECT 1") == [(1,)]


async def test_transaction_without_statements_commits_nothing(database: Database) -> None:
    async with database.transaction():
        pass
    assert await database.query("SELECT 1") == [(1,)]


async def test_transaction_commit_cut_off_is_unknown(database: Database) -> None:
    transaction = await database.begin()
    await transaction.run((_ADD,), {"name": "acme"})
    with pytest.raises(StoreUnknownError):
        await transaction.commit((Statement(_END),))
    await transaction.rollback()
    assert await database.query(_NAMES) == []


async def test_execute_cut_off_is_unknown(database: Database) -> None:
    with pytest.raises(StoreUnknownError):
        await database.execute(_END)


@pytest.mark.parametrize("prepared", [True, False])
async def test_execute_commits_under_its_settings(database: Database, dsn: str, *, prepared: bool) -> None:
    shown = "SELECT current_setting('synchronous_commit'), current_setting('lock_timeout')"
    statement = Statement(shown) if prepared else shown
    assert await database.execute(statement) == [("on", "3s")]
    assert await database.execute(statement, None, LOCAL_SETTINGS) == [("local", "3s")]
    await database.execute(_ADD if prepared else _ADD.text, {"name": "acme"})
    assert rows(dsn, _NAMES) == [("acme",)]


async def test_command_database_prepares_nothing_and_bounds_no_statement(dsn: str) -> None:
    async with command_database(dsn) as database, database.transaction() as transaction:
        await transaction.run((_ADD,), {"name": "acme"})
        shown = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
        assert await transaction.query(shown) == [("0", "0")]
        assert await transaction.query("SELECT count(*)::int FROM pg_prepared_statements") == [(0,)]
    assert rows(dsn, _NAMES) == [("acme",)]


async def test_command_database_that_is_missing_names_the_remedy(services: Services) -> None:
    with pytest.raises(DatabaseFaultError, match=r"correct its name in postgres\.dsn"):
        async with command_database(named(services.dsn, "nowhere")) as database:
            await database.query("SELECT 1")


async def test_command_database_of_read_only_role_names_the_remedy(dsn: str) -> None:
    execute(
        dsn,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END $$",
    )
    with pytest.raises(DatabaseFaultError, match="this is a standby, or"):
        async with command_database(dsn) as database:
            await database.query("SELECT 1")
