"""Several workers under one supervisor: whoever dies or is renewed, no promise is broken."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import Self

import pytest
from aiohttp import ClientError, ClientSession
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.clusters import role_variables
from bench.harness.server import free_ports
from compose.deployment import open_deployment
from handlers.server import ListenError, reserve_ports
from run import cli
from storage.embedded.servers import Services
from tests.harness.numbered_edits import TENANTS, Editor, audit, progressed
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, backend, tenants_held
from tests.harness.services import rows
from tests.harness.supervised import Supervise, Supervised
from tests.harness.ws_device import Closed, Device, Json, connected, put, token

DEVICES = 20
#: Acknowledgements to wait for before and after something happens under load.
ACKS = 200


class Obedient(Editor):
    """A device that comes back as the contract says: when the goodbye told it to, or with backoff.

    ``away_s`` are the times from a lost connection to the next welcome, ``reasons`` those of its goodbyes.
    """

    def __init__(self, name: str, tenant: str, progress: asyncio.Condition) -> None:
        super().__init__(name, tenant, progress)
        self.away_s: list[float] = []
        self.reasons: set[str] = set()
        self._told_s: float | None = None

    async def work(self, urls: list[str], session: ClientSession) -> None:
        """Edit until told to stop and everything is answered, over one URL after the other."""
        loop, signed = asyncio.get_running_loop(), token(self.tenant, self.name)
        lost_s, tries = None, 0
        while not (self.stopping and not self._unanswered):
            urls = urls[1:] + urls[:1]
            try:
                async with connected(urls[0], session, signed=signed) as device:
                    if lost_s is not None:
                        self.away_s.append(loop.time() - lost_s)
                    lost_s, tries, self._told_s = None, 0, None
                    waiting: set[int] = set()
                    while True:
                        await self._fill(device, waiting)
                        if not waiting:
                            return
                        self._take(await device.receive(), waiting)
                        async with self._progress:
                            self._progress.notify_all()
            except (Closed, ClientError, ConnectionError, TimeoutError):
                lost_s = lost_s or loop.time()
                tries += 1
                told_s, self._told_s = self._told_s, None
                await asyncio.sleep(min(0.1 * 2**tries, 2.0) if told_s is None else told_s)

    def _take(self, answer: Json, waiting: set[int]) -> None:
        if answer["type"] == "goodbye":
            self._told_s = answer["retry_after_ms"] / 1000
            self.reasons.add(answer["reason"])
        super()._take(answer, waiting)


class Load:
    """Obedient devices on all workers, each starting at another one's port."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._progress = asyncio.Condition()
        self.editors = [
            Obedient(f"device-{number}", TENANTS[number % 3], self._progress) for number in range(DEVICES)
        ]

    async def __aenter__(self) -> Self:
        """Wait until they are at work."""
        self._session = ClientSession()
        self._tasks = [
            asyncio.create_task(
                editor.work(self._urls[number % 2 :] + self._urls[: number % 2], self._session)
            )
            for number, editor in enumerate(self.editors)
        ]
        await self.goes_on()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Have them end, everything being answered."""
        for editor in self.editors:
            editor.stopping = True
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._session.close()

    async def goes_on(self) -> None:
        """Wait until more was acknowledged."""
        await progressed(list(self.editors), self._progress, ACKS)

    def check(self, dsn: str) -> float:
        """Hold what was acknowledged against the database; gives the longest time away, in seconds."""
        assert [editor.wrong for editor in self.editors if editor.wrong] == []
        audit(dsn, list(self.editors))
        return max((away_s for editor in self.editors for away_s in editor.away_s), default=0.0)


async def test_workers_serve_one_port_and_one_of_their_own_until_sigterm(supervise: Supervise) -> None:
    server = await supervise()
    async with ClientSession() as http:
        for url in (server.url, server.url_of(1), server.url_of(2)):
            async with http.get(url + "/readyz") as response:
                assert response.status == 200
    pids = [server.pid_of(worker) for worker in (1, 2)]
    assert await server.terminate() == 0
    assert server.said == ""
    assert {line["worker"] for line in server.told("stopped")} == {1, 2}
    assert len(server.told("workers_stopping", signal="SIGTERM")) == 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_worker_killed_under_load_comes_back(supervise: Supervise, dsn: str) -> None:
    server = await supervise()
    async with Load([server.url_of(1), server.url_of(2)]) as load:
        os.kill(server.pid_of(1), signal.SIGKILL)
        await server.until("worker_died", worker=1, status=-signal.SIGKILL)
        await server.until("listening", 2, worker=1)
        await load.goes_on()
    print(f"\nlongest time away after a kill: {load.check(dsn):.1f} s")  # noqa: T201
    assert len(server.told("listening", worker=2)) == 1
    assert await server.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_renewed_repeatedly_under_load_lose_nothing(
    supervise: Supervise, dsn: str, workers: int
) -> None:
    server = await supervise(workers)
    before = [server.pid_of(worker) for worker in range(1, workers + 1)]
    async with Load([server.url, server.url]) as load:
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        await server.until("workers_renewed")
        await load.goes_on()
    print(f"\nlongest time away over a renewal: {load.check(dsn):.1f} s")  # noqa: T201
    assert any(editor.away_s for editor in load.editors)
    reasons = set().union(*(editor.reasons for editor in load.editors))
    assert "restart" in reasons
    assert "drain" not in reasons
    assert set(before).isdisjoint({server.pid_of(worker) for worker in range(1, workers + 1)})
    assert await server.terminate() == 0
    assert server.told("worker_died") == server.told("worker_killed") == []
    assert server.said == ""


async def test_worker_draining_leaves_new_devices_to_the_others(supervise: Supervise) -> None:
    server = await supervise()
    async with ClientSession() as http, connected(server.url_of(1), http) as device:
        os.kill(server.pid_of(2), signal.SIGSTOP)  # so that only the other can take newcomers in
        try:
            os.kill(server.pid_of(1), signal.SIGTERM)
            await server.until("draining", worker=1)
            assert (await device.waited("goodbye"))["reason"] == "drain"
            with pytest.raises(ClientError):
                await http.get(server.url_of(1) + "/healthz")
            newcomer = asyncio.create_task(_status(http, server.url + "/healthz"))
        finally:
            os.kill(server.pid_of(2), signal.SIGCONT)
        assert await newcomer == 200
    await server.until("listening", 2, worker=1)


async def _status(http: ClientSession, url: str) -> int:
    async with http.get(url) as response:
        return response.status


async def test_drain_second_signal_ignored(supervise: Supervise, dsn: str) -> None:
    server = await supervise()
    async with ClientSession() as http, connected(server.url_of(1), http) as device:
        with tenants_held(dsn, "acme"):
            answer = asyncio.create_task(device.push(put("a1", None, n=1)))
            await backend(dsn, WAITS_FOR_LOCK)
            server.process.terminate()
            await server.until("draining", worker=1)
            os.kill(server.pid_of(1), signal.SIGTERM)
        assert [result["status"] for result in await answer] == ["applied"]
        assert await device.closed() == 1012
    assert await server.ended() == 0
    assert {line["worker"] for line in server.told("stopped")} == {1, 2}


async def test_workers_supervisor_killed_drain(supervise: Supervise) -> None:
    server = await supervise()
    async with ClientSession() as http, connected(server.url_of(1), http) as device:
        await device.push(put("a1", None, n=1))
        server.process.kill()
        assert (await device.waited("goodbye"))["reason"] == "drain"
        assert await device.closed() == 1012
    assert await server.ended() == -signal.SIGKILL  # and the log has ended, which workers write as well
    assert {line["worker"] for line in server.told("stopped")} == {1, 2}


async def test_device_moved_between_workers_keeps_its_health(supervise: Supervise, dsn: str) -> None:
    server = await supervise()
    older: Device | None = None
    pushed = 0
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        http = await stack.enter_async_context(ClientSession())
        while pushed < 6 or await _let_in(http, server) < {1, 2}:  # the system chooses who takes a newcomer
            newer = await stack.enter_async_context(connected(server.url, http))
            await newer.push(put(f"r{pushed}", None, n=pushed))
            pushed += 1
            if older is not None:
                assert await older.closed() == 4409
            older = newer
    assert await server.terminate() == 0
    assert rows(dsn, "SELECT total_syncs, failed_syncs FROM sync_device_health") == [(pushed, 0)]


async def _let_in(http: ClientSession, server: Supervised) -> set[int]:
    """The workers that let devices in so far."""
    async with http.get(server.url + "/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return {
        int(sample.labels["worker"])
        for family in families
        for sample in family.samples
        if sample.name == "tidemark_connections_opened_total" and sample.value
    }


# -- what keeps several from starting ---------------------------------------------------------


def _refusal(dsn: str, port: int, workers: int = 2, **variables: str) -> str:
    environment = {**role_variables(dsn), "TIDEMARK__AUTH__SECRET": "s" * 40, **variables}
    arguments = ("serve", "--workers", str(workers), "--port", str(port))
    ended = CliRunner().invoke(cli, arguments, obj=open_deployment, env=environment, catch_exceptions=False)
    assert ended.exit_code == 1
    return ended.stderr.strip()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs are the test's own."""
    monkeypatch.setattr("compose.deployment.configure", lambda *_, **__: None)


