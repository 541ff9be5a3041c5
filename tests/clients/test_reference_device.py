"""The reference device on a real server: offline and online, cut off, killed, sent away, in conflict."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from bench.client.device import Decision, Device, OfflineError, StoppedError
from bench.client.edits import Held
from bench.client.store import Store
from bench.load.proxy import Chances, proxied
from engine.wire.messages import JSON_SUBPROTOCOL
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import execute, rows
from tests.harness.ws_device import day, item

pytestmark = ON_SHARED


def tenant(running: Running) -> str:
    """The id of the test's tenant, in SQL."""
    return f"(SELECT tenant_id FROM tenants WHERE name = '{running.tenant()}')"


class Phone:
    """A device with its file; ``reboot`` leaves nothing but the file."""

    def __init__(self, running: Running, path: Path, session: ClientSession, **options: Any) -> None:
        self._running = running
        self._path = path
        self._session = session
        self._options = {"url": running.url, "token": lambda: running.token("phone"), **options}
        self._task: asyncio.Task[None] | None = None
        self.boot()

    def boot(self, kind: type[Store] = Store) -> None:
        """Start with what the file holds."""
        self.store = kind(self._path, "phone", durability="NORMAL")
        self.device = Device(self.store, session=self._session, unit=lambda: 0.0, **self._options)

    def online(self) -> asyncio.Task[None]:
        """Connect and stay connected."""
        self._task = asyncio.create_task(self.device.run())
        return self._task

    async def offline(self) -> None:
        """Drop the connection."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something that the device hears makes it so."""
        async with asyncio.timeout(20):
            while not holds():
                self.device._heard.clear()
                await self.device._heard.wait()

    async def settled(self) -> None:
        """Wait until all is answered; a device that stopped meanwhile fails the test."""
        assert self._task is not None
        settled = asyncio.create_task(self.device.settled())
        try:
            async with asyncio.timeout(20):
                await asyncio.wait([settled, self._task], return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                await self._task
        finally:
            settled.cancel()

    async def end(self) -> None:
        """Leave nothing but the file."""
        if self._task is not None:
            await self.offline()
        self.store.close()


MakePhone = Callable[..., Phone]


@pytest_asyncio.fixture(loop_scope="session")
async def make(shared: Running, tmp_path: Path) -> AsyncIterator[MakePhone]:
    phones: list[Phone] = []

    async def end() -> None:
        for phone in phones:
            await phone.end()

    async with ClientSession() as session:

        def made(running: Running = shared, **options: Any) -> Phone:
            phones.append(Phone(running, tmp_path / f"{len(phones)}.sqlite", session, **options))
            return phones[-1]

        yield made
        await end()


async def test_device_offline_edits_reach_all_devices_once_online(shared: Running, make: MakePhone) -> None:
    phone = make()
    phone.device.edit("task", "a", "put", {"title": "pump", "status": "ASSIGNED"})
    phone.device.edit("task", "a", "patch", {"status": "INPROGRESS"})
    phone.device.edit("metrics", "m", "append", {"metric_name": "n", "value": 1, "timestamp": day(1)})
    phone.online()
    await phone.settled()
    assert phone.device.store.record("task", "a") == (2, {"title": "pump", "status": "INPROGRESS"}, 0)
    office = await shared.device("office")
    [change] = (await office.pull())["changes"]
    assert (change["version"], change["data"]) == (2, {"title": "pump", "status": "INPROGRESS"})
    await office.push(item("patch", "task", "a", base=2, data={"title": "pump 3"}))
    await phone.until(lambda: phone.device.store.record("task", "a").version == 3)
    assert phone.device.store.record("task", "a").data == {"title": "pump 3", "status": "INPROGRESS"}


async def test_device_wrong_clock_corrected(shared: Running, make: MakePhone) -> None:
    clock = itertools.count(1_000_000_000_000_000, 1000)
    phone = make(clock_us=lambda: next(clock))
    phone.device.edit("journal", "a", "put", {})
    phone.online()
    await phone.settled()
    year = "SELECT extract(year FROM to_timestamp(at_us / 1000000))::int, extract(year FROM now())::int"
    [(stored, present)] = rows(shared.dsn, f"{year} FROM records WHERE tenant_id = " + tenant(shared))
    assert stored == present


async def test_device_lost_answer_requested_again_and_applied_once(shared: Running, make: MakePhone) -> None:
    port = int(shared.url.rpartition(":")[2])
    async with proxied("127.0.0.1", port, Random(1), Chances(lost=1.0)) as proxy:
        phone = make(url=proxy.url)
        phone.device.edit("journal", "a", "put", {"n": 1})
        phone.online()
        await phone.until(lambda: proxy.cuts >= 2)
        proxy.chances.lost = 0.0
        await phone.settled()
        assert phone.device.store.record("journal", "a") == (1, {"n": 1}, 0)
        stored = rows(shared.dsn, "SELECT version FROM records WHERE tenant_id = " + tenant(shared))
        assert stored == [(1,)]
        await phone.offline()


async def test_device_held_change_listed_and_settled_by_a_choice(shared: Running, make: MakePhone) -> None:
    office = await shared.device("office")
    await office.push(*[item("put", "note", name, data={"by": "office"}) for name in "abcd"])
    phone = make()
    for name in "abcd":
        phone.device.edit("note", name, "put", {"by": "phone"})
    phone.online()
    await phone.settled()
    assert [held.server for held in phone.store.conflicts] == [b'{"by":"office"}'] * 4
    decided = {
        "a": Decision("server"),
        "b": Decision("client"),
        "c": Decision("merged", {"by": "both"}),
        "d": None,
    }
    assert await phone.device.resolve(lambda held: decided[held.record_id]) == 3
    assert [held.record_id for held in phone.store.conflicts] == ["d"]
    await phone.until(lambda: sum(version for _, _, version, _ in phone.store.replica()) == 7)
    assert [phone.device.store.record("note", name).data for name in "abc"] == [
        {"by": "office"}, {"by": "phone"}, {"by": "both"},
    ]  # fmt: skip


async def test_device_stale_decision_asked_for_again(shared: Running, make: MakePhone) -> None:
    office = await shared.device("office")
    await office.push(item("put", "note", "a", data={"n": 1}))
    phone = make()
    phone.device.edit("note", "a", "put", {"n": 2})
    phone.online()
    await phone.settled()
    seen: list[bytes | None] = []

    def choose(held: Held) -> Decision:
        seen.append(held.server)
        if len(seen) == 1:
            execute(
                shared.dsn,
                "UPDATE records SET version = 2, seq = 2, data = '{\"n\":9}' WHERE tenant_id = "
                + tenant(shared),
                "UPDATE tenant_counters SET seq = 2 WHERE tenant_id = " + tenant(shared),
            )
        return Decision("client")

    assert await phone.device.resolve(choose) == 1
    assert seen == [b'{"n":1}', b'{"n":9}']


async def test_device_offline_calls_that_need_a_connection_say_so(make: MakePhone) -> None:
    with pytest.raises(OfflineError):
        await make().device.list_conflicts()


async def test_device_expired_token_replaced_and_second_refusal_ends(
    shared: Running, make: MakePhone
) -> None:
    tokens = iter([shared.token("phone", exp=1), shared.token("phone")])
    phone = make(token=lambda: next(tokens))
    phone.online()
    await phone.settled()
    stopped = make(token=lambda: shared.token("phone", exp=1))
    with pytest.raises(StoppedError, match="token"):
        await stopped.online()


async def test_device_replaced_connects_again_once(shared: Running, make: MakePhone) -> None:
    phone = make()
    running = phone.online()
    await phone.settled()
    copy = await shared.device("phone")
    await copy.told("heartbeat_ack", "heartbeat")
    assert await copy.closed() == 4409, "the phone came back"
    await phone.settled()
    await (await shared.device("phone")).told("heartbeat_ack", "heartbeat")
    with pytest.raises(StoppedError, match="4409"):
        await running


async def test_device_replaced_later_connects_again(
    shared: Running, make: MakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.client.device._ONCE_S", 0.0)
    phone = make()
    running = phone.online()
    for _ in range(2):
        await phone.settled()
        copy = await shared.device("phone")
        await copy.told("heartbeat_ack", "heartbeat")
        assert await copy.closed() == 4409
    assert not running.done()


async def test_device_replaced_without_close_frame_connects_again_once(
    make: MakePhone,
) -> None:
    calls = 0

    async def replaced(request: web.Request) -> web.WebSocketResponse:
        nonlocal calls
        calls += 1
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        await socket.send_json({"type": "goodbye", "reason": "replaced", "retry_after_ms": 0})
        assert request.transport is not None
        request.transport.close()
        return socket

    app = web.Application()
    app.router.add_get("/v1/sync", replaced)
    async with TestServer(app) as other:
        with pytest.raises(StoppedError):
            await make(url=str(other.make_url("")).rstrip("/")).online()
    assert calls == 2


async def test_device_expired_cursor_drops_missing_records(shared: Running, make: MakePhone) -> None:
    phone = make()
    phone.device.edit("journal", "kept", "put", {})
    phone.device.edit("journal", "lost", "put", {})
    phone.online()
    await phone.settled()
    await phone.offline()
    execute(
        shared.dsn,
        "DELETE FROM records WHERE id = 'lost' AND tenant_id = " + tenant(shared),
    )
    office = await shared.device("office")
    of_others = (await office.pull(domains=["task"]))["cursor"]
    phone.store.page([], of_others, last=True)
    phone.online()
    await phone.settled()
    assert [name for _, name, _, _ in phone.store.replica()] == ["kept"]


class Killed(BaseException):
    """The process is gone."""


def dying(steps: Iterator[int], at: int) -> type[Store]:
    """A store whose process is killed at one step: at a transaction's begin, before or after its commit."""

    class Dying(Store):
        @contextmanager
        def _transaction(self) -> Iterator[Any]:
            _live(steps, at)
            with super()._transaction() as run:
                yield run
                _live(steps, at)
            _live(steps, at)

    return Dying


def _live(steps: Iterator[int], at: int) -> None:
    if next(steps) == at:
        raise Killed


#: More than a whole life has, also on a busy machine, where it takes more turns.
STEPS = 100


async def _worked(phone: Phone, name: str, made: list[int]) -> None:
    """Two edits, the second on the answer to the first; ``made`` counts those whose call returned."""
    phone.device.edit("journal", name, "put", {"n": 1})
    made.append(1)
    phone.online()
    await phone.settled()
    phone.device.edit("journal", name, "patch", {"m": 2})
    made.append(2)
    await phone.settled()


async def test_device_killed_at_any_step_loses_and_repeats_no_edit(make: MakePhone) -> None:
    """A life has no fixed number of steps: the page may come before the answer, or after it."""
    died: list[int] = []
    lives = itertools.takewhile(lambda at: at <= max(died, default=-1) + 3, range(STEPS))
    for at in lives:  # until three in a row live to the end
        phone, name, made, steps = make(), f"r{at}", list[int](), itertools.count()
        phone.store.close()
        try:
            phone.boot(dying(steps, at))
            await _worked(phone, name, made)
        except Killed:
            died.append(at)
        await phone.end()
        assert (at in died) == (next(steps) > at), "killed at the step, if its life came so far"
        phone.boot()
        shown = phone.device.store.record("journal", name).data or {}
        assert "n" in shown or 1 not in made
        assert "m" in shown or 2 not in made
        if "n" not in shown:
            phone.device.edit("journal", name, "put", {"n": 1})
        if "m" not in shown:
            phone.device.edit("journal", name, "patch", {"m": 2})
        phone.online()
        await phone.settled()
        assert phone.device.store.record("journal", name) == (2, {"n": 1, "m": 2}, 0), at
        await phone.offline()
    assert len(died) > 15
    assert died[-1] + 3 < STEPS, "three in a row lived to the end"
