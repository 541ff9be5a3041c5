"""A device goes on changing a record of which a change waits for a person: nothing of it is lost."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.harness.in_process_server import ON_SHARED, SHARED, Running, Serve
from tests.harness.services import rows
from tests.harness.ws_device import Device, Json, day, item

pytestmark = ON_SHARED

NOTE, BY_FIELD = "note", "form_manual"
RECORD = {"a": {"b": 1}, "c": 1, "d": 1}


def edit(domain: str, op: str, when: int, data: Json | None = None, **fields: Any) -> Json:
    """Make a change of the record r1 on its first version."""
    more = {} if data is None else {"data": data}
    return item(op, domain, "r1", base=1, at=day(when), **more, **fields)


async def overtaken(shared: Running, domain: str) -> tuple[Device, Device]:
    """Have the office write two versions of a record of which a tablet knows the first."""
    office, tablet = await shared.device("office"), await shared.device("tablet")
    await office.push(item("put", domain, "r1", data=RECORD | {"c": 0}, at=day(1)))
    await office.push(item("put", domain, "r1", base=1, data=RECORD, at=day(9)))
    return office, tablet


async def open_conflict(device: Device) -> Json:
    (conflict,) = (await device.told("conflicts", "conflicts"))["conflicts"]
    found: Json = conflict
    return found


#: What the tablet changed, one after the other, and what the record is with all of it.
CHAINS: dict[str, tuple[list[Json], Json | None]] = {
    "patches that do not compose": (
        [
            {"op": "patch", "data": {"c": 2, "a": None}},
            {"op": "patch", "data": {"a": {"x": 2}, "c": 3}},
            {"op": "patch", "data": {"e": 5, "c": 4}},
        ],
        {"a": {"x": 2}, "c": 4, "d": 1, "e": 5},
    ),
    "a patch behind a put": (
        [{"op": "put", "data": {"c": 2, "z": 1}}, {"op": "patch", "data": {"z": None, "y": 1}}],
        {"c": 2, "y": 1},
    ),
    "a patch behind a delete": (
        [{"op": "patch", "data": {"c": 2}}, {"op": "delete"}, {"op": "patch", "data": {"z": 1}}],
        {"z": 1},
    ),
    "a delete at the end": ([{"op": "patch", "data": {"c": 2}}, {"op": "delete"}], None),
}


@pytest.mark.parametrize("domain", [NOTE, BY_FIELD])
@pytest.mark.parametrize("together", [True, False], ids=["one message", "a message each"])
@pytest.mark.parametrize(("chain", "wanted"), CHAINS.values(), ids=CHAINS)
async def test_conflict_chain_of_held_changes_is_shown_and_settled_as_a_whole(
    shared: Running, domain: str, together: bool, chain: list[Json], wanted: Json | None
) -> None:
    office, tablet = await overtaken(shared, domain)
    sent = [edit(domain, one["op"], when, one.get("data")) for when, one in enumerate(chain, 2)]
    results = await tablet.push(*sent) if together else [(await tablet.push(one))[0] for one in sent]
    assert {one["status"] for one in results} == {"conflict"}
    (conflict_id,) = {one["conflict_id"] for one in results}
    conflict = await open_conflict(tablet)
    assert conflict["conflict_id"] == conflict_id
    assert conflict["client"]["data"] == wanted
    assert conflict["client"]["changes"] == len(chain)
    assert conflict["client"]["at"] == day(len(chain) + 1)
    await tablet.told(
        "resolved", "resolve", conflict_id=conflict_id, choice="client", version=2, changes=len(chain)
    )
    (change,) = (await office.pull())["changes"]
    assert (change["version"], change["data"]) == (3, wanted)


async def test_conflict_chain_earlier_change_that_comes_late_goes_below(shared: Running) -> None:
    _, tablet = await overtaken(shared, NOTE)
    await tablet.push(edit(NOTE, "patch", 5, {"c": 5}))
    await tablet.push(edit(NOTE, "patch", 4, {"c": 4, "d": 4}))
    client = (await open_conflict(tablet))["client"]
    assert client["data"] == RECORD | {"c": 5, "d": 4}
    assert (client["at"], client["changes"]) == (day(5), 2)


async def test_conflict_chain_change_without_at_comes_after_those_before_it(shared: Running) -> None:
    _, tablet = await overtaken(shared, NOTE)
    undated: list[Json] = [item("patch", NOTE, "r1", base=1, data={"c": number}) for number in (2, 3, 2)]
    await tablet.push(*undated)
    assert (await open_conflict(tablet))["client"]["data"] == RECORD | {"c": 2}
    await tablet.push(item("patch", NOTE, "r1", base=1, at="2199-01-01T00:00:00Z", data={"c": 5}))
    await tablet.push(undated[1])
    client = (await open_conflict(tablet))["client"]
    assert (client["data"], client["changes"]) == (RECORD | {"c": 3}, 5)


@pytest.mark.parametrize("domain", [NOTE, BY_FIELD])
async def test_conflict_chain_change_that_equals_the_servers_record_joins_the_open_conflict(
    shared: Running, domain: str
) -> None:
    _, tablet = await overtaken(shared, domain)
    (same,) = await tablet.push(edit(domain, "patch", 2, {"c": 1}))
    assert same["status"] == "unchanged"
    results = await tablet.push(edit(domain, "patch", 3, {"c": 2}), edit(domain, "patch", 4, {"c": 1}))
    assert [one["status"] for one in results] == ["conflict", "conflict"]
    client = (await open_conflict(tablet))["client"]
    assert (client["data"], client["changes"]) == (RECORD, 2)
    (on_what_stands,) = await tablet.push(item("patch", domain, "r1", base=2, at=day(9), data={"c": 1}))
    assert on_what_stands["status"] == "unchanged"


async def test_conflict_chain_field_that_would_merge_waits_behind_the_changes_that_wait(
    shared: Running,
) -> None:
    _, tablet = await overtaken(shared, BY_FIELD)
    await tablet.push(edit(BY_FIELD, "patch", 2, {"c": 2, "d": 2}))
    (result,) = await tablet.push(edit(BY_FIELD, "patch", 3, {"d": 3}))
    assert (result["status"], result["version"]) == ("conflict", 2)
    assert (await open_conflict(tablet))["client"]["data"] == RECORD | {"c": 2, "d": 3}


async def test_conflict_chain_replay_and_the_very_same_item_add_nothing(shared: Running) -> None:
    _, tablet = await overtaken(shared, NOTE)
    key = uuid.uuid4().hex
    sent = [edit(NOTE, "patch", 2, {"c": 2}), edit(NOTE, "patch", 3, {"c": 3})]
    first = await tablet.sync(key, *sent)
    assert await tablet.sync(key, *sent) == first
    assert await tablet.push(sent[1]) == first[1:]
    assert (await open_conflict(tablet))["client"]["changes"] == 2


async def test_conflict_chain_change_past_the_size_is_rejected_and_set_aside(shared: Running) -> None:
    _, tablet = await overtaken(shared, NOTE)
    half = "x" * 150_000
    results = await tablet.push(
        edit(NOTE, "patch", 2, {"e": half}),
        edit(NOTE, "patch", 3, {"f": half}),
        edit(NOTE, "patch", 4, {"e": half + "y"}),
        edit(NOTE, "patch", 5, {"c": 5}),
    )
    assert [one["status"] for one in results] == ["conflict", "rejected", "conflict", "conflict"]
    assert results[1]["error"]["code"] == "too_large"
    assert results[0]["conflict_id"] in results[1]["error"]["message"]
    assert (await open_conflict(tablet))["client"]["data"] == RECORD | {"e": half + "y", "c": 5}
    aside = "SELECT item FROM quarantine JOIN tenants USING (tenant_id) WHERE name = %(name)s"
    ((kept,),) = rows(shared.dsn, aside.replace("%(name)s", f"'{shared.tenant()}'"))
    assert f'"{half}"' in str(kept)


async def test_conflict_chain_atomic_message_neither_opens_nor_joins_a_conflict(shared: Running) -> None:
    _, tablet = await overtaken(shared, NOTE)
    (held,) = await tablet.push(edit(NOTE, "patch", 2, {"c": 2}))
    changed: list[Json] = [{"c": 3}, {"c": 1}]
    for data in changed:
        results = await tablet.push(
            item("put", NOTE, "r2", data={}), edit(NOTE, "patch", 3, data), atomic=True
        )
        assert [one["status"] for one in results] == ["rejected", "conflict"]
        assert "conflict_id" not in results[1]
    conflict = await open_conflict(tablet)
    assert (conflict["conflict_id"], conflict["client"]["changes"]) == (held["conflict_id"], 1)


async def test_conflict_chain_decision_on_another_count_of_changes_is_stale(shared: Running) -> None:
    office, tablet = await overtaken(shared, NOTE)
    (held,) = await tablet.push(edit(NOTE, "put", 2, {"c": 2}))
    decision: Json = {"conflict_id": held["conflict_id"], "choice": "client", "version": 2}
    await tablet.push(edit(NOTE, "put", 3, {"c": 3}))
    stale = await tablet.refused("resolve", changes=1, **decision)
    assert (stale["code"], stale["version"], stale["changes"]) == ("conflict_stale", 2, 2)
    assert stale["data"] == RECORD
    over_http = await shared.post(
        f"/v1/conflicts/{held['conflict_id']}/resolution", decision | {"changes": 3}, "tablet"
    )
    assert over_http.verdict == (409, "conflict_stale")
    settled = await tablet.told("resolved", "resolve", changes=2, **decision)
    again = await tablet.told("resolved", "resolve", changes=2, **decision)
    assert again == settled | {"id": again["id"]}
    assert (await office.pull())["changes"][0]["data"] == {"c": 3}


async def test_conflict_chain_decision_without_a_count_is_taken_on_what_waits(shared: Running) -> None:
    office, tablet = await overtaken(shared, NOTE)
    (held, _) = await tablet.push(edit(NOTE, "patch", 2, {"c": 2}), edit(NOTE, "patch", 3, {"d": 3}))
    await tablet.told("resolved", "resolve", conflict_id=held["conflict_id"], choice="client", version=2)
    assert (await office.pull())["changes"][0]["data"] == RECORD | {"c": 2, "d": 3}
    (later,) = await tablet.push(edit(NOTE, "patch", 4, {"c": 4}))
    assert later["status"] == "conflict"
    assert later["conflict_id"] != held["conflict_id"]


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_chain_log_has_a_row_for_every_change_that_waits(serve: Serve) -> None:
    server = await serve(**SHARED)
    _, tablet = await overtaken(server, NOTE)
    (first, *_) = await tablet.push(
        edit(NOTE, "patch", 2, {"c": 2}), edit(NOTE, "delete", 4), edit(NOTE, "patch", 3, {"c": 3})
    )
    found = rows(
        server.dsn,
        "SELECT outcome, held_in, client_op, client_data::text, server_version, client_count"
        " FROM conflict_resolution_log ORDER BY client_at_us",
    )
    assert found == [
        ("open", None, "patch", '{"c":2}', 2, 3),
        ("held", first["conflict_id"], "patch", '{"c":3}', 2, 1),
        ("held", first["conflict_id"], "delete", None, 2, 1),
    ]


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_chain_changes_that_join_from_two_servers_at_once_are_all_held(serve: Serve) -> None:
    servers = [await serve(**SHARED), await serve(**SHARED)]
    _, tablet = await overtaken(servers[0], NOTE)
    await tablet.push(edit(NOTE, "patch", 2, {"f": 0}))
    posts = [
        servers[number % 2].post(
            "/v1/sync",
            {"type": "sync", "key": f"k{number}", "items": [edit(NOTE, "patch", 3, {f"f{number}": 1})]},
            "tablet",
        )
        for number in range(8)
    ]
    for reply in await asyncio.gather(*posts):
        assert [one["status"] for one in reply.message["results"]] == ["conflict"]
    client = (await open_conflict(tablet))["client"]
    assert client["changes"] == 9
    assert client["data"] == RECORD | {"f": 0} | {f"f{number}": 1 for number in range(8)}
