"""What an attack takes: a worker's memory, CPU and longest stretch of its loop, and room in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Final

import psutil

from storage.direct import connected

_SAMPLE_S: Final = 0.05
#: Below this part of a core, over that time, a worker counts as having nothing to do.
_CALM: Final = 0.05
_CALM_S: Final = 0.75
_PATIENCE_S: Final = 30.0
_LONGEST: Final = b"tidemark_loop_delay_longest_seconds "


class Gauge:
    """Looks at the worker that listens on a port of this host, and at its database."""

    def __init__(self, host: str, port: int, dsn: str) -> None:
        self._host = host
        self._port = port
        self._dsn = dsn
        self._worker = _listener(port)
        self.peak_bytes = 0
        self.share = 0.0

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

    def look_again(self) -> None:
        """Find the worker anew, after a restart."""
        self._worker = _listener(self._port)

    async def calm(self, patience_s: float) -> bool:
        """Wait until the worker has nothing to do, as accepted work outlasts attacks; tell whether it has."""
        give_up_s = perf_counter() + patience_s
        while perf_counter() < give_up_s:
            before_s = self._cpu_s()
            await asyncio.sleep(_CALM_S)
            if self._cpu_s() - before_s < _CALM * _CALM_S:
                return True
        return False

    async def stretch_ms(self) -> float | None:
        """Read the longest stretch since the last time; None where the server does not tell."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_PATIENCE_S):
                page = await _page(self._host, self._port)
            for line in page.splitlines():
                if line.startswith(_LONGEST):
                    return float(line.split()[1]) * 1000
        return None

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep the peak of memory, and the part of a core that is used, of the block."""
        self.peak_bytes, before_s, began_s = self.rss_bytes(), self._cpu_s(), perf_counter()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            self.peak_bytes = max(self.peak_bytes, self.rss_bytes())
            self.share = (self._cpu_s() - before_s) / (perf_counter() - began_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self.peak_bytes = max(self.peak_bytes, self.rss_bytes())

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
