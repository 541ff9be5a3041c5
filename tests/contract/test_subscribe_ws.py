"""Subscriptions: the backlog, then every change as it happens, whatever the reader does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.ws_device import Device, Json, day, item, put

pytestmark = ON_SHARED


def brief(page: Json) -> list[tuple[str, int]]:
    return [(change["id"], change["version"]) for change in page["changes"]]


async def nothing_came(device: Device) -> None:
    """Ask for something that is answered behind every page that was sent before."""
    await device.ask("heartbeat")
    assert device.unasked == []


async def followed(device: Device, last: str, cursor: str | None = None) -> tuple[dict[str, int], int, str]:
    """Apply pages until ``last`` came; gives the versions held, how many changes came, the cursor."""
    held: dict[str, int] = {}
    count, seq = 0, 0
    while last not in held:
        page = await device.changes()
        for change in page["changes"]:
            assert change["seq"] > seq
            assert change["version"] > held.get(change["id"], 0)
            seq, held[change["id"]] = change["seq"], change["version"]
            count += 1
        cursor = page["cursor"]
    assert cursor is not None
    return held, count, cursor


# -- the first page ---------------------------------------------------------------------------


async def test_subscription_first_page_comes_even_empty(shared: Running) -> None:
    phone = await shared.device()
    page = await phone.ask("subscribe", cursor=None)
    assert page["type"] == "changes"
    assert (page["changes"], page["more"]) == ([], False)


async def test_subscription_backlog_comes_in_pages_of_the_limit_then_live(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(*(put(f"a{number}", None, n=1) for number in range(5)))
    pages = [await tablet.ask("subscribe", limit=2), await tablet.changes(), await tablet.changes()]
    assert [page["more"] for page in pages] == [True, True, False]
    await phone.push(put("a0", 1, n=2))
    pages.append(await tablet.changes())
    assert [brief(page) for page in pages] == [
        [("a0", 1), ("a1", 1)],
        [("a2", 1), ("a3", 1)],
        [("a4", 1)],
        [("a0", 2)],
    ]
    assert len({page["id"] for page in pages}) == 1


async def test_subscription_goes_on_after_a_cursor(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(put("a1", None, n=1))
    cursor = (await tablet.pull())["cursor"]
    await phone.push(put("a2", None, n=1))
    assert brief(await tablet.ask("subscribe", cursor=cursor)) == [("a2", 1)]


async def test_subscription_page_tells_the_same_as_a_pull(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    first = await tablet.ask("subscribe")
    await phone.push(put("a1", None, n=1) | {"at": day(1)}, put("a2", None, ж="🗺"))
    await phone.push(item("delete", "task", "a1", base=1))
    live: list[Json] = []
    while len(live) < 3:
        page = await tablet.changes()
        live += page["changes"]
    pulled = await tablet.pull(cursor=first["cursor"])
    assert live[1:] == pulled["changes"]
    assert live[0] | {"version": 2, "seq": 3, "deleted": True, "data": None, "at": live[2]["at"]} == live[2]
    assert page["cursor"] == pulled["cursor"]


# -- what comes live --------------------------------------------------------------------------


async def test_subscription_live_page_may_carry_each_version_and_tombstones(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await tablet.ask("subscribe")
    await phone.push(put("a1", None, n=1), put("a1", 1, n=2), item("delete", "task", "a1", base=2))
    page = await tablet.changes()
    assert brief(page) == [("a1", 1), ("a1", 2), ("a1", 3)]
    assert [one["deleted"] for one in page["changes"]] == [False, False, True]


async def test_subscription_sends_stored_changes_only(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(item("put", "attendance", "r1", data={"n": 1}), item("put", "note", "r1", data={"n": 1}))
    cursor = (await tablet.pull())["cursor"]
    await tablet.ask("subscribe", cursor=cursor)
    other = await shared.device("other")
    event = {"metric_name": "m", "value": 1, "timestamp": day(1)}
    await other.push(
        item("put", "attendance", "r1", data={"n": 2}),
        item("put", "note", "r1", data={"n": 2}),
        item("put", "nowhere", "r1", data={}),
        item("append", "metrics", "m1", at=day(1), data=event),
    )
    await other.push(put("aborted", None, n=1), item("put", "nowhere", "r1", data={}), atomic=True)
    await other.push(put("last", None, n=1))
    assert brief(await tablet.changes()) == [("last", 1)]


async def test_subscription_omits_its_own_sessions_pushes(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    first = await phone.ask("subscribe")
    await phone.push(put("a1", None, n=1), put("a2", None, n=1))
    await nothing_came(phone)
    await tablet.push(put("a3", None, n=1))
    page = await phone.changes()
    assert brief(page) == [("a3", 1)]
    assert (await phone.pull(cursor=page["cursor"]))["changes"] == []
    assert brief(await phone.pull(cursor=first["cursor"])) == [("a1", 1), ("a2", 1), ("a3", 1)]


async def test_subscription_of_another_session_of_the_device_gets_its_pushes(shared: Running) -> None:
    phone = await shared.device("phone")
    await phone.ask("subscribe")
    await shared.post("/v1/sync", {"type": "sync", "key": "k", "items": [put("a1", None, n=1)]})
    assert brief(await phone.changes()) == [("a1", 1)]
    await phone.push(put("a2", None, n=1))
    assert brief(await (await shared.device("phone")).ask("subscribe")) == [("a1", 1), ("a2", 1)]


async def test_subscription_of_some_domains_gets_their_changes_alone(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await tablet.ask("subscribe", domains=["ticket", "journal"])
    await phone.push(put("a1", None, n=1), item("put", "ticket", "t1", data={}), put("a2", None, n=1))
    assert brief(await tablet.changes()) == [("t1", 1)]
    await phone.push(put("a3", None, n=1))
    await phone.push(item("put", "journal", "j1", data={}))
    page = await tablet.changes()
    assert brief(page) == [("j1", 1)]
    assert (await tablet.pull(cursor=page["cursor"], domains=["journal", "ticket"]))["changes"] == []


async def test_subscription_several_on_one_connection_are_independent(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    wanted: dict[str, list[str] | None] = {"all": None, "tasks": ["task"], "tickets": ["ticket"]}
    for name, domains in wanted.items():
        await tablet.send({"type": "subscribe", "id": name, "domains": domains})
        assert (await tablet.receive())["id"] == name
    await phone.push(put("a1", None, n=1), item("put", "ticket", "t1", data={}))
    pages = {page["id"]: brief(page) for page in [await tablet.changes() for _ in wanted]}
    assert pages == {"all": [("a1", 1), ("t1", 1)], "tasks": [("a1", 1)], "tickets": [("t1", 1)]}


async def test_subscription_burst_comes_in_pages_of_the_limit(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await tablet.ask("subscribe", limit=7)
    await phone.push(*(put(f"a{number}", None, n=1) for number in range(20)))
    sizes: list[int] = []
    while sum(sizes) < 20:
        sizes.append(len((await tablet.changes())["changes"]))
    assert max(sizes) == 7


async def test_subscription_live_page_ends_before_1_mebibyte(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await tablet.ask("subscribe")
    large = [item("put", "task", f"a{number}", data={"text": "x" * 200_000}) for number in range(12)]
    for part in range(3):
        await phone.send(
            {"type": "sync", "id": f"{part}", "key": f"k{part}", "items": large[part * 4 : part * 4 + 4]}
        )
    found = 0
    while found < 12:
        page = await tablet.changes()
        assert len(msgspec.json.encode(page)) <= 1 << 20
        found += len(page["changes"])


# -- its end ----------------------------------------------------------------------------------


async def test_subscription_sends_no_page_after_unsubscribed(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    for name in ("ended", "goes on"):
        await tablet.send({"type": "subscribe", "id": name})
        await tablet.receive()
    await phone.push(put("a1", None, n=1))
    assert {page["id"] for page in [await tablet.changes(), await tablet.changes()]} == {"ended", "goes on"}
    await tablet.send({"type": "unsubscribe", "id": "ended"})
    assert await tablet.receive() == {"type": "unsubscribed", "id": "ended"}
    await phone.push(put("a2", None, n=1))
    assert (await tablet.changes())["id"] == "goes on"
    await nothing_came(tablet)


async def test_subscription_unsubscribed_is_the_last_message_of_a_stream(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await tablet.send({"type": "subscribe", "id": "s", "limit": 1})
    await tablet.receive()
    for part in range(10):
        await phone.send(
            {
                "type": "sync",
                "id": f"{part}",
                "key": f"k{part}",
                "items": [put(f"a{part}-{number}", None, n=1) for number in range(20)],
            }
        )
    await tablet.changes()
    await tablet.send({"type": "unsubscribe", "id": "s"})
    while (message := await tablet.receive())["type"] == "changes":
        assert message["id"] == "s"
    assert message == {"type": "unsubscribed", "id": "s"}
    for _ in range(10):
        await phone.receive()
    await nothing_came(tablet)


async def test_subscription_may_end_before_its_first_page(shared: Running) -> None:
    tablet = await shared.device("tablet")
    await tablet.send({"type": "subscribe", "id": "s"})
    await tablet.send({"type": "unsubscribe", "id": "s"})
    while (message := await tablet.receive())["type"] == "changes":
        pass
    assert message == {"type": "unsubscribed", "id": "s"}
    await (await shared.device("phone")).push(put("a1", None, n=1))
    await nothing_came(tablet)


async def test_subscription_id_is_free_again_after_unsubscribed(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    for number in range(3):
        await tablet.send({"type": "subscribe", "id": "s"})
        assert len((await tablet.receive())["changes"]) == number
        await phone.push(put(f"a{number}", None, n=1))
        assert brief(await tablet.changes()) == [(f"a{number}", 1)]
        await tablet.send({"type": "unsubscribe", "id": "s"})
        assert (await tablet.receive())["type"] == "unsubscribed"


async def test_subscription_id_is_free_again_after_a_refusal(shared: Running) -> None:
    tablet = await shared.device()
    await tablet.send({"type": "subscribe", "id": "s", "cursor": "no cursor"})
    assert (await tablet.receive())["code"] == "invalid_message"
    await tablet.send({"type": "subscribe", "id": "s"})
    assert (await tablet.receive())["type"] == "changes"


# -- readers that fall behind -----------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_subscription_behind_the_tail_catches_up_from_the_database(serve: Serve) -> None:
    server = await serve(feed={"tail_changes": 5, "page_interval_ms": 50})
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.ask("subscribe", limit=10)
    await asyncio.gather(
        *(
            phone.send(sync(f"k{part}", [put(f"a{part}-{n}", None, n=1) for n in range(30)]))
            for part in range(5)
        )
    )
    for _ in range(5):
        await phone.receive()
    await phone.push(put("last", None, n=1))
    held, count, cursor = await followed(tablet, "last")
    assert len(held) == count == 151
    assert (await tablet.pull(cursor=cursor))["changes"] == []


def sync(key: str, items: list[Json]) -> Json:
    return {"type": "sync", "id": key, "key": key, "items": items}


@pytest.mark.asyncio(loop_scope="function")
async def test_subscription_of_a_slow_reader_buffers_a_bounded_amount(serve: Serve) -> None:
    """While it reads nothing, a record changes 200 times, 20 MB in all: it gets few of them and the last.

    What it gets bounds what the server can have kept for it, beside what fits into the sockets' buffers.
    """
    server = await serve(server={"outbox_bytes": 65_536}, feed={"tail_bytes": 262_144, "page_interval_ms": 0})
    phone = await server.device("phone")
    tablet = await server.device("tablet", compress=0)
    await tablet.ask("subscribe")
    versions = 200
    for number in range(versions):
        await phone.push(put("a1", number or None, n=number, text="x" * 100_000))
    await phone.push(put("last", None, n=1))
    held, count, cursor = await followed(tablet, "last")
    assert held == {"a1": versions, "last": 1}
    assert count < versions / 2
    assert (await tablet.pull(cursor=cursor))["changes"] == []
    await phone.push(put("a1", versions, n=0))
    assert brief(await tablet.changes()) == [("a1", versions + 1)]


@pytest.mark.asyncio(loop_scope="function")
async def test_subscription_of_a_client_that_reads_nothing_is_cut_off(serve: Serve) -> None:
    server = await serve(server={"outbox_bytes": 65_536, "write_patience_s": 0.5})
    phone, other = await server.device("phone"), await server.device("other")
    stuck = await server.device("stuck", compress=0)
    for device in (other, stuck):
        await device.ask("subscribe")
    number = 0
    while await metric(server, "tidemark_slow_readers_cut_total") == 0:
        await phone.push(put("a1", number or None, n=number, text="x" * 250_000))
        number += 1
        assert number < 400, "nobody was cut off"
        assert (await other.changes())["changes"][-1]["version"] == number
    assert await stuck.closed() == 1006
    assert await metric(server, "tidemark_connections") == 2


async def metric(server: Running, name: str) -> float:
    text = (await server.get("/metrics")).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


# -- more than one process --------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_subscription_changes_of_two_processes_come_in_order_and_without_a_gap(serve: Serve) -> None:
    servers = [await serve(), await serve()]
    writers = [await servers[number % 2].device(f"writer{number}") for number in range(6)]
    reader = await servers[0].device("reader")
    await reader.ask("subscribe")

    async def write(number: int, writer: Device) -> None:
        for turn in range(20):
            await writer.push(
                put(f"edited{number}", turn or None, n=turn), put(f"new{number}-{turn}", None, n=1)
            )

    await asyncio.gather(*(write(number, writer) for number, writer in enumerate(writers)))
    await writers[0].push(put("last", None, n=1))
    held, _, _ = await followed(reader, "last")
    expected: dict[str, Any] = {f"edited{number}": 20 for number in range(6)}
    expected |= {f"new{number}-{turn}": 1 for number in range(6) for turn in range(20)}
    assert held == expected | {"last": 1}
