"""Pulls: pages, cursors, and that nothing is ever missed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.services import execute
from tests.harness.ws_device import Device, Json, day, item, put

pytestmark = ON_SHARED

MEBIBYTE = 1 << 20


async def everything(device: Device, **fields: Any) -> tuple[list[Json], list[int], str]:
    """Pull page by page from the beginning; gives the changes, the pages' sizes and the last cursor."""
    changes: list[Json] = []
    sizes: list[int] = []
    cursor: str | None = None
    while True:
        page = await device.pull(cursor=cursor, **fields)
        changes += page["changes"]
        sizes.append(len(page["changes"]))
        cursor = page["cursor"]
        assert isinstance(cursor, str)
        if not page["more"]:
            return changes, sizes, cursor
        assert page["changes"]


async def test_pull_page_has_every_field_of_a_change(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1) | {"at": day(1)}, put("a2", None, n=1) | {"at": day(2)})
    await phone.push(item("delete", "task", "a1", base=1, at=day(3)))
    page = await phone.pull()
    assert (page["more"], page["changes"]) == (
        False,
        [
            {
                "domain": "task",
                "id": "a2",
                "version": 1,
                "seq": 2,
                "deleted": False,
                "at": day(2),
                "device_id": "phone",
                "data": {"n": 1},
            },
            {
                "domain": "task",
                "id": "a1",
                "version": 2,
                "seq": 3,
                "deleted": True,
                "at": day(3),
                "device_id": "phone",
                "data": None,
            },
        ],
    )


async def test_pull_empty_feed_has_a_cursor_too(shared: Running) -> None:
    phone = await shared.device()
    page = await phone.pull(cursor=None)
    assert (page["changes"], page["more"]) == ([], False)
    await phone.push(put("a1", None, n=1))
    assert len((await phone.pull(cursor=page["cursor"]))["changes"]) == 1


async def test_pull_cursor_goes_on_where_it_stands(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1), put("a2", None, n=1))
    cursor = (await phone.pull())["cursor"]
    nothing = await phone.pull(cursor=cursor)
    assert (nothing["changes"], nothing["more"], nothing["cursor"]) == ([], False, cursor)
    await phone.push(put("a2", 1, n=2), put("a3", None, n=1))
    changes = (await phone.pull(cursor=cursor))["changes"]
    assert [(one["id"], one["version"]) for one in changes] == [("a2", 2), ("a3", 1)]
    again = (await phone.pull(cursor=cursor))["changes"]
    assert again == changes


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7]), (1000, [7]), (None, [7])],
)
async def test_pull_page_ends_at_its_limit(shared: Running, limit: int | None, sizes: list[int]) -> None:
    phone = await shared.device()
    await phone.push(*(put(f"a{number}", None, n=number) for number in range(7)))
    changes, found, _ = await everything(phone, **({} if limit is None else {"limit": limit}))
    assert found == sizes
    assert [one["seq"] for one in changes] == [1, 2, 3, 4, 5, 6, 7]


async def test_pull_page_has_500_changes_by_default(shared: Running) -> None:
    phone = await shared.device()
    for part in range(2):
        await phone.push(*(put(f"a{part}-{number}", None, n=1) for number in range(260)))
    assert (await everything(phone))[1] == [500, 20]


async def test_pull_page_ends_before_1_mebibyte(shared: Running) -> None:
    phone = await shared.device()
    for number in range(9):
        await phone.push(item("put", "task", f"a{number}", data={"text": "x" * 262_000}))
    cursor, sizes = None, []
    while True:
        reply = await shared.get("/v1/changes", params={} if cursor is None else {"cursor": cursor})
        page = reply.message
        assert len(reply.body) <= MEBIBYTE
        assert page == {
            name: value for name, value in (await phone.pull(cursor=cursor)).items() if name != "id"
        }
        cursor = page["cursor"]
        sizes.append(len(page["changes"]))
        if not page["more"]:
            break
    assert sum(sizes) == 9
    assert sizes[0] >= 3


