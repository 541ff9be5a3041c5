"""SIGTERM: what was accepted is answered, everybody is told when to come back, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession

from storage.embedded.servers import Services
from tests.harness.admin import ensure_tenant
from tests.harness.in_process_server import new_tenants
from tests.harness.postgres_stalls import QUEUED, WAITS_FOR_LOCK, backend, counts, tenants_held
from tests.harness.server_process import ServerProcess
from tests.harness.services import execute, rows
from tests.harness.ws_device import Closed, Device, Json, connected, put, token

DEVICES = 12
UNDER_WAY = 8
#: Answers that load runs for before the signal comes.
ANSWERS = 300


class Draining(ServerProcess):
    """A server in a process of its own, and clients of it."""

    def __init__(
        self, http: ClientSession, stack: AsyncExitStack, dsn: str, redis_url: str, home: Path, **more: str
    ) -> None:
        super().__init__(dsn, redis_url, home, **more)
        self.http = http
        self._stack = stack

    async def device(self, name: str) -> Device:
        """Connect a device."""
        return await self._stack.enter_async_context(
            connected(self.url, self.http, signed=token("acme", name))
        )

    def drain(self) -> None:
        """Tell it to go."""
        self.tell(signal.SIGTERM)

    async def status(self, path: str) -> int:
        """Ask a probe."""
        async with self.http.get(self.url + path) as response:
            return response.status


Serve = Callable[..., Awaitable[Draining]]


@pytest.fixture
async def serve(dsn: str, services: Services, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start a server with some of its environment set."""
    ensure_tenant(dsn, "acme")
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(ClientSession())

        async def start(**environment: str) -> Draining:
            server = Draining(http, stack, dsn, services.redis_url, tmp_path, **environment)
            stack.push_async_callback(server.stop)
            await server.start()
            return server

        yield start


def _sync(key: str, *items: Json) -> Json:
    return {"type": "sync", "id": key, "key": key, "items": list(items) or [put(key, None, n=1)]}


def _keys(dsn: str) -> int:
    ((count,),) = rows(dsn, "SELECT count(*) FROM sync_idempotency_record")
    return int(str(count))


async def _rest(device: Device) -> tuple[list[Json], int | None]:
    """What still came, and the close code."""
    code = await device.closed()
    return device.unasked, code


async def test_drain_accepted_messages_answered_later_ones_refused(serve: Serve, dsn: str) -> None:
    server = await serve()
    execute(dsn, new_tenants("elsewhere"))  # a server has those of its start in memory
    devices = [await server.device(f"d{number}") for number in range(3)]
    with tenants_held(dsn, "acme"), tenants_held(dsn) as policies:
        await devices[0].send(_sync("0-first"))
        await backend(dsn, WAITS_FOR_LOCK)
        for number, device in enumerate(devices):
            for turn in range(5):
                await device.send(_sync(f"{number}-{turn}"))
        over_http = asyncio.create_task(_post(server, "http"))
        await counts(server, QUEUED, 16)
        policies.run("LOCK TABLE tenant_conflict_policy")
        waits = asyncio.create_task(_turned_away(server, "elsewhere"))
        await backend(dsn, WAITS_FOR_LOCK + " AND query LIKE '%JOIN tenant_conflict_policy%'")
        server.drain()
        for device in devices:
            goodbye = await device.receive()
            assert (goodbye["type"], goodbye["reason"]) == ("goodbye", "drain")
            assert goodbye["retry_after_ms"] > 0
            await device.send(_sync("late"))
        assert (await server.status("/readyz"), await server.status("/healthz")) == (503, 200)
        await _turned_away(server, "acme")
        assert await _post(server, "late") == 503
        policies.let_go()
        await waits
        assert _keys(dsn) == 0
    for number, device in enumerate(devices):
        messages, code = await _rest(device)
        expected = [f"{number}-{turn}" for turn in range(5)]
        assert [one["id"] for one in messages] == (["0-first"] if number == 0 else []) + expected
        assert {one["type"] for one in messages} == {"synced"}
        assert code == 1012
    assert await over_http == 200
    assert await server.ended() == 0
    assert _keys(dsn) == 17