@pytest.mark.usefixtures("quiet")
def test_several_workers_without_redis_or_port_refused(dsn: str, services: Services) -> None:
    away = _refusal(dsn, free_ports(3), TIDEMARK__REDIS__URL="redis://127.0.0.1:1")
    assert away.startswith("Error: several workers meet in Redis, which is away")
    assert _refusal(dsn, 0, TIDEMARK__REDIS__URL=services.redis_url).startswith("Error: server.port: ")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("shared", [False, True])
def test_serve_port_taken_by_a_sharing_owner_named(dsn: str, services: Services, *, shared: bool) -> None:
    port = free_ports(3)
    with socket.create_server(("127.0.0.1", port + 2), reuse_port=shared):
        said = _refusal(dsn, port, TIDEMARK__REDIS__URL=services.redis_url)
    assert said.startswith(f"Error: cannot listen on 127.0.0.1:{port + 2} (Address already in use): ")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("workers", [1, 2])
def test_serve_port_reserved_by_another_server_refused(dsn: str, services: Services, workers: int) -> None:
    with reserve_ports("127.0.0.1", [0]) as (port,):
        said = _refusal(dsn, port, workers, TIDEMARK__REDIS__URL=services.redis_url)
    assert said.startswith(f"Error: cannot listen on 127.0.0.1:{port} (Address already in use): ")


def test_reserved_port_shared_with_its_own_workers() -> None:
    with reserve_ports("localhost", [0, 0]) as (port, other):
        assert port != other
        with socket.create_server(("127.0.0.1", port), reuse_port=True) as first:
            second = socket.create_server(("127.0.0.1", port), reuse_port=True)
            first.close()
            with second, socket.create_connection(("127.0.0.1", port)):
                second.accept()[0].close()
        with pytest.raises(ListenError), reserve_ports("127.0.0.1", [port]):
            pass
    with reserve_ports("127.0.0.1", [port]) as (again,):  # earlier connections are no obstacle
        assert again == port
