"""The stores of a database, for a benchmark that has no event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from storage.postgres.commands import command_database
from storage.postgres.pool import Database

Result = TypeVar("Result")


def administer(dsn: str, call: Callable[[Database], Coroutine[Any, Any, Result]]) -> Result:
    """Run a call on a database's stores in an event loop and a thread of its own. Raises StoreError."""

    async def run() -> Result:
        async with command_database(dsn) as database:
            return await call(database)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
