"""A server with narrow bounds that floods meet soon, and the count of what it holds."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from engine.model.audit import EventName
from tests.contract.test_frames_masked import HANDSHAKE, shaken
from tests.harness.in_process_server import SHARED, Running
from tests.harness.postgres_stalls import until
from tests.harness.raw_http import Wire, wired
from tests.harness.ws_device import Json
from tests.security.arena import Arena, figures

#: Bounds that a flood of a few messages meets.
NARROW: Final[Json] = {
    "server": {
        **SHARED["server"],
        "address_connections": 8,
        "head_s": 0.2,
        "body_s": 0.2,
        "write_patience_s": 0.3,
    },
    "limits": {"messages_per_minute": 300, "open_requests": 8, "waiting_bytes": 16 << 20},
    "uploads": {"open_per_device": 5, "begun_per_device": 20, "files_per_record": 3},
    "tenant_limits": {
        "record_rows": 150,
        "conflict_rows": 20,
        "quarantine_rows": 20,
        "event_rows": 20,
        "future_event_rows": 10,
        "device_rows": 500,
    },
}


#: Connections to the database, and threads, that come and go beside a flood. A flood of connections has more
#: than these, and one of a single socket is seen in ``connections``.
_SLACK: Final = 6


class Held(NamedTuple):
    """What this process holds, server and clients together."""

    descriptors: int
    threads: int
    tasks: int
    files: int
    connections: float
    subscriptions: float
    partial_bytes: float

    def exceed(self, before: Held) -> list[str]:
        """Return what grew."""
        slack = {"descriptors": _SLACK, "threads": _SLACK, "tasks": _SLACK}
        figures = zip(self._fields, self, before, strict=True)
        return [name for name, now, then in figures if now > then + slack.get(name, 0)]


class Pond:
    """A server with narrow bounds on the arena's database, and where its files are."""

    def __init__(self, arena: Arena, running: Running, files: Path) -> None:
        self.arena = arena
        self.running = running
        self.url = running.url
        self._files = files
        self._numbers = iter(range(1_000_000))

    def name(self) -> str:
        """A device that no flood used before."""
        return f"flood-{next(self._numbers)}"

    async def held(self) -> Held:
        """Count what is held."""
        gc.collect()
        metrics = await self._metrics()
        await asyncio.sleep(0)
        return Held(
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            len(asyncio.all_tasks()),
            sum(len(files) for _, _, files in os.walk(self._files)),
            *(metrics[f"tidemark_{name}"] for name in ("connections", "subscriptions", "partial_bytes")),
        )

    async def _metrics(self) -> dict[str, float]:
        """Read the metrics of the server over a connection that is gone afterwards."""
        async with wired(self.url) as wire:
            return figures((await wire.ask("GET", "/metrics", {"Connection": "close"})).body)

    async def counted(self) -> Callable[[EventName], Awaitable[int]]:
        """Returns how many security events of a kind there were since."""
        before = await self._metrics()

        async def since(event: EventName) -> int:
            name = f'tidemark_security_events_total{{event="{event}"}}'
            return int((await self._metrics())[name] - before[name])

        return since

    @asynccontextmanager
    async def calm(self, *changing: str, tenant: str = "acme") -> AsyncIterator[None]:
        """Check that after a flood all is as before, and that another device syncs on."""
        before = await self.held()
        async with self.arena.holds(*changing, tenants=(tenant,)):
            yield

        async def is_calm() -> bool:
            after = await self.held()
            return after.exceed(before) == []

        try:
            async with asyncio.timeout(10):
                await until(is_calm)
        except TimeoutError:
            assert (await self.held()).exceed(before) == []

    @asynccontextmanager
    async def socket(self, device: str) -> AsyncIterator[Wire]:
        """Open a socket by hand."""
        async with wired(self.url) as wire:
            assert (await shaken(wire, HANDSHAKE | self.running.headers(device))).status == 101
            yield wire
