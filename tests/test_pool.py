"""Connections to PostgreSQL where the driver is of no help."""

from __future__ import annotations

import os

import pytest

from engine.ports import StoreUnavailableError
from storage.pool import ConnectionLostError, Database
from tests.services import execute

_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


async def test_a_lost_connection_is_noticed_beside_a_thousand_sockets(dsn: str) -> None:
    """The driver asks ``select``, which knows no descriptor from 1024 on."""
    held = [os.dup(0) for _ in range(1100)]
    database = Database(dsn, 1)
    try:
        with pytest.raises(ConnectionLostError):
            async with database.session() as session:
                await session.run(f"{_TERMINATE.replace('pid <> pg_backend_pid()', 'true')}")
        async with database.session() as session:
            await session.run("SELECT 1")
        execute(dsn, _TERMINATE)
        assert await database.query("SELECT 1") == [(1,)]
    finally:
        await database.close()
        for descriptor in held:
            os.close(descriptor)


async def test_a_standby_is_not_taken_for_the_primary(dsn: str) -> None:
    execute(
        dsn,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END $$",
    )
    database = Database(dsn, 1)
    with pytest.raises(StoreUnavailableError, match="not the primary"):
        await database.acquire()


async def test_the_server_ends_a_read_before_the_client_gives_up(dsn: str) -> None:
    database = Database(dsn, 1)
    asked = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"
    assert await database.query(asked) == [("9000",)]
    async with database.session() as session:
        assert await session.run("SHOW statement_timeout") == [("0",)]
    await database.close()
