"""What was acknowledged is never lost and nothing is applied twice, whoever is killed when.

Each device edits one record, numbering its edits, with several syncs under way at a time. What was not
answered it sends again under the same key. In the end every edit must have been ``applied`` exactly once,
as the version that carries its number: a lost one would leave a gap, one applied twice a version too many.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from storage.embedded import Services, embedded
from storage.migrate import migrate
from tests.device import Closed, connected, token
from tests.processes import ServerProcess
from tests.services import execute, rows

#: Kills in the normal run; ``TIDEMARK_KILLS=20`` is the long one.
KILLS = int(os.environ.get("TIDEMARK_KILLS", "3"))
DEVICES = 24
UNDER_WAY = 4
#: How many acknowledgements to wait for between two kills.
ACKS_BETWEEN = 400


class Home:
    """Services of this test alone, that may be killed."""

    def __init__(self, directory: Path, services: Services) -> None:
        self.directory = directory
        self.services = services

    def crash_postgresql(self) -> None:
        """Stop PostgreSQL as ``pg_ctl -m immediate`` does, and start it again."""
        pid_file = self.directory / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        while pid_file.exists():
            os.sched_yield()
        with embedded(self.directory):
            pass


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    directory = Path(tempfile.mkdtemp(prefix="tidemark-crash-"))
    directory.chmod(0o711)
    try:
        with embedded(directory / "data") as services:
            migrate(services.dsn)
            execute(
                services.dsn,
                "INSERT INTO tenants (name) VALUES ('acme'), ('globex'), ('initech')",
                "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
            )
            yield Home(directory / "data", services)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Editor:
    """A device that numbers its edits. ``acknowledged`` are the numbers answered, each with its seq."""

    def __init__(self, name: str, tenant: str, progress: asyncio.Condition) -> None:
        self.name = name
        self.tenant = tenant
        self.acknowledged: dict[int, int] = {}
        self.wrong: list[Any] = []
        self.stopping = False
        self._progress = progress
        self._unanswered: deque[int] = deque()
        self._sent = 0

    async def run(self, server: ServerProcess, session: ClientSession) -> None:
        """Edit until told to stop and everything is answered."""
        signed = token(self.tenant, self.name)
        while not (self.stopping and not self._unanswered):
            try:
                async with connected(server.url, session, signed=signed) as device:
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
        for number in self._unanswered:
            if number not in waiting:
                waiting.add(number)
                await self._send(device, number)
        while not self.stopping and len(waiting) < UNDER_WAY:
            self._sent += 1
            self._unanswered.append(self._sent)
            waiting.add(self._sent)
            await self._send(device, self._sent)

    async def _send(self, device: Any, number: int) -> None:
        at = f"2026-01-02T03:{number // 60 % 60:02}:{number % 60:02}.{number:06}Z"
        item = {
            "domain": "task",
            "id": f"record of {self.name}",
            "op": "put",
            "base": number - 1 or None,
            "at": at,
            "data": {"number": number},
        }
        await device.send({"type": "sync", "id": str(number), "key": f"key {number}", "items": [item]})

    def _take(self, answer: dict[str, Any], waiting: set[int]) -> None:
        if answer["type"] == "goodbye":
            return
        number = int(answer["id"])
        waiting.discard(number)
        if answer["type"] == "error":
            if not answer["retryable"]:
                self.wrong.append(answer)
            return
        result = answer["results"][0]
        if result["status"] != "applied" or result["version"] != number:
            self.wrong.append(answer)
        self._unanswered.remove(number)
        self.acknowledged[number] = result["seq"]


async def _under_fire(home: Home, kill: Callable[[ServerProcess], Awaitable[None]]) -> None:
    server = ServerProcess(home.services.dsn, home.services.redis_url, home.directory)
    progress = asyncio.Condition()
    tenants = ("acme", "globex", "initech")
    editors = [Editor(f"device-{n}", tenants[n % 3], progress) for n in range(DEVICES)]
    await server.start()
    try:
        async with ClientSession() as session, asyncio.TaskGroup() as group:
            for editor in editors:
                group.create_task(editor.run(server, session))
            for _ in range(KILLS):
                target = _acknowledged(editors) + ACKS_BETWEEN + random.randrange(ACKS_BETWEEN)
                async with asyncio.timeout(60), progress:
                    while _acknowledged(editors) < target:
                        await progress.wait()
                await kill(server)
            for editor in editors:
                editor.stopping = True
        assert [editor.wrong for editor in editors if editor.wrong] == []
        _audit(home.services.dsn, editors)
        assert await server.terminate() == 0
    finally:
        await server.stop()


def _acknowledged(editors: list[Editor]) -> int:
    return sum(len(editor.acknowledged) for editor in editors)


def _audit(dsn: str, editors: list[Editor]) -> None:
    """Compare what the devices were told with what PostgreSQL holds."""
    stored = {
        (tenant, record_id): (version, number)
        for tenant, record_id, version, number in rows(
            dsn,
            "SELECT t.name, r.id, r.version, (r.data ->> 'number')::int FROM records AS r JOIN tenants AS t"
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
    assert keys == [(_acknowledged(editors), _acknowledged(editors))]


async def test_the_server_is_killed_under_load(home: Home) -> None:
    async def kill(server: ServerProcess) -> None:
        await server.kill()
        await server.start()

    await _under_fire(home, kill)


async def test_postgresql_crashes_under_load(home: Home) -> None:
    async def crash(_: ServerProcess) -> None:
        await asyncio.to_thread(home.crash_postgresql)

    await _under_fire(home, crash)
