"""A device tells what its clock shows, in ``hello``, ``heartbeat`` and over HTTP: its ``at`` is corrected."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.harness.fronted import sync
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import Device, Json, day, put

pytestmark = ON_SHARED

HOUR = timedelta(hours=1)


def shown(behind: timedelta = timedelta()) -> str:
    """What a clock shows that is behind; never a whole second."""
    return (datetime.now(UTC) - behind).replace(microsecond=1).isoformat()


async def corrected(device: Device, name: str = "a1") -> timedelta:
    """Push an edit of one day and give by how much its time was corrected."""
    await device.push(put(name, n=1) | {"at": day(10)})
    return by_how_much((await device.pull())["changes"][-1])


def by_how_much(change: Json) -> timedelta:
    """Give by how much the time of a change of day 10 was corrected."""
    return datetime.fromisoformat(change["at"]) - datetime.fromisoformat(day(10))


async def test_hello_clock_read_when_the_connection_opened_is_right_however_late_it_comes(
    shared: Running,
) -> None:
    phone = await shared.device()
    clock = datetime.now(UTC).isoformat()
    await asyncio.gather(*(shared.device(f"other-{n}") for n in range(20)))
    await phone.pull()
    await phone.send({"type": "hello", "clock": clock})
    assert await corrected(phone) == timedelta()


async def test_hello_with_server_time_was_under_way_since_then_at_most(shared: Running) -> None:
    phone = await shared.device()
    clock = datetime.now(UTC).isoformat()
    await phone.pull()
    told = (await phone.told("heartbeat_ack", "heartbeat"))["server_time"]
    await phone.send({"type": "hello", "clock": clock, "server_time": told})
    assert await corrected(phone) > timedelta(), "a clock that is a little slow"


@pytest.mark.parametrize("told", ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
async def test_hello_with_a_useless_server_time_counts_since_the_upgrade(shared: Running, told: str) -> None:
    phone = await shared.device()
    await phone.send({"type": "hello", "clock": datetime.now(UTC).isoformat(), "server_time": told})
    assert await corrected(phone) == timedelta()
    await phone.send({"type": "hello", "clock": shown(HOUR), "server_time": told})
    assert abs(await corrected(phone, "a2") - HOUR) < timedelta(minutes=1)


async def test_heartbeat_clock_corrects_what_comes_later(shared: Running) -> None:
    phone = await shared.device()
    assert await corrected(phone) == timedelta()
    await phone.told("heartbeat_ack", "heartbeat", clock=shown(HOUR))
    assert abs(await corrected(phone, "a2") - HOUR) < timedelta(minutes=1)
    error = await phone.refused("heartbeat", clock="yesterday")
    assert (error["code"], "clock" in error["message"]) == ("invalid_message", True)


async def test_clock_set_right_again_is_believed_at_once(shared: Running) -> None:
    phone = await shared.device()
    await phone.send({"type": "hello", "clock": shown(HOUR)})
    assert abs(await corrected(phone) - HOUR) < timedelta(minutes=1)
    await phone.send({"type": "hello", "clock": datetime.now(UTC).isoformat()})
    assert await corrected(phone, "a2") == timedelta()


async def posted(server: Running, clock: str, name: str, **headers: str) -> timedelta:
    """Push over HTTP and give by how much the edit's time was corrected."""
    message = sync(name, put(name, n=1) | {"at": day(10)}) | {"clock": clock}
    reply = await server.post("/v1/sync", message, headers=headers)
    assert reply.status == 200
    page = (await server.get("/v1/changes")).message
    return by_how_much(page["changes"][-1])


async def test_http_clock_allows_for_five_seconds_and_for_what_the_proxy_says(shared: Running) -> None:
    assert await posted(shared, shown(timedelta(seconds=4)), "a1") == timedelta()
    seconds = {"X-Tidemark-Request-Seconds": "3600.000"}
    assert await posted(shared, shown(HOUR), "a2", **seconds) == timedelta()
    assert abs(await posted(shared, shown(HOUR), "a3") - HOUR) < timedelta(minutes=1)


async def test_http_heartbeat_clock_is_remembered_for_the_next_sync(shared: Running) -> None:
    beat = {"clock": shown(timedelta(minutes=10)), "battery": 1}
    assert (await shared.post("/v1/heartbeat", beat)).status == 200
    seconds = {"X-Tidemark-Request-Seconds": "3600.000"}
    told = await posted(shared, shown(timedelta(minutes=10)), "a1", **seconds)
    assert abs(told - timedelta(minutes=10)) < timedelta(minutes=1)


async def test_clock_two_sockets_of_a_device_keep_the_order_of_its_edits(shared: Running) -> None:
    """One base, two connections in order; the first is taken for a clock that is an hour slow."""
    first = await shared.device()
    await first.push(put("a1", n=0) | {"at": day(9)})
    await first.send({"type": "hello", "clock": shown(HOUR)})
    (one,) = await first.push(put("a1", 1, n=1) | {"at": day(10)})
    second = await shared.device()
    (two,) = await second.push(put("a1", 1, n=2) | {"at": day(10)})
    assert (one["status"], two["status"]) == ("applied", "applied")
