"""Ways to stop PostgreSQL at a known place in a batch, and to see from outside that it stands there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import psycopg2
from aiohttp import ClientSession

from tests.harness.services import execute, rows

#: Conditions on ``pg_stat_activity``.
WAITS_FOR_LOCK: Final = "wait_event_type = 'Lock'"
SLEEPS: Final = "wait_event = 'PgSleep'"
WAITS_FOR_STANDBY: Final = "wait_event = 'SyncRep'"
HOLDS: Final = "state = 'idle in transaction'"

#: Metrics.
UNKNOWN: Final = "tidemark_commits_unknown_total"
RETRIES: Final = "tidemark_batch_retries_total"
QUEUED: Final = "tidemark_queued_messages"

#: How long to wait for what is bound to come.
PATIENCE_S: Final = 30.0
_GLANCE_S: Final = 0.005

#: Waits at COMMIT for as long as somebody holds the advisory lock, in naps, so that no lock_timeout counts.
_WAIT: Final = (
    "CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$"
    " BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.002); END LOOP;"
    " RETURN NULL; END $$"
)
_GATE: Final = (
    "CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON records DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate()"
)

T = TypeVar("T")


class Stall:
    """What another client holds, until it lets go."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg2.connect(dsn, application_name="stall")

    def run(self, statement: str) -> None:
        """Run a statement in the transaction that is held open."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def lock(self, tenant: str) -> None:
        """Lock a tenant's counter."""
        self.run(
            "SELECT FROM tenant_counters JOIN tenants USING (tenant_id)"
            f" WHERE name = '{tenant}' FOR UPDATE OF tenant_counters"
        )

    def let_go(self) -> None:
        """Give everything back."""
        self._connection.close()


@contextmanager
def tenants_held(dsn: str, *tenants: str) -> Iterator[Stall]:
    """Hold the tenants' counters, so that no batch of theirs begins."""
    stall = Stall(dsn)
    try:
        for tenant in tenants:
            stall.lock(tenant)
        yield stall
    finally:
        stall.let_go()


@contextmanager
def commits_held(dsn: str) -> Iterator[Stall]:
    """Let no COMMIT that writes records come to its end: it sleeps."""
    execute(dsn, _WAIT, _GATE)
    stall = Stall(dsn)
    try:
        stall.run("SELECT pg_advisory_xact_lock(1)")
        yield stall
    finally:
        stall.let_go()


async def until(look: Callable[[], Awaitable[T]]) -> T:
    """Look until there is something to see, and give it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if seen := await look():
                return seen
            await asyncio.sleep(_GLANCE_S)


async def backend(dsn: str, condition: str) -> int:
    """Wait until a server's connection to this database meets a condition, and give its process id."""

    async def look() -> list[tuple[object, ...]]:
        return await asyncio.to_thread(
            rows,
            dsn,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name = 'tidemark' AND {condition} ORDER BY query_start LIMIT 1",
        )

    return int(str((await until(look))[0][0]))


async def deadlocks(dsn: str) -> int:
    """Count the deadlocks in a database that nobody uses any more: its connections report as they end."""

    async def look() -> list[tuple[object, ...]]:
        return await asyncio.to_thread(
            rows,
            dsn,
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database() AND numbackends = 1",
        )

    return int(str((await until(look))[0][0]))


class Counting(Protocol):
    """A server whose metrics can be read."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def http(self) -> ClientSession:
        """Who asks."""


async def counted(server: Counting, name: str) -> float:
    """Read a metric."""
    async with server.http.get(f"{server.url}/metrics") as response:
        text = await response.text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


async def counts(
    server: Counting, name: str, at_least: float, unless: asyncio.Task[Any] | None = None
) -> None:
    """Wait until a metric has risen, or until ``unless`` is done, which makes it pointless."""

    async def look() -> bool:
        return (unless is not None and unless.done()) or await counted(server, name) >= at_least

    await until(look)
