"""What the load generator sends, and what it notes of the answers."""

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

from bench.harness.environment import BenchError
from bench.harness.load_run import Run, Target, planned, run_load
from bench.harness.meter import Trees
from bench.load import generator
from bench.load.generator import Generator
from bench.load.plan import Outcome, Plan, Ready, Step
from bench.load.precise_timer import PreciseTimer
from bench.load.workload import (
    OFFLINE,
    ONLINE,
    Backlog,
    Backlogs,
    Tasks,
    Worker,
    data_of,
    key_of,
    note_of,
    record_id,
)
from bench.report.statistics import latency_of
from bench.report.summary import row_of
from engine.wire.messages import JSON_SUBPROTOCOL
from handlers.server import listening
from tests.harness.in_process_server import Serve, unbounded
from tests.harness.ws_device import SECRET

Json = dict[str, Any]
PREFIX = "0a1b2c3d"
TWO = Backlog(2, 1)
SHORT = [Step("a", 300.0, 0.1), Step("b", 100.0, 0.2)]


def decoded(text: bytes) -> Json:
    return msgspec.json.decode(text, type=Json)


# -- what is sent -------------------------------------------------------------------------------


def test_tasks_every_second_sync_updates_a_known_record() -> None:
    tasks = Tasks(PREFIX, ["d"], lambda: 0.0)
    first, second = (decoded(tasks.sync(0, number)) for number in range(2))
    assert [sync["items"][0]["base"] for sync in (first, second)] == [None, None]
    applied = {"status": "applied", "version": 1, "seq": 1, "domain": "task", "id": "d-0"}
    answer = tasks.decode(msgspec.json.encode({"type": "synced", "results": [applied]}))
    assert tasks.verdict(0, 0, answer.results) == "synced"
    third, fourth = (decoded(tasks.sync(0, number)) for number in range(2, 4))
    assert (third["items"][0]["id"], third["items"][0]["base"]) == (record_id("d", 2), None)
    assert (fourth["items"][0]["id"], fourth["items"][0]["base"]) == (record_id("d", 0), 1)
    assert [sync["key"] for sync in (first, second, third, fourth)] == [key_of(PREFIX, n) for n in range(4)]


def test_worker_record_under_way_is_left_alone() -> None:
    worker = Worker(lambda: 0.99)
    worker.next()
    worker.acknowledged(0, 1)
    assert [worker.next() for _ in range(3)] == [(0, 1), (1, 0), (2, 0)]


def test_data_has_about_200_bytes_and_is_never_the_same_again() -> None:
    assert 190 <= len(data_of(12, 34)) <= 210
    assert msgspec.json.decode(data_of(7, 8), type=Json)["note"] == note_of(8)
    assert data_of(7, 8) != data_of(7, 9)


def test_backlog_sync_is_stamped_wherever_its_number_belongs() -> None:
    backlogs = Backlogs(PREFIX, OFFLINE)
    sync, other = (decoded(backlogs.sync(0, number)) for number in (7, 8))
    assert (sync["id"], sync["key"]) == ("00000007", "0a1b2c3d00000007")
    ids = [item["id"] for item in sync["items"]]
    assert ids == [f"0a1b2c3d00000007-{n:02}" for n in [*range(24), *range(6)]]
    assert [item["base"] for item in sync["items"]] == [None] * 24 + [1] * 6
    assert [item["data"]["note"] for item in sync["items"]][23:25] == [
        "00000007-23 made",
        "00000007-00 changed",
    ]
    assert not {item["id"] for item in other["items"]} & set(ids)
    assert 200 <= len(backlogs.sync(0, 12)) / OFFLINE.items <= 400


def test_backlog_final_seqs_are_those_of_the_last_items() -> None:
    assert Backlog(3, 1).final_seqs([11, 12, 13, 14]) == [14, 12, 13]
    assert ONLINE.final_seqs([5]) == [5]


async def test_precise_timer_goes_off_when_set_and_not_after_it_is_closed() -> None:
    times: asyncio.Queue[float] = asyncio.Queue()
    timer = PreciseTimer(lambda: times.put_nowait(perf_counter()))
    due_s = perf_counter() + 0.01
    timer.set(due_s)
    assert await asyncio.wait_for(times.get(), 10) >= due_s
    timer.set(perf_counter() - 1.0)
    await asyncio.wait_for(times.get(), 10)
    timer.close()


# -- what is noted ------------------------------------------------------------------------------

Answering = Callable[[Json], list[Json]]


