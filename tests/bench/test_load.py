"""What the load generator sends, and how it counts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType, web
from hdrh.histogram import HdrHistogram

from bench.harness.processes import Trees
from bench.load import generator
from bench.load.device import Device, Tally
from bench.load.generator import Load
from bench.load.plan import Mark, Outcome, Plan, Unsure
from bench.load.precise_timer import Alarm
from bench.load.websocket_client import Socket, frame
from bench.load.workload import Worker, data_of, key_of, note_of, record_id
from engine.wire.messages import JSON_SUBPROTOCOL
from handlers.server import listening
from tests.harness.in_process_server import unbounded

Json = dict[str, Any]


def message(worker: Worker) -> Json:
    """Make a worker's next sync and read it back."""
    return msgspec.json.decode(worker.message(worker.next(0.0)), type=Json)


def test_a_device_makes_records_and_updates_those_it_knows() -> None:
    worker = Worker("d", lambda: 0.0)
    first, second = message(worker), message(worker)
    assert [sync["items"][0]["base"] for sync in (first, second)] == [None, None]
    worker.acknowledged(0, 1)
    third, fourth = message(worker), message(worker)
    assert (third["items"][0]["id"], third["items"][0]["base"]) == (record_id("d", 2), None)
    assert (fourth["items"][0]["id"], fourth["items"][0]["base"]) == (record_id("d", 0), 1)
    assert [sync["key"] for sync in (first, second, third, fourth)] == [key_of("d", n) for n in range(4)]


def test_a_record_under_way_is_left_alone() -> None:
    worker = Worker("d", lambda: 0.99)
    worker.next(0.0)
    worker.acknowledged(0, 1)
    sent = [worker.next(0.0) for _ in range(3)]
    assert [(one.record, one.base) for one in sent] == [(0, 1), (1, 0), (2, 0)]


def test_data_is_of_about_200_bytes_and_never_the_same_again() -> None:
    assert 190 <= len(data_of(12, 34)) <= 210
    assert msgspec.json.decode(data_of(7, 8), type=Json)["note"] == note_of(8)
    assert data_of(7, 8) != data_of(7, 9)


class Line(Socket):
    """A socket whose other end is a list."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        super().__init__("", lambda _: None, lambda _: None)
        self.frames: list[bytes] = []
        self.write = self.frames.append


@pytest.fixture
async def device() -> Device:
    """A device with an open line."""
    one = Device(3, "d", Worker("d", lambda: 0.0), Tally())
    one.socket = Line()
    return one


def tally(device: Device) -> Tally:
    return device._tally


def answer(device: Device, number: int = 0, **result: Any) -> None:
    """Answer a device's sync as applied, with some fields replaced."""
    usual = {"domain": "task", "id": record_id("d", 0), "status": "applied", "version": 1, "seq": 8}
    synced = {"type": "synced", "id": str(number), "replayed": False, "results": [usual | result]}
    device.received(msgspec.json.encode(synced))


async def test_latency_counts_from_the_intended_time(device: Device) -> None:
    device.send(perf_counter() - 10.0)
    answer(device)
    assert tally(device).latency_us[0] >= 10_000_000
    assert tally(device).lateness_us[0] >= 10_000_000


async def test_an_acknowledged_item_is_noted(device: Device) -> None:
    device.send(perf_counter())
    answer(device, version=1, seq=8)
    found = tally(device)
    noted = found.ack_device, found.ack_number, found.ack_record, found.ack_version, found.ack_seq
    assert [column.tolist() for column in noted] == [[3], [0], [0], [1], [8]]
    assert not found.errors
    assert device.under_way == 0


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({"status": "conflict"}, "item_conflict"),
        ({"status": "unchanged"}, "item_unchanged"),
        ({"version": 2}, "wrong_result"),
        ({"seq": None}, "wrong_result"),
        ({"id": "another"}, "wrong_result"),
        ({"domain": "ticket"}, "wrong_result"),
    ],
)
async def test_whatever_is_not_applied_as_asked_is_an_error(device: Device, result: Json, error: str) -> None:
    device.send(perf_counter())
    answer(device, **result)
    assert tally(device).errors == {error: 1}
    assert tally(device).unsure == [Unsure(3, 0, 0)]
    assert not tally(device).ack_seq


