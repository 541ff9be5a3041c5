"""Devices that number their edits, so that a lost one and one applied twice both show.

Each edits one record with several syncs under way at a time. What was not answered it sends again under
the same key. In the end every edit must have been ``applied`` exactly once, as the version that carries
its number: a lost one would leave a gap, one applied twice a version too many.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import ClientError, ClientSession

from tests.harness.services import rows
from tests.harness.ws_device import Closed, connected, token

UNDER_WAY = 4
Opened = Callable[[int, str, int, str], str]
TENANTS = ("acme", "globex", "initech")


class Listening(Protocol):
    """A server that devices find again after it was away."""

    @property
    def url(self) -> str:
        """Where it listens."""


class Editor:
    """One device. ``acknowledged`` are the numbers answered, each with its seq.

    ``refused`` are the codes of errors that asked it to come back. ``signed`` is its token.
    """

    def __init__(
        self, name: str, tenant: str, progress: asyncio.Condition, signed: str | None = None
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.signed = signed or token(tenant, name)
        self.acknowledged: dict[int, int] = {}
        self.wrong: list[Any] = []
        self.refused: set[str] = set()
        self.stopping = False
        self._progress = progress
        self._unanswered: deque[int] = deque()
        self._sent = 0

    async def run(self, server: Listening, session: ClientSession) -> None:
        """Edit until told to stop and everything is answered."""
        while not (self.stopping and not self._unanswered):
            try:
                async with connected(server.url, session, signed=self.signed) as device:
                    waiting: set[int] = set()
                    while True:
                        await self._fill(device, waiting)
                        if not waiting:
                            return
                        self._take(await device.receive(), waiting)
                        async with self._progress:
                            self._progress.notify_all()
            except (Closed, ClientError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.05)

    async def _fill(self, device: Any, waiting: set[int]) -> None:
        if waiting and any(number not in waiting for number in self._unanswered):
            return  # one was refused: sent again behind those under way, it would come after them
        for number in self._unanswered:
            if number not in waiting:
                waiting.add(number)
                await self._send(device, number)
        while not self.stopping and len(waiting) < UNDER_WAY:
            self._sent += 1
            self._unanswered.append(self._sent)
            waiting.add(self._sent)
            await self._send(device, self._sent)

    def item(self, number: int) -> dict[str, Any]:
        """Give an edit, the same whenever it is sent."""
        return {
            "domain": "task",
            "id": f"record of {self.name}",
            "op": "put",
            "base": number - 1 or None,
            "at": f"2026-01-02T03:{number // 60 % 60:02}:{number % 60:02}.{number:06}Z",
            "data": {"number": number},
        }

    async def _send(self, device: Any, number: int) -> None:
        items = [self.item(number)]
        await device.send({"type": "sync", "id": str(number), "key": f"key {number}", "items": items})

    def _take(self, answer: dict[str, Any], waiting: set[int]) -> None:
        if answer["type"] == "goodbye":
            return
        number = int(answer["id"])
        waiting.discard(number)
        if answer["type"] == "error":
            if answer["retryable"]:
                self.refused.add(answer["code"])
            else:
                self.wrong.append(answer)
            return
        result = answer["results"][0]
        if result["status"] != "applied" or result["version"] != number:
            self.wrong.append(answer)
        self._unanswered.remove(number)
        self.acknowledged[number] = result["seq"]


def editors_of(count: int, progress: asyncio.Condition) -> list[Editor]:
    """Make devices, spread over the tenants, that tell ``progress`` of each answer."""
    return [Editor(f"device-{number}", TENANTS[number % 3], progress) for number in range(count)]


async def progressed(editors: list[Editor], progress: asyncio.Condition, by: int) -> None:
    """Wait until so many more were acknowledged."""
    target = acknowledged(editors) + by
    async with asyncio.timeout(60), progress:
        while acknowledged(editors) < target:
            await progress.wait()


def acknowledged(editors: list[Editor]) -> int:
    """Count what was answered so far."""
    return sum(len(editor.acknowledged) for editor in editors)


def audit(dsn: str, editors: list[Editor], opened: Opened = lambda _, __, ___, text: text) -> None:
    """Compare what the devices were told with what PostgreSQL holds.

    Args:
        dsn: The database.
        editors: The devices.
        opened: Opens the data of a record, by its tenant's number, id and version.
    """
    stored = {
        (str(tenant), str(record_id)): (
            version,
            json.loads(opened(int(str(number)), str(record_id), int(str(version)), str(data)))["number"],
        )
        for tenant, number, record_id, version, data in rows(
            dsn,
            "SELECT t.name, t.tenant_id, r.id, r.version, r.data::text FROM records AS r JOIN tenants AS t"
            " USING (tenant_id)",
        )
    }
    told: dict[str, list[int]] = {}
    for editor in editors:
        last = len(editor.acknowledged)
        assert sorted(editor.acknowledged) == list(range(1, last + 1))
        assert stored[editor.tenant, f"record of {editor.name}"] == (last, last)
        told.setdefault(editor.tenant, []).extend(editor.acknowledged.values())
    read = rows(dsn, "SELECT name, seq FROM tenants JOIN tenant_counters USING (tenant_id)")
    counters = {row[0]: row[1] for row in read}
    for tenant, seqs in told.items():
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        assert counters[tenant] == len(seqs)
    keys = rows(dsn, "SELECT count(*), count(DISTINCT (tenant_id, key_hash)) FROM sync_idempotency_record")
    assert keys == [(acknowledged(editors), acknowledged(editors))]