@asynccontextmanager
async def serving(answering: Answering) -> AsyncIterator[int]:
    """Greet, then answer each message with what ``answering`` makes of it; ``{"close": code}`` closes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        await socket.send_str('{"type":"welcome"}')
        async for received in socket:
            if received.type is not WSMsgType.TEXT:
                continue
            for said in answering(msgspec.json.decode(received.data, type=Json)):
                if "close" in said:
                    await socket.close(code=said["close"])
                else:
                    await socket.send_str(said.get("text") or msgspec.json.encode(said).decode())
        return socket

    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, unauthenticated=unbounded()) as (port, _):
        yield port


def applied(sync: Json, **changes: Any) -> list[Json]:
    number = int(sync["id"])
    results = [
        {
            "status": "applied",
            "domain": "task",
            "id": item["id"],
            "version": (item["base"] or 0) + 1,
            "seq": 100 * number + place,
        }
        | changes
        for place, item in enumerate(sync["items"])
    ]
    return [{"type": "synced", "id": sync["id"], "replayed": False, "results": results}]


def refused(sync: Json, code: str = "overloaded") -> list[Json]:
    return [{"type": "error", "id": sync["id"], "code": code, "message": "", "retryable": True}]


def plan_of(port: int = 1, **changes: Any) -> Plan:
    usual: Json = {
        "host": "127.0.0.1",
        "ports": [port] * 2,
        "prefix": PREFIX,
        "devices": [f"{PREFIX}-0", f"{PREFIX}-1"],
        "tokens": ["t"] * 2,
        "backlog": TWO,
        "steps": SHORT,
    }
    return Plan(**(usual | changes))


async def generated(answering: Answering, **changes: Any) -> Outcome:
    async with serving(answering) as port:
        load = Generator(plan_of(port, **changes))
        ready = await load.connect()
        assert (ready.connected, ready.refusals) == (2, {})
        return await load.run(perf_counter())


def codes(outcome: Outcome) -> list[str]:
    return [outcome.codes[code] for code in outcome.code]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "GRACE_S", 0.3)


@pytest.mark.parametrize("backlog", [TWO, None])
async def test_generator_open_loop_notes_what_became_of_each_sync(backlog: Backlog | None) -> None:
    outcome = await generated(
        lambda sync: refused(sync) if int(sync["id"]) % 3 else applied(sync), backlog=backlog
    )
    count = len(outcome.due_us)
    assert codes(outcome) == ["overloaded" if number % 3 else "synced" for number in range(count)]
    assert outcome.due_us == sorted(outcome.due_us)
    assert 0 <= outcome.due_us[0] <= outcome.due_us[-1] < 300_000
    for due_us, sent_us, done_us in zip(outcome.due_us, outcome.sent_us, outcome.done_us, strict=True):
        assert due_us <= sent_us <= done_us
    items = 1 if backlog is None else backlog.items
    assert outcome.seqs == [100 * number + n for number in range(0, count, 3) for n in range(items)]
    assert len(outcome.record) == len(outcome.base) == (count if backlog is None else 0)
    assert set(outcome.device) == {0, 1}
    assert min(outcome.lag_us) >= -1000  # the loop's timers have a grain of a millisecond
    assert outcome.ended == {}


async def test_generator_schedule_is_the_same_whatever_the_server_does() -> None:
    answered, silent = await generated(applied), await generated(lambda _: [])
    assert (answered.due_us, answered.device) == (silent.due_us, silent.device)
    assert set(silent.code) == {0}
    assert set(silent.done_us) == {-1}


async def test_generator_stall_reaches_every_sync_that_was_due_in_it() -> None:
    """No coordinated omission: one answer that comes late does not keep the others from being due."""
    steps = [Step("a", 200.0, 0.3)]
    expected = len((await generated(applied, steps=steps)).due_us)
    held: list[Json] = []

    def answering(sync: Json) -> list[Json]:
        held.append(sync)
        return [one for sync in held for one in applied(sync)] if len(held) == expected else []

    one_device = {"devices": ["d"], "tokens": ["t"], "ports": [0]}
    async with serving(answering) as port:
        load = Generator(plan_of(port, steps=steps, **(one_device | {"ports": [port]})))
        await load.connect()
        outcome = await load.run(perf_counter())
    latency = latency_of([done - due for done, due in zip(outcome.done_us, outcome.due_us, strict=True)])
    # Nothing was answered before the last was sent, so the first waited for nearly all of the run.
    assert codes(outcome) == ["synced"] * expected
    assert latency.max_ms > 200
    assert latency.p50_ms > 100


async def test_generator_closed_loop_keeps_so_many_under_way() -> None:
    held: list[Json] = []

    def answering(sync: Json) -> list[Json]:
        held.append(sync)
        return applied(sync) if len(held) > 6 else []  # the first six stay under way

    stuck = await generated(answering, loop="closed", under_way=3)
    assert len(stuck.due_us) == 6
    going = await generated(applied, loop="closed", under_way=3)
    assert len(going.due_us) > 6
    assert set(codes(going)) == {"synced"}


@pytest.mark.parametrize(("more", "most"), [({}, 10), ({"retry_after_ms": 60_000}, 2)])
async def test_generator_closed_loop_after_a_refusal_goes_on_later(more: Json, most: int) -> None:
    def answering(sync: Json) -> list[Json]:
        return [one | more for one in refused(sync)]

    outcome = await generated(answering, loop="closed", steps=[Step("a", 0.0, 0.4)])
    assert 2 <= len(outcome.due_us) <= most  # on two connections, a tenth of a second lies between


async def test_generator_timer_that_is_early_does_not_send_before_the_run() -> None:
    load = Generator(plan_of())
    load._start_s = perf_counter() + 60.0
    assert load._now_us() == 0


@pytest.mark.parametrize(
    ("backlog", "changes", "code"),
    [
        *((TWO, {field: value}, "answered_otherwise") for field, value in (("version", 9), ("seq", None))),
        *((TWO, {"status": status}, "answered_otherwise") for status in ("unchanged", "conflict")),
        *((None, {"status": status}, f"item_{status}") for status in ("unchanged", "conflict")),
        (None, {"version": 2}, "wrong_result"),
        (None, {"seq": None}, "wrong_result"),
        (None, {"id": "another"}, "wrong_result"),
        (None, {"domain": "ticket"}, "wrong_result"),
    ],
)
async def test_generator_result_other_than_asked_for_is_no_success(
    backlog: Backlog | None, changes: Json, code: str
) -> None:
    steps = [Step("a", 30.0, 0.1)]
    outcome = await generated(lambda sync: applied(sync, **changes), backlog=backlog, steps=steps)
    assert {*codes(outcome)} <= {code} | ({"wrong_result"} if changes == {"version": 2} else set())
    assert codes(outcome)
    assert outcome.seqs == []


async def test_generator_lost_connection_sends_no_more_and_is_waited_for_no_longer() -> None:
    outcome = await generated(
        lambda _: [{"type": "goodbye", "reason": "drain", "retry_after_ms": 1}, {"close": 1012}],
        steps=[Step("a", 20.0, 2.0)],
    )
    assert outcome.ended == {"closed_1012": 2, "goodbye_drain": 2}
    assert {-1} < set(outcome.sent_us)
    assert set(outcome.code) == {0}


async def test_generator_message_that_belongs_to_no_sync_is_counted() -> None:
    def answering(sync: Json) -> list[Json]:
        malformed = {"type": "error", "id": None, "code": "malformed", "message": "", "retryable": False}
        stranger = {"type": "synced", "id": "99999", "results": []}
        return [*applied(sync) * 2, malformed, {"text": "nonsense"}, stranger]

    outcome = await generated(answering, steps=[Step("a", 100.0, 0.1)])
    count = len(outcome.due_us)
    assert outcome.ended == {"answer_to_nothing": 2 * count, "malformed": count, "not_understood": count}


async def test_generator_refused_handshakes_are_counted_by_reason() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, unauthenticated=unbounded()) as (port, _):
        ready = await Generator(plan_of(port)).connect()
    nobody = await Generator(plan_of(port)).connect()
    assert (ready.connected, ready.refusals) == (0, {"HTTP/1.1 503 Service Unavailable": 2})
    assert sum(nobody.refusals.values()) == 2


# -- as a process of its own --------------------------------------------------------------------


async def test_generator_process_writes_ready_and_outcome() -> None:
    async with serving(applied) as port:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.load.generator"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        lines = msgspec.json.encode(plan_of(port)) + f"\n{perf_counter()}\n".encode()
        stdout, _ = await process.communicate(lines)
    ready, outcome = stdout.splitlines()
    assert msgspec.json.decode(ready, type=Ready).connected == 2
    assert set(codes(msgspec.json.decode(outcome, type=Outcome))) == {"synced"}


def target_of(server_url: str) -> Target:
    port = int(server_url.rsplit(":", 1)[1])
    return Target(port=port, secret=SECRET.decode(), tenants=["acme", "globex"])


async def test_run_load_nobody_connected_is_an_error() -> None:
    target = target_of("http://127.0.0.1:1")
    with pytest.raises(BenchError, match="0 of 2 devices connected: Connection refused"):
        await run_load(target, planned(target, 2, SHORT))


async def test_run_load_two_runs_begin_at_the_same_time(serve: Serve) -> None:
    server = await serve()
    target = target_of(server.url)
    steps = [Step("a", 50.0, 0.2)]
    runs = [planned(target, 1, steps, [tenant], backlog=ONLINE) for tenant in target.tenants]
    done = await run_load(target, *runs)
    assert [run.plan.devices for run in done] == [run.plan.devices for run in runs]
    assert len({run.began_s for run in done}) == 1
    assert all(set(run.outcome.code) == {1} for run in done)
    rows = [row_of(run) for run in done]
    assert all(row.cpus.keys() == {"generator", f"generator {1 - n}"} for n, row in enumerate(rows))
    assert [(row.rss_peak_mib, row.other_cpus) for row in rows] == [(None, None)] * 2


def test_run_tenant_of_a_device_is_by_its_place() -> None:
    run = Run(
        plan_of(),
        ["acme", "globex"],
        Ready(2, 0.0, {}),
        Outcome(device=[], due_us=[], sent_us=[], done_us=[], code=[]),
    )
    assert [run.tenant_of(device) for device in range(3)] == ["acme", "globex", "acme"]


async def test_trees_one_inside_another_is_not_counted_twice() -> None:
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
