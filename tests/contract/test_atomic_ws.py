"""An atomic sync: all items commit or none does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.services import rows
from tests.harness.ws_device import Json, day, item, put

pytestmark = ON_SHARED

GOOD = [
    put("a1", None, n=1),
    item("append", "metrics", "m1", at=day(1), data={"metric_name": "m", "value": 1, "timestamp": day(1)}),
    put("a2", None, n=1),
]
REJECTED: dict[str, Json] = {
    "invalid_item": put("a3", 0, n=1),
    "unknown_domain": item("put", "nowhere", "a3", data={}),
    "unknown_base": item("patch", "task", "a3", base=1, data={}),
    "too_large": put("a3", None, text="x" * 262_144),
}


async def nothing_came_of_it(shared: Running, sent: list[Json]) -> None:
    """Push the same items again one by one: everything must look as if it had never been there."""
    other = await shared.device("other")
    assert [(one["id"], one["version"], one["seq"]) for one in (await other.pull())["changes"]] == [
        ("held", 1, 1)
    ]
    for one in sent:
        (result,) = await other.push(one)
        assert result["status"] == "applied", result
    (last,) = await other.push(put("z", None, n=1))
    assert last["seq"] == 4


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("code", REJECTED)
async def test_atomic_sync_rejected_item_aborts_all_others(shared: Running, code: str, place: int) -> None:
    phone = await shared.device()
    await phone.push(item("put", "note", "held", data={"n": 1}))
    items = [*GOOD[:place], REJECTED[code], *GOOD[place:]]
    results = await phone.push(*items, atomic=True)
    assert [(one["id"], one["status"], one["error"]["code"]) for one in results] == [
        (sent["id"], "rejected", code if sent is REJECTED[code] else "batch_aborted") for sent in items
    ]
    await nothing_came_of_it(shared, GOOD)


async def test_atomic_sync_held_item_aborts_all_others_and_opens_no_conflict(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(item("put", "note", "held", data={"n": 1}))
    tablet = await shared.device("tablet")
    items = [*GOOD, item("put", "note", "held", base=None, data={"n": 2})]
    results = await tablet.push(*items, atomic=True)
    assert results[-1] == {
        "domain": "note",
        "id": "held",
        "status": "conflict",
        "version": 1,
        "seq": 1,
        "data": {"n": 1},
    }
    assert {one["error"]["code"] for one in results[:-1]} == {"batch_aborted"}
    assert (await tablet.ask("conflicts"))["conflicts"] == []
    await nothing_came_of_it(shared, GOOD)


async def test_atomic_sync_first_fault_alone_keeps_its_status(shared: Running) -> None:
    phone = await shared.device()
    results = await phone.push(REJECTED["unknown_base"], REJECTED["unknown_domain"], atomic=True)
    assert [one["error"]["code"] for one in results] == ["unknown_base", "batch_aborted"]


async def test_atomic_sync_answer_of_an_aborted_message_is_kept_under_its_key(shared: Running) -> None:
    phone = await shared.device()
    items = [*GOOD, item("patch", "task", "a3", base=1, data={"n": 2})]
    first = await phone.told("synced", "sync", key="k", items=items, atomic=True)
    await phone.push(put("a3", None, n=1))  # now it could succeed
    again = await phone.told("synced", "sync", key="k", items=items, atomic=True)
    assert again == first | {"id": again["id"], "replayed": True}


async def test_atomic_sync_without_a_fault_commits_all(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(item("put", "attendance", "c1", data={"n": 1}))
    items = [*GOOD, put("a1", 1, n=2), item("put", "attendance", "c1", data={"n": 2}), put("a2", 1, n=1)]
    results = await tablet.push(*items, atomic=True)
    assert [one["status"] for one in results] == [
        "applied",
        "applied",
        "applied",
        "applied",
        "resolved",
        "unchanged",
    ]
    assert [(one["id"], one["version"]) for one in (await phone.pull())["changes"]] == [
        ("c1", 1),
        ("a2", 1),
        ("a1", 2),
    ]


async def test_atomic_sync_later_item_sees_an_earlier_one_and_both_are_undone(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=0))
    steps = [put("a1", 1, n=1), item("delete", "task", "a1", base=2), put("a1", 3, n=3)]
    results = await phone.push(*steps, REJECTED["unknown_base"], atomic=True)
    assert results[-1]["error"]["code"] == "unknown_base"
    (change,) = (await phone.pull())["changes"]
    assert (change["version"], change["data"]) == (1, {"n": 0})
    assert [one["version"] for one in await phone.push(*steps, atomic=True)] == [2, 3, 4]


@pytest.mark.asyncio(loop_scope="function")
async def test_atomic_sync_nothing_is_quarantined_and_no_conflict_is_logged(serve: Serve) -> None:
    server = await serve(domains={"note": {"policy": "manual"}})
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(item("put", "note", "n1", data={"n": 1}), put("a1", None, n=1))
    late: dict[str, Any] = put("a1", None, n=2) | {"at": day(1)}
    held = item("put", "note", "n1", data={"n": 2})
    for culprit in (held, REJECTED["unknown_domain"]):
        await tablet.push(late, culprit, atomic=True)
    assert rows(server.dsn, "SELECT 1 FROM quarantine UNION ALL SELECT 2 FROM conflict_resolution_log") == []
    await tablet.push(late, held, REJECTED["unknown_domain"])
    assert rows(server.dsn, "SELECT outcome FROM conflict_resolution_log ORDER BY 1") == [
        ("open",),
        ("server",),
    ]
    assert rows(server.dsn, "SELECT count(*) FROM quarantine") == [(1,)]