async def test_pull_many_small_changes_end_a_page_before_1_mebibyte_too(shared: Running) -> None:
    phone = await shared.device()
    for part in range(2):
        await phone.push(
            *(item("put", "task", f"{part}-{n:03}" + "i" * 120, data={"t": "x" * 1000}) for n in range(500))
        )
    page = await phone.pull(limit=1000)
    assert len(msgspec.json.encode(page)) <= MEBIBYTE
    assert page["more"] is True
    assert len((await everything(phone, limit=1000))[0]) == 1000


@pytest.mark.parametrize(
    ("domains", "names"),
    [
        (None, ["t1", "k1", "j1"]),
        (["task"], ["k1"]),
        (["ticket", "journal"], ["t1", "j1"]),
        (["journal", "ticket", "journal"], ["t1", "j1"]),
        (["voice"], []),
        (["nowhere"], []),
    ],
)
async def test_pull_of_some_domains_has_their_changes_alone(
    shared: Running, domains: list[str] | None, names: list[str]
) -> None:
    phone = await shared.device()
    event = {"metric_name": "m", "value": 1, "timestamp": day(1)}
    await phone.push(
        item("put", "ticket", "t1", data={}),
        item("put", "task", "k1", data={}),
        item("append", "metrics", "m1", at=day(1), data=event),
        item("put", "journal", "j1", data={}),
    )
    changes, _, cursor = await everything(phone, domains=domains, limit=1)
    assert [one["id"] for one in changes] == names
    assert (await phone.pull(domains=domains, cursor=cursor))["changes"] == []


async def test_pull_record_is_in_a_pull_once_at_its_latest(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1), put("a2", None, n=1), put("a1", 1, n=2), put("a1", 2, n=3))
    changes, _, _ = await everything(phone, limit=1)
    assert [(one["id"], one["version"], one["seq"]) for one in changes] == [("a2", 1, 2), ("a1", 3, 4)]


async def test_pull_has_tombstones(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1), item("delete", "task", "a1", base=1))
    (gone,) = (await (await shared.device("new")).pull())["changes"]
    assert (gone["id"], gone["deleted"], gone["data"]) == ("a1", True, None)


# -- cursors that do not fit ------------------------------------------------------------------

NO_CURSOR = ["", "x", "null", "!!!", "0", "MS4x", "ж", "x" * 5000, "MS5hLjEuYWxsLjE=" * 3]


@pytest.mark.parametrize("cursor", NO_CURSOR)
@pytest.mark.parametrize("kind", ["pull", "subscribe"])
async def test_pull_with_no_cursor_of_ours_is_refused(shared: Running, kind: str, cursor: str) -> None:
    refusal = await (await shared.device()).refused(kind, cursor=cursor)
    assert (refusal["code"], refusal["message"].split(":")[0]) == ("invalid_message", "cursor")


#: Of whom a cursor is, and who then shows it: (tenant, domains).
ELSEWHERE: dict[str, tuple[tuple[str, list[str] | None], tuple[str, list[str] | None]]] = {
    "another tenant": (("globex", None), ("acme", None)),
    "all, then some domains": (("acme", None), ("acme", ["task"])),
    "some domains, then all": (("acme", ["task"]), ("acme", None)),
    "one domain, then another": (("acme", ["task"]), ("acme", ["ticket"])),
    "one domain, then two": (("acme", ["task"]), ("acme", ["task", "ticket"])),
}