async def test_refusals_goodbyes_and_nonsense_are_counted(device: Device) -> None:
    device.send(perf_counter())
    device.received(b'{"type":"error","id":"0","code":"overloaded","message":"","retryable":true}')
    device.received(b'{"type":"goodbye","reason":"drain","retry_after_ms":1}')
    device.received(b"nonsense")
    answer(device, 77)
    device.ended(1012)
    device.send(perf_counter())
    assert tally(device).errors == {
        "overloaded": 1,
        "goodbye_drain": 1,
        "not_understood": 1,
        "answer_to_nothing": 1,
        "closed_1012": 1,
        "not_connected": 1,
    }
    assert tally(device).unsure == [Unsure(3, 0, 0)]


async def test_what_is_never_answered_is_unsure(device: Device) -> None:
    device.send(perf_counter())
    device.give_up()
    assert tally(device).unsure == [Unsure(3, 0, 0)]


async def test_a_closed_loop_goes_on_with_the_answer(device: Device) -> None:
    assert isinstance(device.socket, Line)
    device.again = True
    device.send(perf_counter())
    answer(device)
    assert len(device.socket.frames) == 2
    device.again = False
    answer(device, 1, version=2)
    assert len(device.socket.frames) == 2


async def test_an_alarm_rings_when_set_and_not_after_it_is_closed() -> None:
    rung: asyncio.Queue[float] = asyncio.Queue()
    alarm = Alarm(lambda: rung.put_nowait(perf_counter()))
    due_s = perf_counter() + 0.01
    alarm.set(due_s)
    assert await asyncio.wait_for(rung.get(), 10) >= due_s
    alarm.set(perf_counter() - 1.0)
    await asyncio.wait_for(rung.get(), 10)
    alarm.close()


Answering = Callable[[bytes], bytes | None]


