"""What an attack takes: a worker's memory, CPU, its loop's time and longest stretch, room in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

import psutil

from bench.harness.child import progress
from storage.postgres.blocking import connected

_SAMPLE_S: Final = 0.05
#: Below this part of a core, over that time, a worker counts as having nothing to do.
_CALM: Final = 0.05
_CALM_S: Final = 0.75
_PATIENCE_S: Final = 30.0
_TELL_S: Final = 3.0
_LONGEST: Final = b"tidemark_loop_delay_longest_seconds"
_CHARGED: Final = b"tidemark_loop_charged_seconds_total"
_TABLES: Final = (
    "records",
    "events",
    "conflict_resolution_log",
    "quarantine",
    "sync_idempotency_record",
    "upload_session",
)
_ROWS: Final = " UNION ALL ".join(
    f"SELECT count(*) FROM {table} WHERE tenant_id = %(tenant)s" for table in _TABLES
)
_BUSY: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'"
    " AND datname = current_database() AND pid <> pg_backend_pid()"
)


class Loop(NamedTuple):
    """Seconds that a worker's event loop was on a core, and that it was ready and had none."""

    ran_s: float
    queued_s: float


class Gauge:
    """Measures the worker that listens on a port of this host, and its database."""

    def __init__(self, host: str, port: int, dsn: str) -> None:
        self._host = host
        self._port = port
        self._dsn = dsn
        self._worker = _listener(port)
        self.peak_bytes = 0
        self.share = 0.0
        self.loop = Loop(0.0, 0.0)
        self.window_s = 0.0

    @property
    def of_this_host(self) -> bool:
        """Whether memory and CPU can be read."""
        return self._worker is not None

    def rss_bytes(self) -> int:
        """Read the worker's memory; 0 where it cannot be read."""
        return 0 if self._worker is None else int(self._worker.memory_info().rss)

    def database_bytes(self) -> int:
        """Read how large the database is."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            return int(cursor.fetchall()[0][0])

    def rows(self, tenant: str) -> int:
        """Count what a tenant has in all tables together."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (tenant,))
            ((tenant_id,),) = cursor.fetchall()
            cursor.execute(_ROWS, {"tenant": tenant_id})
            return sum(row[0] for row in cursor.fetchall())

    def look_again(self) -> None:
        """Find the worker anew, after a restart."""
        self._worker = _listener(self._port)

    async def calm(self, patience_s: float) -> bool:
        """Wait until the worker and its database have nothing to do, as accepted work outlasts attacks.

        Tells whether they have.
        """
        began_s = told_s = perf_counter()
        while perf_counter() - began_s < patience_s:
            before_s = self._cpu_s()
            await asyncio.sleep(_CALM_S)
            if self._cpu_s() - before_s < _CALM * _CALM_S and not self._queries():
                return True
            if perf_counter() - told_s > _TELL_S:
                told_s = perf_counter()
                progress(f"  the worker has been busy for {told_s - began_s:.0f} s with what the attack left")
        return False

    def _queries(self) -> int:
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(_BUSY)
            return int(cursor.fetchall()[0][0])

    async def told(self) -> tuple[float | None, float | None]:
        """Read the longest stretch since the last time, and the time charged so far, in seconds.

        Each is None where the server does not tell.
        """
        found: dict[bytes, float] = {}
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_PATIENCE_S):
                page = await _page(self._host, self._port)
            for line in page.splitlines():
                name, _, value = line.partition(b" ")
                if name in (_LONGEST, _CHARGED):
                    found[name] = float(value)
        return found.get(_LONGEST), found.get(_CHARGED)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep the peak of memory, and the parts of a core that are used, of the block."""
        self.peak_bytes, before_s, began_s = self.rss_bytes(), self._cpu_s(), perf_counter()
        loop = self._loop()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            self.peak_bytes = max(self.peak_bytes, self.rss_bytes())
            self.window_s = perf_counter() - began_s
            self.share = (self._cpu_s() - before_s) / self.window_s
            ran_s, queued_s = self._loop()
            self.loop = Loop((ran_s - loop.ran_s) / self.window_s, (queued_s - loop.queued_s) / self.window_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self.peak_bytes = max(self.peak_bytes, self.rss_bytes())

    def _loop(self) -> Loop:
        """Read the account of the worker's first thread, which its event loop has."""
        if self._worker is None:
            return Loop(0.0, 0.0)
        pid = self._worker.pid
        with suppress(OSError):
            ran_ns, queued_ns, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
            return Loop(int(ran_ns) / 1e9, int(queued_ns) / 1e9)
        return Loop(self._cpu_s(), 0.0)

    def _cpu_s(self) -> float:
        if self._worker is None:
            return 0.0
        times = self._worker.cpu_times()
        return float(times.user + times.system)


def _listener(port: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return psutil.Process(one.pid)
    return None


async def _page(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /metrics HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return await reader.read()
    finally:
        writer.close()
