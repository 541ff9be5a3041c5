"""The database of one command: no pool to speak of, and no limit on how long a statement takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.runtime.ports import StoreUnavailableError
from storage.postgres.connection import PoolerDetection
from storage.postgres.pool import CannotConnectError, Database
from storage.postgres.transactions import COMMAND_LIMITS


@asynccontextmanager
async def command_database(dsn: str, jobs_dsn: str = "") -> AsyncIterator[Database]:
    """Open a database for one command.

    Nothing is prepared: a statement runs once, and behind a pooler its preparation could get lost.

    Args:
        dsn: The database.
        jobs_dsn: The same as the role of jobs, for what is asked of all tenants; empty if that is ``dsn``'s.

    Raises:
        DatabaseFaultError: The database refused the connection, with the remedy.
        StoreUnavailableError: The database is away.
    """
    pooler = PoolerDetection(found=True)
    everyone = Database(jobs_dsn or dsn, 1, pooler, COMMAND_LIMITS)
    database = Database(dsn, 1, pooler, COMMAND_LIMITS, everyone)
    try:
        yield database
    except CannotConnectError as error:
        if len(error.causes) == 1:
            raise error.causes[0] from None
        raise StoreUnavailableError("; ".join(map(str, error.causes))) from None
    finally:
        await database.close()
        await everyone.close()
