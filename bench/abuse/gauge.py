"""What an attack takes: a worker's memory, CPU, its loop's time and longest stretch, room in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.harness.load_run import Target
from storage.postgres.blocking import connected

_SAMPLE_S: Final = 0.05
#: Below this part of a core, over that time, a worker counts as having nothing to do.
_CALM: Final = 0.05
_CALM_S: Final = 0.75
_PAGE_S: Final = ClientTimeout(30.0)
_LONGEST: Final = "tidemark_loop_delay_longest_seconds"
_CHARGED: Final = "tidemark_loop_charged_seconds_total"
_TABLES: Final = (
    *("records", "events", "conflict_resolution_log", "quarantine", "sync_idempotency_record"),
    "upload_session",
)
_ROWS: Final = " + ".join(
    f"(SELECT count(*) FROM {table} WHERE tenant_id = tenants.tenant_id)" for table in _TABLES
)
_HELD: Final = f"SELECT pg_database_size(current_database()), {_ROWS} FROM tenants WHERE name = %s"
_BUSY: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'"
    " AND datname = current_database() AND pid <> pg_backend_pid()"
)


class Gauge:
    """Measures the worker that listens on a port of this host, and its database with one tenant in it."""

    def __init__(self, target: Target, tenant: str) -> None:
        self._target = target
        self._tenant = tenant
        self.look_again()

    def look_again(self) -> None:
        """Find the worker anew, after a restart."""
        self._worker = _listener(self._target.port)

    def held(self) -> tuple[int, ...]:
        """Return how many bytes the database has, and how many rows the tenant has in all tables together."""
        return self._read(_HELD, self._tenant)

    def _read(self, statement: str, *values: str) -> tuple[int, ...]:
        with connected(self._target.dsn) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return tuple(map(int, cursor.fetchall()[0]))

    async def calm(self, patience_s: float) -> bool:
        """Wait until worker and database have nothing to do, since accepted work outlasts attacks.

        Tells whether they have.
        """
        until_s = perf_counter() + patience_s
        while perf_counter() < until_s:
            before_s = self._used_s().get("share", 0.0)
            await asyncio.sleep(_CALM_S)
            used_s = self._used_s().get("share", 0.0) - before_s
            if used_s < _CALM * _CALM_S and self._read(_BUSY) == (0,):
                return True
        return False

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what has the figures of the block once it is over, named as those of Abuse.

        Those of a worker that is not of this host, or does not tell them, are left out.
        """
        figures: dict[str, Any] = {}
        told_s, used_s, rss_bytes = await self._told_s(), self._used_s(), self._rss_bytes()
        peaks, began_s = [rss_bytes], perf_counter()
        watching = asyncio.create_task(self._watch(peaks))
        try:
            yield figures
        finally:
            watching.cancel()
        now_s, window_s = self._used_s(), perf_counter() - began_s
        peaks.append(self._rss_bytes())
        figures |= {"window_s": window_s}
        figures |= {name: (now_s[name] - used_s[name]) / window_s for name in now_s}
        if now_s:
            figures["grown_mib"] = (max(peaks) - rss_bytes) / (1 << 20)
        told_now_s = await self._told_s()
        if _LONGEST in told_now_s:
            figures["stretch_ms"] = 1000 * told_now_s[_LONGEST]
        if _CHARGED in told_s and _CHARGED in told_now_s:
            figures["charged"] = (told_now_s[_CHARGED] - told_s[_CHARGED]) / window_s

    async def _watch(self, peaks: list[int]) -> None:
        while True:
            peaks.append(self._rss_bytes())
            await asyncio.sleep(_SAMPLE_S)

    async def _told_s(self) -> dict[str, float]:
        """Read the longest stretch of the loop since the last time, and the time charged so far."""
        url = f"http://{self._target.host}:{self._target.port}/metrics"
        with suppress(ClientError, OSError):  # TimeoutError is one
            async with ClientSession(timeout=_PAGE_S) as session, session.get(url) as page:
                lines = [line.partition(" ") for line in (await page.text()).splitlines()]
                return {name: float(value) for name, _, value in lines if name in (_LONGEST, _CHARGED)}
        return {}

    def _rss_bytes(self) -> int:
        return 0 if self._worker is None else int(self._worker.memory_info().rss)

    def _used_s(self) -> dict[str, float]:
        """Read how long the worker was on a core, and its loop; and how long that was ready without one."""
        if self._worker is None:
            return {}
        pid, times = self._worker.pid, self._worker.cpu_times()
        share_s = float(times.user + times.system)
        with suppress(OSError):  # the account of the first thread, which the event loop has
            ran_ns, queued_ns, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
            return {"share": share_s, "loop": int(ran_ns) / 1e9, "queued": int(queued_ns) / 1e9}
        return {"share": share_s, "loop": share_s, "queued": 0.0}


def _listener(port: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return psutil.Process(one.pid)
    return None
