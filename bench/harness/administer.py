"""The stores of a database, for benchmarks and tests that have no event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from storage.postgres.commands import command_database
from storage.postgres.pool import Database

Result = TypeVar("Result")


def administer(
    dsn: str, call: Callable[[Database], Coroutine[Any, Any, Result]], jobs_dsn: str = ""
) -> Result:
    """Run a call on a database's stores in an event loop and a thread of its own.

    Args:
        dsn: The database.
        call: The call.
        jobs_dsn: As ``command_database`` takes it.

    Raises:
        StoreError: As the call.
    """

    async def run() -> Result:
        async with command_database(dsn, jobs_dsn) as database:
            return await call(database)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
