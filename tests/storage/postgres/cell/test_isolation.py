"""Cells of one database share nothing: no row, no lock, no message and no file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest

from bench.harness.clusters import as_role
from compose.uploads import files_dir, open_blobs
from engine.model.rows import ReadSet, Record, WriteSet
from engine.model.uploads import Draft, UploadRef
from engine.runtime.ports import StoreUnknownError
from storage.bus.bus_messages import channel_of
from storage.postgres.blocking import connected, schema_change
from storage.postgres.cell.names import Names
from storage.postgres.connection import StatementNames
from storage.postgres.migrate import migrate, status
from storage.postgres.partitions.bounds import EVENTS, last_begin, partitions_of
from storage.postgres.partitions.daily_usage import dropping
from storage.postgres.partitions.maintenance import ensure_partitions
from storage.postgres.pool import Database
from storage.postgres.roles.grants import grant_roles
from storage.stores.commit.reads import LOCK
from storage.stores.commit.store import PostgresStore
from storage.stores.feed import PostgresFeed
from storage.stores.sealed.sealing import Sealing
from storage.stores.tenants import PostgresTenants
from tests.harness.in_process_server import settings_with
from tests.harness.services import CELLS, Serving, execute, in_cell, rows

LOOKUPS = ReadSet([1], [], [], [], [], [])


class Cell(NamedTuple):
    """One of the cells, and what stands on it."""

    dsn: str
    database: Database
    store: PostgresStore
    feed: PostgresFeed
    tenants: PostgresTenants

    async def commit(self, seq: int) -> None:
        """Write one record of the first tenant."""
        record = Record(1, "task", f"r{seq}", 1, seq, 1, "phone", 1, b'{"n":1}')
        transaction = await self.store.begin(LOOKUPS)
        await transaction.commit(WriteSet({1: seq}, [record], [], [], [], []))

    def counts(self) -> dict[str, int]:
        """Count the rows of each table."""
        tables = rows(self.dsn, "SELECT relname FROM pg_stat_user_tables WHERE schemaname = current_schema()")
        return {str(name): _count(self.dsn, str(name)) for (name,) in tables}


def _count(dsn: str, table: str) -> int:
    ((count,),) = rows(dsn, f"SELECT count(*) FROM {table}")
    assert isinstance(count, int)
    return count


@pytest.fixture
async def cells(cell_dsn: str) -> AsyncIterator[list[Cell]]:
    """The two cells of a database, each with a tenant of the number 1."""
    made = []
    async with AsyncExitStack() as stack:
        for schema in CELLS:
            dsn = in_cell(cell_dsn, schema)
            database = Serving(dsn, 3)
            stack.push_async_callback(database.close)
            tenants, sealing = PostgresTenants(database), Sealing()
            assert await tenants.ensure("acme")
            store, feed = PostgresStore(database, 720, sealing), PostgresFeed(database, sealing)
            made.append(Cell(dsn, database, store, feed, tenants))
        yield made


async def test_cells_rows_of_one_are_not_in_the_other(cells: list[Cell]) -> None:
    one, other = cells
    before = other.counts()
    await one.commit(1)
    assert (await one.feed.page(1, 0, None, 10, 1 << 20)).records != []
    assert (await other.feed.page(1, 0, None, 10, 1 << 20)).records == []
    assert other.counts() == before
    await other.commit(1)
    await one.tenants.remove("acme", erase=True)
    assert _count(one.dsn, "records") == 0
    assert _count(other.dsn, "records") == 1


async def test_cells_tenants_of_one_are_not_locked_by_the_other(cells: list[Cell]) -> None:
    one, other = cells
    held = await one.store.begin(LOOKUPS)
    await other.commit(1)
    await held.rollback()


def test_cells_way_back_of_one_lets_the_roles_of_the_other_in(cell_dsn: str) -> None:
    """Both have the same roles, and the right to connect is that of the database."""
    one, other = (in_cell(cell_dsn, schema) for schema in CELLS)
    ((name,),) = rows(one, "SELECT current_database()::text")
    execute(one, f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
    for dsn in (one, other):
        grant_roles(dsn, as_role(dsn, "serving"), as_role(dsn, "jobs"))
    migrate(one, 1, down=True)
    grant_roles(one, as_role(one, "serving"), as_role(one, "jobs"))
    assert rows(as_role(other, "serving"), "SELECT FROM records") == []
    migrate(other, 1, down=True)
    grant_roles(other, as_role(other, "serving"), as_role(other, "jobs"))
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        rows(as_role(other, "serving"), "SELECT 1")


def test_cells_advisory_locks_are_their_own(cell_dsn: str) -> None:
    found = []
    for schema in CELLS:
        dsn = in_cell(cell_dsn, schema)
        with dropping(dsn), connected(dsn) as connection, schema_change(connection, 1000) as cursor:
            cursor.execute("SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' ORDER BY 2")
            found.append(cursor.fetchall())
    (one, other) = found
    assert [number for _, number in one] == [number for _, number in other]
    assert {key for key, _ in one}.isdisjoint({key for key, _ in other})


def test_cells_prepared_statements_have_names_of_their_own() -> None:
    names = {StatementNames(Names(schema)).statement(LOCK).name for schema in CELLS}
    assert len(names | {LOCK.name}) == 3


def test_cells_channels_on_the_bus_are_their_own() -> None:
    assert len({channel_of("tidemark", "e", schema) for schema in ("", *CELLS)}) == 3


async def test_cells_files_of_one_are_not_listed_by_the_other(tmp_path: Path) -> None:
    chosen = [
        settings_with(data={"dir": str(tmp_path)}, postgres={"schema": schema}) for schema in ("", *CELLS)
    ]
    assert len({files_dir(one) for one in chosen}) == 3
    stores = [open_blobs(one) for one in chosen]
    try:
        writer = stores[1].open_draft(Draft(UploadRef(1, "a" * 32), 0, 0))
        await writer.flush([b"bytes"])
        await writer.close()
        listed = [[one async for some in store.list_stored(1 << 60) for one in some] for store in stores]
        assert [len(found) for found in listed] == [0, 1, 0]
    finally:
        for store in stores:
            store.close()


def _last_day(dsn: str) -> date:
    with connected(dsn) as connection:
        return last_begin(partitions_of(connection, EVENTS))


async def test_cells_partitions_of_one_leave_the_others_as_they_are(cell_dsn: str) -> None:
    one, other = (in_cell(cell_dsn, schema) for schema in CELLS)
    today = datetime.now(UTC).date()
    before = _last_day(other)
    await asyncio.to_thread(ensure_partitions, one, today, 20)
    assert (_last_day(one), _last_day(other)) == (today + timedelta(days=21), before)


def test_cells_migrations_of_one_leave_the_others_as_they_are(cell_dsn: str) -> None:
    one, other = (in_cell(cell_dsn, schema) for schema in CELLS)
    standing = status(other)
    migrate(one, 0, down=True)
    assert all(state.applied_at is None for state in status(one))
    assert status(other) == standing
    assert migrate(one) == [state.name for state in standing]


def test_connected_commit_that_a_node_did_not_confirm_is_unknown(cell_dsn: str) -> None:
    """The warning is that of Citus."""
    warning = "RAISE WARNING 'failed to commit transaction on 127.0.0.1:9701'"
    with (
        pytest.raises(StoreUnknownError, match=r"127\.0\.0\.1:9701: see what was done"),
        connected(cell_dsn) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"DO $$ BEGIN {warning}; END $$")
