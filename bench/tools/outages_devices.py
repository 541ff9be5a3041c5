"""Devices that see their database go away: those that do as the guide says, and those with an open socket."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from random import Random
from typing import Final

from aiohttp import ClientSession

from bench.client.device import Device
from bench.client.edits import Settled
from bench.client.retry import Backoff
from bench.client.store import Store
from bench.load.simple_device import SimpleDevice

_ANSWER_S: Final = 15.0


class _ToldBackoff(Backoff):
    """A backoff that knows until when its device waits."""

    due_s = 0.0

    def failed(self, retry_after_ms: int = 0) -> float:
        wait_s = super().failed(retry_after_ms)
        self.due_s = time.monotonic() + wait_s
        return wait_s


class Guided(Device):
    """A device that does as the guide says. ``applied`` are the versions that its edits became."""

    def __init__(self, name: str, home: Path, url: str, signed: str, session: ClientSession) -> None:
        self.name = name
        self.edits = 0
        self.applied: list[int] = []
        self.odd: list[str] = []
        random = Random(name)
        store = Store(home / f"{name}.sqlite", name, domains=["note"], durability="NORMAL")
        super().__init__(store, url, lambda: signed, session, unit=random.random, on_settled=self._note)
        self._backoff = self._told = _ToldBackoff(random.random)

    def write(self) -> int:
        """Edit its record."""
        self.edits += 1
        self.edit("task", f"record of {self.name}", "put", {"number": self.edits})
        return self.edits

    def _note(self, settled: Settled) -> None:
        result = settled.result
        if result.status == "applied" and result.version is not None:
            self.applied.append(result.version)
        else:
            self.odd.append(f"{self.name}: edit {settled.edit} became {result.status}")

    @property
    def answered(self) -> int:
        """How many of its edits have an outcome."""
        return len(self.applied) + len(self.odd)

    def own_wait_s(self, now_s: float) -> float:
        """Return how long it still waits by its own backoff."""
        pause_s = 0.0 if self._protocol is None else self._protocol.pause_s or 0.0
        return max(pause_s, self._told.due_s - now_s, 0.0)


class OpenDevice(SimpleDevice):
    """A socket that is open all the time, and says nothing until it is told to try."""

    def __init__(self, name: str) -> None:
        super().__init__(answer_s=_ANSWER_S)
        self.name = name
        self.acknowledged: list[str] = []
        self._made = 0

    async def push(self) -> str:
        """Send a new edit. Returns the type of the answer, or the error's code."""
        self._made += 1
        record_id = f"{self.name}-{self._made}"
        item = {"domain": "task", "id": record_id, "op": "put", "data": {"number": 1}}
        try:
            answer = await self.ask("sync", key=secrets.token_hex(8), items=[item])
        except TimeoutError:
            return "silence"
        if answer["type"] != "synced":
            return str(answer["code"])
        self.acknowledged.append(record_id)
        return "synced"