@asynccontextmanager
async def serving(answering: Answering) -> AsyncIterator[int]:
    """Greet, then answer each message with what ``answering`` makes of it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        await socket.send_str('{"type":"welcome"}')
        async for received in socket:
            if received.type is WSMsgType.TEXT and (said := answering(received.data.encode())) is not None:
                await socket.send_str(said.decode())
        return socket

    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, doors=unbounded()) as (port, _):
        yield port


def plan(port: int, **changes: Any) -> Plan:
    usual: Json = {
        "host": "127.0.0.1",
        "port": port,
        "devices": [f"d-{index}" for index in range(4)],
        "tokens": ["t"] * 4,
        "mode": "open",
        "duration_s": 0.3,
        "rate_per_s": 200.0,
    }
    return Plan(**(usual | changes))


def applied(text: bytes) -> bytes:
    sync = msgspec.json.decode(text, type=Json)
    item = sync["items"][0]
    result = {"domain": "task", "id": item["id"], "status": "applied", "version": (item["base"] or 0) + 1}
    return msgspec.json.encode({"type": "synced", "id": sync["id"], "results": [result | {"seq": 1}]})


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Mark]:
    """The marks that a run says, which would go to stdout."""
    marks: list[Mark] = []
    monkeypatch.setattr(generator, "_say", marks.append)
    monkeypatch.setattr(generator, "GRACE_S", 0.05)
    return marks


async def test_an_open_loop_sends_its_schedule_whatever_the_server_does(said: list[Mark]) -> None:
    async with serving(applied) as port:
        answered = await Load(plan(port)).run()
    async with serving(lambda _: None) as port:
        silent = await Load(plan(port)).run()
    assert answered.sent == answered.answered == silent.sent > 0
    assert silent.unanswered == len(silent.unsure) == silent.sent
    assert (silent.answered, answered.unanswered, answered.errors) == (0, 0, {})
    assert said == [Mark("begins"), Mark("ends")] * 2


async def test_a_stall_reaches_every_sync_that_was_due_in_it(said: list[Mark]) -> None:
    """No coordinated omission: one answer that comes late does not keep the others from being due."""
    held: list[bytes] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        await socket.send_str('{"type":"welcome"}')
        async for received in socket:
            held.append(received.data.encode())
            if len(held) == outstanding:
                for text in held:
                    await socket.send_str(applied(text).decode())
        return socket

    one = plan(0, devices=["d"], tokens=["t"])
    async with serving(applied) as port:
        outstanding = (await Load(msgspec.structs.replace(one, port=port)).run()).sent
    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, doors=unbounded()) as (port, _):
        outcome = await Load(msgspec.structs.replace(one, port=port)).run()
    latencies = HdrHistogram.decode(outcome.histogram)
    # Nothing was answered before the last was sent, so the first waited for nearly all of the run.
    assert outcome.answered == outstanding
    assert latencies.get_max_value() > 200_000
    assert latencies.get_value_at_percentile(50) > 100_000
    assert said[-1] == Mark("ends")


@pytest.mark.usefixtures("said")
async def test_a_closed_loop_keeps_one_sync_under_way() -> None:
    under_way = 0
    most = 0

    def answering(text: bytes) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        under_way -= 1
        return applied(text)

    async with serving(answering) as port:
        outcome = await Load(plan(port, mode="closed", devices=["d"], tokens=["t"])).run()
    assert outcome.sent == len(outcome.acks.seq)
    assert outcome.completed > 1
    assert 0 < outcome.new_records < outcome.sent
    assert most == 1


@pytest.mark.usefixtures("said")
async def test_idle_connections_subscribe_and_send_no_more() -> None:
    asked: list[bytes] = []

    def answering(text: bytes) -> bytes:
        asked.append(text)
        return b'{"type":"changes","id":"live","cursor":"c","more":false,"changes":[]}'

    async with serving(answering) as port:
        outcome = await Load(plan(port, mode="idle", duration_s=0.05)).run()
    assert [msgspec.json.decode(text)["type"] for text in asked] == ["subscribe"] * 4
    assert (outcome.connected, outcome.sent, outcome.errors) == (4, 0, {})


@pytest.mark.usefixtures("said")
async def test_refused_handshakes_are_counted_by_reason() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, doors=unbounded()) as (port, _):
        outcome = await Load(plan(port)).run()
    nobody = await Load(plan(port)).run()
    assert (outcome.asked, outcome.connected) == (4, 0)
    assert outcome.refusals == {"HTTP/1.1 503 Service Unavailable": 4}
    assert sum(nobody.refusals.values()) == 4


async def test_it_runs_as_a_process_of_its_own() -> None:
    async with serving(applied) as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.load.generator",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        stdout, _ = await process.communicate(msgspec.json.encode(plan(port)))
    *marks, outcome = (msgspec.json.decode(line, type=Mark | Outcome) for line in stdout.splitlines())
    assert marks == [Mark("begins"), Mark("ends")]
    assert isinstance(outcome, Outcome)
    assert outcome.answered == outcome.sent == len(outcome.acks.number)
    assert outcome.cpu_ms > 0


async def test_a_tree_inside_another_is_not_counted_twice() -> None:
    """The parent uses little CPU, the child, whose pid it says, a lot."""
    burn = "import time\nwhile time.process_time() < {}: pass\n"
    child = burn.format(0.6) + "print('done', flush=True)\ninput()"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\ninput()\nchild.kill()\nchild.wait()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    child_pid = int(await process.stdout.readline())
    whole = Trees({"server": process.pid})
    parts = Trees({"server": process.pid, "postgres": child_pid})
    assert whole.cpu_ms()["server"] >= 500
    assert parts.cpu_ms()["postgres"] >= 500
    assert parts.cpu_ms()["server"] < parts.cpu_ms()["postgres"]
    assert 0 < parts.rss_bytes("server") < whole.rss_bytes("server")
    await process.communicate(b"\n")


def test_frames_of_a_sync_fit_the_short_header() -> None:
    assert frame(Worker("d", lambda: 0.0).message(Worker("d", lambda: 0.0).next(0.0)))[1] == 0xFE
