"""What the load generator of ``overload`` sends, and what it notes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType, web

from bench.harness.drive import Target
from bench.harness.environment import BenchError
from bench.overload import generator
from bench.overload.drive import planned, pour
from bench.overload.generator import OverloadLoad
from bench.overload.plan import Happened, LoadPlan, Ready, Step
from bench.overload.workload import OFFLINE, ONLINE, Backlog, Frames
from engine.wire.messages import JSON_SUBPROTOCOL
from handlers.server import listening
from tests.harness.in_process_server import Serve, unbounded
from tests.harness.ws_device import SECRET

Json = dict[str, Any]
TWO = Backlog(2, 1)


def sync_of(number: int, backlog: Backlog, prefix: str = "0a1b2c3d") -> Json:
    framed = Frames(prefix, backlog).stamped(number)
    return msgspec.json.decode(framed[framed.index(b"{") :], type=Json)


def test_a_frame_is_stamped_wherever_its_number_belongs() -> None:
    sync, other = sync_of(7, OFFLINE), sync_of(8, OFFLINE)
    assert (sync["id"], sync["key"]) == ("00000007", "0a1b2c3d00000007")
    ids = [item["id"] for item in sync["items"]]
    assert ids == [f"0a1b2c3d00000007-{n:02}" for n in [*range(24), *range(6)]]
    assert [item["base"] for item in sync["items"]] == [None] * 24 + [1] * 6
    assert [item["data"]["note"] for item in sync["items"]][22:26] == [
        "00000007-22 made",
        "00000007-23 made",
        "00000007-00 changed",
        "00000007-01 changed",
    ]
    assert not {item["id"] for item in other["items"]} & set(ids)


def test_an_item_is_of_a_realistic_size() -> None:
    framed = Frames("0a1b2c3d", OFFLINE).stamped(12)
    assert 200 <= len(framed) / OFFLINE.items <= 400


def test_the_standing_seqs_are_those_of_the_last_items() -> None:
    assert Backlog(3, 1).standing([11, 12, 13, 14]) == [14, 12, 13]
    assert ONLINE.standing([5]) == [5]


Answering = Callable[[Json], list[Json]]


@asynccontextmanager
async def serving(answering: Answering) -> AsyncIterator[int]:
    """Greet, then answer each sync with what ``answering`` makes of it; ``{"close": code}`` closes."""

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
                    await socket.send_str(msgspec.json.encode(said).decode())
        return socket

    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, doors=unbounded()) as (port, _):
        yield port


def applied(sync: Json, **changes: Any) -> list[Json]:
    number = int(sync["id"])
    results = [
        {"status": "applied", "version": (item["base"] or 0) + 1, "seq": 100 * number + place} | changes
        for place, item in enumerate(sync["items"])
    ]
    return [{"type": "synced", "id": sync["id"], "replayed": False, "results": results}]


def refused(sync: Json, code: str = "overloaded") -> list[Json]:
    return [{"type": "error", "id": sync["id"], "code": code, "message": "", "retryable": True}]


def plan_of(port: int = 1, **changes: Any) -> LoadPlan:
    usual: Json = {
        "host": "127.0.0.1",
        "port": port,
        "prefix": "0a1b2c3d",
        "devices": ["0a1b2c3d-0", "0a1b2c3d-1"],
        "tokens": ["t"] * 2,
        "backlog": TWO,
        "steps": [Step("a", 300.0, 0.1), Step("b", 100.0, 0.2)],
    }
    return LoadPlan(**(usual | changes))


async def poured(answering: Answering, **changes: Any) -> Happened:
    async with serving(answering) as port:
        load = OverloadLoad(plan_of(port, **changes))
        assert await load.connect() == Ready(2, {})
        return await load.run(perf_counter())


async def test_an_open_loop_notes_what_became_of_each_sync() -> None:
    happened = await poured(lambda sync: refused(sync) if int(sync["id"]) % 3 else applied(sync))
    names = [happened.codes[code] for code in happened.code]
    count = len(names)
    assert names == ["overloaded" if number % 3 else "synced" for number in range(count)]
    assert happened.due_us == sorted(happened.due_us)
    assert 0 <= happened.due_us[0] <= happened.due_us[-1] < 300_000
    for due_us, sent_us, done_us in zip(happened.due_us, happened.sent_us, happened.done_us, strict=True):
        assert due_us <= sent_us <= done_us
    assert happened.seqs == [100 * number + place for number in range(0, count, 3) for place in range(3)]
    assert set(happened.device) == {0, 1}
    assert happened.lag_us
    assert min(happened.lag_us) >= -1000  # the loop's timers have a grain of a millisecond
    assert happened.ended == {}


async def test_the_schedule_is_the_same_whatever_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "GRACE_S", 0.05)
    answered, silent = await poured(applied), await poured(lambda _: [])
    assert (answered.due_us, answered.device) == (silent.due_us, silent.device)
    assert set(silent.code) == {0}
    assert set(silent.done_us) == {-1}


async def test_a_closed_loop_keeps_so_many_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "GRACE_S", 0.05)
    held: list[Json] = []

    def answering(sync: Json) -> list[Json]:
        held.append(sync)
        return applied(sync) if len(held) > 6 else []  # the first six stay under way

    stuck = await poured(answering, pipelined=3)
    assert len(stuck.due_us) == 6
    going = await poured(applied, pipelined=3)
    assert len(going.due_us) > 6
    assert {going.codes[code] for code in going.code} == {"synced"}


async def test_a_refused_sync_of_a_closed_loop_is_followed_by_another_later() -> None:
    happened = await poured(refused, pipelined=1, steps=[Step("a", 0.0, 0.4)])
    assert 2 < len(happened.due_us) <= 10  # on two connections, a tenth of a second lies between


async def test_a_timer_that_goes_off_early_does_not_send_before_the_run() -> None:
    load = OverloadLoad(plan_of())
    load._start_s = perf_counter() + 60.0
    assert load._now_us() == 0


async def test_a_closed_loop_waits_as_long_as_it_is_told() -> None:
    def answering(sync: Json) -> list[Json]:
        return [one | {"retry_after_ms": 60_000} for one in refused(sync)]

    happened = await poured(answering, pipelined=1, steps=[Step("a", 0.0, 0.3)])
    assert len(happened.due_us) == 2


@pytest.mark.parametrize(
    "changes", [{"version": 9}, {"status": "unchanged"}, {"seq": None}, {"status": "conflict"}]
)
async def test_what_is_not_applied_as_asked_is_no_success(changes: Json) -> None:
    happened = await poured(lambda sync: applied(sync, **changes), steps=[Step("a", 100.0, 0.1)])
    assert {happened.codes[code] for code in happened.code} == {"answered_otherwise"}
    assert happened.seqs == []


async def test_a_lost_connection_sends_no_more_and_is_waited_for_no_longer() -> None:
    happened = await poured(
        lambda _: [{"type": "goodbye", "reason": "drain", "retry_after_ms": 1}, {"close": 1012}]
    )
    assert happened.ended == {"closed_1012": 2, "goodbye_drain": 2}
    assert {-1} < set(happened.sent_us)
    assert set(happened.code) == {0}


async def test_an_answer_to_nothing_and_a_sentence_without_id_are_counted() -> None:
    def answering(sync: Json) -> list[Json]:
        malformed = {"type": "error", "id": None, "code": "malformed", "message": "", "retryable": False}
        return applied(sync) * 2 + [malformed]

    happened = await poured(answering, steps=[Step("a", 100.0, 0.1)])
    count = len(happened.due_us)
    assert happened.ended == {"answer_to_nothing": count, "malformed": count}


async def test_whoever_cannot_connect_is_named() -> None:
    target = Target(port=1, secret=SECRET.decode(), tenants=["acme"])
    with pytest.raises(BenchError, match="0 of 2 devices connected: Connection refused"):
        await pour(target, planned(target, ["acme"], 2, TWO, [Step("a", 10.0, 0.1)]))


async def test_runs_at_once_begin_at_once(serve: Serve) -> None:
    server = await serve()
    target = Target(
        port=int(server.url.rsplit(":", 1)[1]), secret=SECRET.decode(), tenants=["acme", "globex"]
    )
    runs = [planned(target, [tenant], 1, ONLINE, [Step("a", 50.0, 0.2)]) for tenant in target.tenants]
    done = await pour(target, *runs)
    assert [run.plan.devices for run in done] == [run.plan.devices for run in runs]
    assert all(run.used is None for run in done)
    assert all(set(run.happened.code) == {1} for run in done)
