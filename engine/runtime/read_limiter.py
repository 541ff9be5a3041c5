"""Turns of the store's connections for what devices read: fair between tenants, then between devices.

A read that takes long is made of pieces, and takes a turn for each, so that others read between them. One
device reads one thing at a time. What waits is served tenant by tenant, of each tenant device by device.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from engine.runtime.metrics import Metric, counter, gauge
from engine.runtime.ports import StoreUnavailableError
from engine.wire.errors import SyncError

#: Reads of one device that may wait. A socket waits for 4 and is not read from then; a browser asks for the
#: pictures of a page at once.
MAX_WAITING: Final = 64
#: How long one waits for its turn, as for a connection.
_WAIT_S: Final = 5.0
_RETRY_MS: Final = 1000


class Reader(NamedTuple):
    """Who reads."""

    tenant_id: int
    device_id: str


class ReadLimiter:
    """At most ``at_once`` turns under way; the process's own reads take none."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._refused = 0
        self._reading: set[Reader] = set()
        self._waiting: dict[Reader, deque[asyncio.Future[None]]] = {}
        #: Who may be next: tenants in their order, of each its devices in theirs.
        self._next: OrderedDict[int, OrderedDict[Reader, None]] = OrderedDict()

    def metrics(self) -> Iterator[Metric]:
        """Yield what waits, and what was refused."""
        waiting = sum(len(told) for told in self._waiting.values())
        yield gauge("tidemark_reads_waiting", "Reads of devices that wait for their turn", waiting)
        yield counter("tidemark_reads_refused", "Reads refused, or without a turn in time", self._refused)

    @asynccontextmanager
    async def slot(self, reader: Reader) -> AsyncIterator[None]:
        """Wait for a turn and have it.

        Raises:
            SyncError: ``overloaded``, where too much of the device waits already.
            StoreUnavailableError: No turn came in time.
        """
        if self._free and not self._next and reader not in self._reading:
            self._begin(reader)
        else:
            await self._wait(reader)
        try:
            yield
        finally:
            self._end(reader)

    async def _wait(self, reader: Reader) -> None:
        waiting = self._waiting.setdefault(reader, deque())
        if len(waiting) >= MAX_WAITING:
            self._refused += 1
            raise SyncError(
                "overloaded", "too many reads of this device wait already", retry_after_ms=_RETRY_MS
            )
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(told)
        if reader not in self._reading:
            self._line_up(reader)
            self._give()
        try:
            async with asyncio.timeout(_WAIT_S):
                await told
        except BaseException as error:
            if told.done() and not told.cancelled():  # the turn came with what ended the wait
                self._end(reader)
            else:
                self._forget(reader, told)
            if isinstance(error, TimeoutError):
                self._refused += 1
                raise StoreUnavailableError("no turn to read came in time") from None
            raise

    def _begin(self, reader: Reader) -> None:
        self._free -= 1
        self._reading.add(reader)

    def _end(self, reader: Reader) -> None:
        self._free += 1
        self._reading.discard(reader)
        if reader in self._waiting:
            self._line_up(reader)
        self._give()

    def _line_up(self, reader: Reader) -> None:
        self._next.setdefault(reader.tenant_id, OrderedDict()).setdefault(reader)

    def _give(self) -> None:
        while self._free and self._next:
            tenant_id, devices = self._next.popitem(last=False)
            reader, _ = devices.popitem(last=False)
            if devices:
                self._next[tenant_id] = devices  # behind the others
            told = self._first(reader)
            if told is not None:
                self._begin(reader)
                told.set_result(None)

    def _first(self, reader: Reader) -> asyncio.Future[None] | None:
        """Take the first that waits of a device. One that was cancelled, and has not run since, does not."""
        waiting = self._waiting[reader]
        told = waiting.popleft()
        while told.cancelled() and waiting:
            told = waiting.popleft()
        if not waiting:
            del self._waiting[reader]
        return None if told.cancelled() else told

    def _forget(self, reader: Reader, told: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(reader)
        if waiting is None or told not in waiting:  # it was passed over
            return
        waiting.remove(told)
        if waiting:
            return
        del self._waiting[reader]
        devices = self._next.get(reader.tenant_id)
        if devices is not None:
            devices.pop(reader, None)
            if not devices:
                del self._next[reader.tenant_id]
