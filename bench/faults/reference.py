"""The reference device in a run with faults, with everything that it sends and hears noted in the history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.client.device import Device
from bench.client.store import Store
from bench.faults.device import Changes, decode
from bench.faults.history import History
from bench.faults.recorder import Recorder
from bench.faults.workload import Worker

_IDLE_S: Final = 0.1
_PULL_S: Final = 10.0


class ReferenceDevice:
    """One device of a tenant, with its store. ``per_s`` is how often it makes edits; 0 is never."""

    def __init__(
        self,
        name: str,
        tenant: str,
        token: str,
        url: str,
        history: History,
        changes: Changes,
        seed: str,
        home: Path,
        session: ClientSession,
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.per_s = 1.0
        self.pulled = asyncio.Event()
        self._token = token
        self._url = url
        self._recorder = Recorder(name, tenant, history, changes)
        self._session = session
        self._random = Random(seed)
        self._worker = Worker(name, tenant, Random(f"{seed} work"))
        self._store = Store(home / f"{name}.sqlite", name, durability="NORMAL")
        self._device = Device(
            self._store,
            url,
            lambda: token,
            session,
            unit=self._random.random,
            on_settled=lambda _: self._count(),
            observer=self._recorder,
        )
        self._settled = 0
        self._pulling: asyncio.Task[None] | None = None
        #: The number of its newest edit.
        self.last = 0

    def _count(self) -> None:
        self._settled += 1

    @property
    def versions(self) -> dict[tuple[str, str], int]:
        """The records that it holds, with their versions."""
        return {(domain, name): version for domain, name, version, _ in self._store.replica()}

    def waits(self, until: int) -> bool:
        """Whether an edit up to that number has no outcome; they get theirs in order."""
        return self._settled < until

    async def run(self) -> None:
        """Work and stay connected until cancelled."""
        running = asyncio.create_task(self._device.run())
        try:
            while not running.done():
                await asyncio.sleep(self._random.expovariate(self.per_s) if self.per_s else _IDLE_S)
                for item in self._worker.items({}) if self.per_s else ():
                    self._device.edit(item.domain, item.id, item.op, item.data)  # type: ignore[arg-type]
                    self.last += 1
            await running
        finally:
            running.cancel()
            await asyncio.wait([running])
            self._store.close()

    def pull_whole(self) -> None:
        """Pull everything from null over HTTP; ``pulled`` is set when it is there."""
        self._pulling = asyncio.create_task(self._pull())

    async def _pull(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        cursor, more = "", True
        while more:
            query = {"cursor": cursor, "limit": "1000"}
            address, timeout = f"{self._url}/v1/changes", ClientTimeout(_PULL_S)
            try:
                async with self._session.get(
                    address, params=query, headers=headers, timeout=timeout
                ) as response:
                    page = decode(b'{"type":"changes",' + (await response.read())[1:])
                    response.raise_for_status()
            except (ClientError, OSError, TimeoutError):
                await asyncio.sleep(_IDLE_S)
                continue
            self._recorder.page("whole", page.changes)
            cursor, more = page.cursor, page.more
        self.pulled.set()