async def _turned_away(server: Draining, tenant: str) -> None:
    """Ask for a socket that is refused as one of a server that goes away."""
    headers = {"Authorization": f"Bearer {token(tenant, 'new')}"}
    async with server.http.ws_connect(f"{server.url}/v1/sync", headers=headers) as socket:
        error = await socket.receive_json()
        assert (error["code"], error["retryable"]) == ("unavailable", True)
        assert error["retry_after_ms"] > 0
        await socket.receive()
        assert socket.close_code == 4503


async def _post(server: Draining, key: str) -> int:
    headers = {"Authorization": f"Bearer {token('acme', 'other')}"}
    async with server.http.post(f"{server.url}/v1/sync", json=_sync(key), headers=headers) as response:
        return response.status


class Pusher:
    """Pushes until it is sent away; lets ``warm`` know of every answer.

    ``answers`` are by key, None for what was not answered.
    """

    def __init__(self, name: str, warm: asyncio.Semaphore) -> None:
        self.name = name
        self.answers: dict[str, Json | None] = {}
        self.goodbyes: list[Json] = []
        self._warm = warm

    @property
    def answered(self) -> int:
        """How many syncs were answered."""
        return sum(answer is not None for answer in self.answers.values())

    def item(self, key: str) -> Json:
        """The one item of a sync: edits of one record, each on the one before."""
        number = int(key)
        return put(self.name, number or None, n=number)

    async def run(self, server: Draining) -> int | None:
        """Push under load; gives the close code."""
        device = await server.device(self.name)
        try:
            while True:
                while not self.goodbyes and len(self.answers) - self.answered < UNDER_WAY:
                    key = str(len(self.answers))
                    self.answers[key] = None
                    await device.send(_sync(key, self.item(key)))
                message = await device.receive()
                if message["type"] == "goodbye":
                    self.goodbyes.append(message)
                else:
                    assert message["type"] == "synced", message
                    self.answers[message["id"]] = message
                    self._warm.release()
        except Closed as closed:
            return closed.code
        except ConnectionError:
            return (await _rest(device))[1]

    async def check_again(self, server: Draining) -> None:
        """Send everything again in order: what was answered is repeated, what was not is applied now."""
        device = await server.device(self.name)
        for number, (key, answer) in enumerate(self.answers.items()):
            again = await device.told("synced", "sync", key=key, items=[self.item(key)])
            if answer is None:
                assert again["replayed"] is False
            else:
                assert (again["replayed"], again["results"]) == (True, answer["results"])
            (result,) = again["results"]
            assert (result["status"], result["version"]) == ("applied", number + 1)


async def test_drain_under_load_loses_nothing(serve: Serve, dsn: str) -> None:
    server = await serve()
    warm = asyncio.Semaphore(0)
    pushers = [Pusher(f"d{number}", warm) for number in range(DEVICES)]
    running = [asyncio.create_task(pusher.run(server)) for pusher in pushers]
    for _ in range(ANSWERS):
        await warm.acquire()
    server.drain()
    assert await asyncio.gather(*running) == [1012] * DEVICES
    assert await server.ended() == 0
    assert server.events[-1] == "stopped"
    for pusher in pushers:
        (goodbye,) = pusher.goodbyes
        assert goodbye["reason"] == "drain"
    assert len({pusher.goodbyes[0]["retry_after_ms"] for pusher in pushers}) > 1, "all come back at once"
    assert _keys(dsn) == sum(pusher.answered for pusher in pushers)
    await server.start()
    for pusher in pushers:
        await pusher.check_again(server)


async def test_drain_unanswered_message_replayed_or_applied_after_restart(serve: Serve, dsn: str) -> None:
    server = await serve(TIDEMARK__SERVER__DRAIN_S="0.5")
    device = await server.device("phone")
    with tenants_held(dsn, "acme"):
        for key in ("0", "1"):
            await device.send(_sync(key))
        await backend(dsn, WAITS_FOR_LOCK)
        server.drain()
        messages, code = await _rest(device)
        assert [one["type"] for one in messages] == ["goodbye"]
        assert code == 1012
        assert await server.ended() == 0
    assert "drain_incomplete" in server.events
    await server.start()
    device = await server.device("phone")
    for key in ("0", "1"):
        (result,) = await device.sync(key, put(key, None, n=1))
        assert (result["status"], result["version"]) == ("applied", 1)
