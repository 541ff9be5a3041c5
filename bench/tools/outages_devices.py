"""Devices that see their database go away: those that do as the guide says, and those with an open socket."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from aiohttp import ClientSession

from bench.client.device import Device
from bench.client.edits import Settled
from bench.client.retry import Backoff
from bench.client.store import Store
from bench.load.websocket_client import Socket, connect, frame

_ANSWER_S: Final = 15.0


class _ToldBackoff(Backoff):
    """Knows until when its device waits."""

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
        """Give how long it waits by itself."""
        pause_s = 0.0 if self._protocol is None else self._protocol.pause_s or 0.0
        return max(pause_s, self._told.due_s - now_s, 0.0)


class OpenDevice:
    """A socket that is open all the time, and says nothing until it is told to try."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0
        self.acknowledged: list[str] = []
        self._answer: asyncio.Future[str] | None = None
        self._welcomed = asyncio.Event()
        self._number = 0

    async def open(self, port: int, signed: str) -> None:
        """Connect, and wait for the welcome. Raises HandshakeError, OSError, TimeoutError."""
        self._welcomed.clear()
        self._socket: Socket = await connect("127.0.0.1", port, signed, self._heard, self._ended)
        async with asyncio.timeout(_ANSWER_S):
            await self._welcomed.wait()

    def _ended(self, _: int) -> None:
        self.closed += 1
        self._give("closed")

    def _heard(self, text: bytes) -> None:
        message = msgspec.json.decode(text)
        match message["type"]:
            case "welcome":
                self._welcomed.set()
            case "synced":
                self._give("synced")
            case "error":
                self._give(message["code"])
            case _:
                pass

    def _give(self, answer: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def sync(self) -> str:
        """Send an edit that is new; gives the type of the answer, or the error's code."""
        self._number += 1
        record_id = f"{self.name}-{self._number}"
        item = {"domain": "task", "id": record_id, "op": "put", "data": {"number": 1}}
        self._answer = asyncio.get_running_loop().create_future()
        key = secrets.token_hex(8)
        message = {"type": "sync", "id": record_id, "key": key, "items": [item]}
        self._socket.write(frame(msgspec.json.encode(message)))
        try:
            async with asyncio.timeout(_ANSWER_S):
                answer = await self._answer
        except TimeoutError:
            return "silence"
        if answer == "synced":
            self.acknowledged.append(record_id)
        return answer

    def close(self) -> None:
        """Leave."""
        self._socket.close()