@pytest.mark.parametrize(("of", "shown"), ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("kind", ["pull", "subscribe"])
async def test_pull_cursor_of_another_feed_has_expired(
    shared: Running,
    kind: str,
    of: tuple[str, list[str] | None],
    shown: tuple[str, list[str] | None],
) -> None:
    for tenant in ("acme", "globex"):
        await (await shared.device("phone", tenant)).push(put("a1", None, n=1))
    cursor = (await (await shared.device("phone", of[0])).pull(domains=of[1]))["cursor"]
    refusal = await (await shared.device("phone", shown[0])).refused(kind, cursor=cursor, domains=shown[1])
    assert (refusal["code"], refusal["retryable"]) == ("cursor_expired", False)


async def test_pull_cursor_fits_the_same_domains_in_any_order(shared: Running) -> None:
    phone = await shared.device()
    cursor = (await phone.pull(domains=["task", "ticket"]))["cursor"]
    await phone.push(put("a1", None, n=1))
    page = await phone.pull(domains=["ticket", "task", "ticket"], cursor=cursor)
    assert len(page["changes"]) == 1


async def test_pull_cursor_of_all_domains_is_the_same_for_null_and_none(shared: Running) -> None:
    phone = await shared.device()
    cursor = (await phone.pull(domains=None))["cursor"]
    assert (await phone.pull(cursor=cursor))["changes"] == []


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("kind", ["pull", "subscribe"])
async def test_pull_cursor_ahead_of_the_feed_has_expired(server: Running, kind: str) -> None:
    phone = await server.device()
    await phone.push(put("a1", None, n=1), put("a2", None, n=1))
    cursor = (await phone.pull())["cursor"]
    execute(
        server.dsn, "DELETE FROM records WHERE id = 'a2'", "UPDATE tenant_counters SET seq = 1 WHERE seq = 2"
    )
    assert (await phone.refused(kind, cursor=cursor))["code"] == "cursor_expired"
    assert [one["id"] for one in (await phone.pull(cursor=None))["changes"]] == ["a1"]


@pytest.mark.asyncio(loop_scope="function")
async def test_pull_cursor_of_another_epoch_has_expired(server: Running) -> None:
    phone = await server.device()
    await phone.push(put("a1", None, n=1))
    cursor = (await phone.pull())["cursor"]
    execute(
        server.dsn,
        "UPDATE cluster_state SET epoch = 'renewed', generation = generation + 1",
        "INSERT INTO tenant_conflict_policy SELECT tenant_id, 'task', 'manual' FROM tenants",
    )
    await phone.waited("policies")  # by then the new epoch is known, too
    assert (await phone.refused("pull", cursor=cursor))["code"] == "cursor_expired"
    tablet = await server.device("tablet")
    assert tablet.welcome["epoch"] == "renewed" != phone.welcome["epoch"]
    assert len((await tablet.pull())["changes"]) == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_pull_renewed_epoch_ends_subscriptions_though_the_generation_is_the_same(
    server: Running,
) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(put("a1", None, n=1), put("a2", None, n=1))
    await tablet.ask("subscribe")
    execute(
        server.dsn,
        "DELETE FROM records WHERE id = 'a2'",
        "UPDATE tenant_counters SET seq = 1 WHERE seq = 2",
        "UPDATE cluster_state SET epoch = 'renewed'",
    )
    assert (await tablet.waited("error"))["code"] == "cursor_expired"
    assert [one["id"] for one in (await tablet.ask("subscribe"))["changes"]] == ["a1"]
    await phone.push(put("a3", None, n=1))
    assert [one["id"] for one in (await tablet.changes())["changes"]] == ["a3"]


# -- nothing is missed ------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_pull_misses_nothing_while_processes_commit(serve: Serve) -> None:
    """Two processes store changes of one tenant at once, while a device pulls after its cursor all along."""
    servers = [await serve(), await serve()]
    writers = [await servers[number % 2].device(f"writer{number}") for number in range(8)]
    reader = await servers[0].device("reader")
    rounds = 25
    done = asyncio.Event()

    async def write(number: int, writer: Device) -> None:
        for turn in range(rounds):
            await writer.push(
                put(f"edited{number}", turn or None, n=turn), put(f"new{number}-{turn}", None, n=1)
            )

    async def read() -> tuple[dict[str, int], int]:
        held: dict[str, int] = {}
        last, cursor, pages = 0, None, 0
        while True:
            final = done.is_set()
            page = await reader.pull(cursor=cursor, limit=20)
            for change in page["changes"]:
                assert change["seq"] > last
                assert change["version"] > held.get(change["id"], 0)
                last, held[change["id"]] = change["seq"], change["version"]
            cursor = page["cursor"]
            pages += 1
            if final and not page["more"]:
                return held, pages

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write(number, writer) for number, writer in enumerate(writers)))
    done.set()
    held, pages = await reading
    assert pages > 10
    expected = {f"edited{number}": rounds for number in range(8)}
    expected |= {f"new{number}-{turn}": 1 for number in range(8) for turn in range(rounds)}
    assert held == expected
    changes, _, _ = await everything(await servers[1].device("other"))
    assert {change["id"]: change["version"] for change in changes} == expected
    assert changes[-1]["seq"] == 2 * 8 * rounds
