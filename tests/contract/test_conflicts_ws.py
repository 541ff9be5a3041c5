"""Conflicts that wait for a person: who sees them, who settles them, and what everybody then gets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.harness.in_process_server import ON_SHARED, SHARED, Running, Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import Device, Json, day, item
from tests.security.catalogue import against

pytestmark = ON_SHARED

HELD = {"a": 2, "mine": True}


def note(record_id: str = "n1", base: int | None = None, op: str = "put", **fields: Any) -> Json:
    return item(op, "note", record_id, base=base, **fields)


async def opened(shared: Running, record_id: str = "n1", device: str = "tablet") -> tuple[Device, str]:
    """Have a device open a conflict on version 1 of a record; gives the device and the conflict's id."""
    phone, tablet = await shared.device("first"), await shared.device(device)
    await phone.push(note(record_id, data={"a": 1}, at=day(1)))
    (result,) = await tablet.push(note(record_id, data=HELD, at=day(2)))
    return tablet, result["conflict_id"]


async def test_conflict_answer_shows_the_servers_record(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(note(data={"a": 1}))
    (result,) = await tablet.push(note(data=HELD))
    conflict_id = result.pop("conflict_id")
    assert isinstance(conflict_id, str)
    assert result == {
        "domain": "note",
        "id": "n1",
        "status": "conflict",
        "version": 1,
        "seq": 1,
        "data": {"a": 1},
    }
    assert (await tablet.pull())["changes"][0]["version"] == 1


#: What the client sent on a record {"a": 1, "b": 1}, and the record as it would stand if it won.
WANTED: dict[str, tuple[Json, Json | None]] = {
    "put": ({"op": "put", "data": {"a": 2}}, {"a": 2}),
    "patch": ({"op": "patch", "data": {"a": None, "c": 3}}, {"b": 1, "c": 3}),
    "delete": ({"op": "delete"}, None),
}


@pytest.mark.parametrize(("sent", "wanted"), WANTED.values(), ids=WANTED)
async def test_conflict_list_shows_both_sides(shared: Running, sent: Json, wanted: Json | None) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(note(data={"a": 1, "b": 1}))
    earliest = datetime.now(UTC)
    (result,) = await tablet.push(note(base=7, at=day(2), **sent))
    answer = await tablet.told("conflicts", "conflicts")
    assert answer["after"] is None
    (conflict,) = answer["conflicts"]
    assert earliest <= datetime.fromisoformat(conflict.pop("opened_at")) <= datetime.now(UTC)
    conflict["client"].pop("op", None)
    assert conflict == {
        "conflict_id": result["conflict_id"],
        "domain": "note",
        "record_id": "n1",
        "policy": "manual",
        "server": {"version": 1, "data": {"a": 1, "b": 1}},
        "client": {"base": 7, "at": day(2), "device_id": "tablet", "data": wanted, "changes": 1},
    }


async def test_conflict_list_shows_the_record_as_it_stands_now(shared: Running) -> None:
    tablet, _ = await opened(shared)
    phone = await shared.device("phone")
    await phone.push(note(base=1, data={"a": 3}))
    (conflict,) = (await tablet.ask("conflicts"))["conflicts"]
    assert conflict["server"] == {"version": 2, "data": {"a": 3}}
    await phone.push(note(base=2, op="delete"))
    (conflict,) = (await tablet.ask("conflicts"))["conflicts"]
    assert conflict["server"] == {"version": 3, "data": None}


async def test_conflict_each_device_has_its_own_conflict_on_a_record(shared: Running) -> None:
    _, one = await opened(shared)
    watch = await shared.device("watch")
    (result,) = await watch.push(note(data={"a": 5}))
    assert result["conflict_id"] != one


async def test_conflict_device_sees_its_own_conflicts_and_a_supervisor_the_tenants(shared: Running) -> None:
    ids = {}
    for number, name in enumerate(["tablet", "watch", "tablet"]):
        _, ids[number] = await opened(shared, f"n{number}", name)
    seen = {}
    for name, role in (("tablet", None), ("watch", None), ("other", None), ("boss", "supervisor")):
        device = await shared.device(name, role=role)
        seen[name] = [one["conflict_id"] for one in (await device.ask("conflicts"))["conflicts"]]
    assert seen == {
        "tablet": [ids[0], ids[2]],
        "watch": [ids[1]],
        "other": [],
        "boss": [ids[0], ids[1], ids[2]],
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7])
async def test_conflict_list_pages_are_oldest_first(shared: Running, limit: int) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    names = [f"n{number}" for number in range(6)]
    for name in names:
        await phone.push(note(name, data={"a": 1}))
        await tablet.push(note(name, data={"a": 2}))
    found: list[str] = []
    sizes: list[int] = []
    after: str | None = None
    while True:
        page = await tablet.told("conflicts", "conflicts", limit=limit, after=after)
        found += [one["record_id"] for one in page["conflicts"]]
        sizes.append(len(page["conflicts"]))
        after = page["after"]
        if after is None:
            break
    assert found == names
    assert sizes == [limit] * (6 // limit) + [6 % limit] * (6 % limit > 0)


async def test_conflict_list_continues_after_a_settled_conflict(shared: Running) -> None:
    for number in range(3):
        tablet, _ = await opened(shared, f"n{number}")
    page = await tablet.ask("conflicts", limit=2)
    await tablet.told("resolved", "resolve", conflict_id=page["after"], choice="server", version=1)
    rest = await tablet.ask("conflicts", limit=2, after=page["after"])
    assert [one["record_id"] for one in rest["conflicts"]] == ["n2"]


# -- settling ---------------------------------------------------------------------------------

CHOICES: dict[str, tuple[Json, Json | None]] = {
    "server": ({"choice": "server"}, {"a": 1}),
    "client": ({"choice": "client"}, HELD),
    "merged": ({"choice": "merged", "data": {"a": 3}}, {"a": 3}),
}


@pytest.mark.parametrize(("decision", "data"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("settler", ["tablet", "boss"])
async def test_conflict_resolve_each_choice_writes_a_version_for_every_device(
    shared: Running, settler: str, decision: Json, data: Json
) -> None:
    tablet, conflict_id = await opened(shared)
    listener = await shared.device("listener")
    first = await listener.ask("subscribe", cursor=None)
    assert [change["version"] for change in first["changes"]] == [1]
    who = await shared.device("boss", role="supervisor") if settler == "boss" else tablet
    answer = await who.told("resolved", "resolve", conflict_id=conflict_id, version=1, **decision)
    answer.pop("id")
    assert answer == {"type": "resolved", "conflict_id": conflict_id, "version": 2, "seq": 2}
    (change,) = (await listener.changes())["changes"]
    assert (change["id"], change["version"], change["seq"], change["data"]) == ("n1", 2, 2, data)
    assert (await tablet.ask("conflicts"))["conflicts"] == []
    (pulled,) = (await tablet.pull())["changes"]
    assert pulled == change


async def test_conflict_held_delete_that_wins_leaves_a_tombstone(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(note(data={"a": 1}))
    (held,) = await tablet.push(note(op="delete"))
    await tablet.told("resolved", "resolve", conflict_id=held["conflict_id"], choice="client", version=1)
    (change,) = (await phone.pull())["changes"]
    assert (change["version"], change["deleted"], change["data"]) == (2, True, None)


async def test_conflict_held_patch_that_wins_applies_to_the_present_record(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(note(data={"a": 1, "b": 1}))
    (held,) = await tablet.push(note(op="patch", data={"a": 2}))
    await phone.push(note(base=1, data={"a": 1, "b": 5}))
    await tablet.told("resolved", "resolve", conflict_id=held["conflict_id"], choice="client", version=2)
    assert (await phone.pull())["changes"][0]["data"] == {"a": 2, "b": 5}


async def test_conflict_held_patch_on_a_tombstone_is_shown_and_settled_on_its_last_data(
    shared: Running,
) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(note(data={"a": 1, "b": 1}), note(base=1, op="delete"))
    (held,) = await tablet.push(note(op="patch", base=1, data={"a": 2}))
    assert (held["status"], held["data"]) == ("conflict", None)
    (listed,) = (await tablet.ask("conflicts"))["conflicts"]
    assert (listed["server"], listed["client"]["data"]) == ({"version": 2, "data": None}, {"a": 2, "b": 1})
    await tablet.told("resolved", "resolve", conflict_id=held["conflict_id"], choice="client", version=2)
    assert (await phone.pull())["changes"][0]["data"] == {"a": 2, "b": 1}


async def test_conflict_patch_on_a_tombstone_without_last_data_waits_for_a_person(shared: Running) -> None:
    """Whatever the policy: what the patch leaves out is nowhere."""
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    made = item("put", "journal", "j1", data={"a": 1, "b": 1})
    await phone.push(made, item("delete", "journal", "j1", base=1))
    execute(
        shared.dsn,
        "UPDATE records SET last_data = NULL WHERE id = 'j1' AND tenant_id ="
        f" (SELECT tenant_id FROM tenants WHERE name = '{shared.tenant('acme')}')",
    )
    patch = item("patch", "journal", "j1", base=1, data={"a": 2})
    first, second, other = await tablet.push(patch, patch | {"data": {"a": 3}}, note(data={"a": 1}))
    assert (first["status"], first["version"], first["data"]) == ("conflict", 2, None)
    assert (second["conflict_id"], other["status"]) == (first["conflict_id"], "applied")
    (listed,) = (await tablet.ask("conflicts"))["conflicts"]
    assert (listed["policy"], listed["client"]["data"]) == ("client_wins", {"a": 3})
    (whole,) = await tablet.push(made)
    assert (whole["status"], whole["winner"], whole["data"]) == ("resolved", "client", {"a": 1, "b": 1})


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_patch_on_a_tombstone_without_kept_data_waits_for_a_person(
    serve: Serve,
) -> None:
    server = await serve(**SHARED, records={"tombstone_data_h": 0})
    phone, tablet = await server.device("phone"), await server.device("tablet")
    made = item("put", "journal", "j1", data={"a": 1, "b": 1})
    await phone.push(made, item("delete", "journal", "j1", base=1))
    assert rows(server.dsn, "SELECT last_data FROM records") == [(None,)]
    (result,) = await tablet.push(item("patch", "journal", "j1", base=1, data={"a": 2}))
    assert (result["status"], result["data"]) == ("conflict", None)


async def test_conflict_version_written_by_resolve_counts_as_another_devices(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    await tablet.told("resolved", "resolve", conflict_id=conflict_id, choice="client", version=1)
    (result,) = await tablet.push(note(base=1, data={"a": 9}))
    assert (result["status"], result["version"]) == ("conflict", 2)


async def test_conflict_after_a_settled_one_a_new_one_can_be_opened(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    await tablet.told("resolved", "resolve", conflict_id=conflict_id, choice="server", version=1)
    (result,) = await tablet.push(note(data={"a": 9}))
    assert result["status"] == "conflict"
    assert result["conflict_id"] != conflict_id


async def test_conflict_decision_on_a_version_that_has_passed_is_stale(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    phone = await shared.device("phone")
    await phone.push(note(base=1, data={"a": 3}))
    decision: Json = {"conflict_id": conflict_id, "choice": "client"}
    stale = await tablet.refused("resolve", version=1, **decision)
    assert (stale["code"], stale["retryable"], stale["version"], stale["data"]) == (
        "conflict_stale",
        False,
        2,
        {"a": 3},
    )
    await phone.push(note(base=2, op="delete"))
    stale = await tablet.refused("resolve", version=2, **decision)
    assert (stale["code"], stale["version"], stale["data"]) == ("conflict_stale", 3, None)
    ahead = await tablet.refused("resolve", version=4, **decision)
    assert (ahead["code"], ahead["version"]) == ("conflict_stale", 3)
    assert (await tablet.told("resolved", "resolve", version=3, **decision))["version"] == 4


async def test_conflict_same_resolve_again_repeats_its_answer(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    decision: Json = {"conflict_id": conflict_id, "choice": "merged", "data": {"a": 3, "b": 4}, "version": 1}
    first = await tablet.told("resolved", "resolve", **decision)
    phone = await shared.device("phone")
    await phone.push(note(base=2, data={"a": 8}))
    again = await tablet.told("resolved", "resolve", **decision)
    assert again == first | {"id": again["id"]}
    over_http = await shared.post(f"/v1/conflicts/{conflict_id}/resolution", decision, "tablet")
    assert over_http.message == {name: value for name, value in first.items() if name != "id"}
    assert (await phone.pull())["changes"][0]["version"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"choice": "server"},
        {"choice": "client"},
        {"choice": "merged", "data": {"a": 4}},
        {"choice": "merged", "data": {"a": 3}, "version": 2},
    ],
)
async def test_conflict_another_resolve_of_a_settled_conflict_is_refused(
    shared: Running, other: Json
) -> None:
    tablet, conflict_id = await opened(shared)
    decision: Json = {"conflict_id": conflict_id, "choice": "merged", "data": {"a": 3}, "version": 1}
    await tablet.told("resolved", "resolve", **decision)
    closed = await tablet.refused("resolve", **(decision | {"data": None} | other))
    assert (closed["code"], closed["retryable"]) == ("conflict_closed", False)


@against("API1:2023", "V8.2")
async def test_conflict_of_another_device_is_not_found(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    decision: Json = {"choice": "server", "version": 1}
    for name, tenant, role, wanted in (
        ("watch", "acme", None, conflict_id),
        ("tablet", "globex", None, conflict_id),
        ("boss", "globex", "supervisor", conflict_id),
        ("tablet", "acme", None, "no-such-conflict"),
        ("tablet", "acme", None, ""),
    ):
        device = await shared.device(name, tenant, role=role)
        assert (await device.refused("resolve", conflict_id=wanted, **decision))["code"] == "not_found"
    tablet = await shared.device("tablet")
    await tablet.told("resolved", "resolve", conflict_id=conflict_id, **decision)
    watch = await shared.device("watch")
    assert (await watch.refused("resolve", conflict_id=conflict_id, **decision))["code"] == "not_found"


#: A settlement that the domain's rules do not let stand.
UNFIT: dict[str, Json] = {
    "merged without data": {"choice": "merged"},
    "merged with a list": {"choice": "merged", "data": [1]},
    "merged with U+0000": {"choice": "merged", "data": {"a": "\0"}},
    "merged with a large integer": {"choice": "merged", "data": {"a": 2**63}},
}


@pytest.mark.parametrize("decision", UNFIT.values(), ids=UNFIT)
async def test_conflict_settlement_with_wrong_values_is_refused_and_the_conflict_stays(
    shared: Running, decision: Json
) -> None:
    tablet, conflict_id = await opened(shared)
    refusal = await tablet.refused("resolve", conflict_id=conflict_id, version=1, **decision)
    assert (refusal["code"], refusal["message"].split(":")[0]) == ("invalid_message", "data")
    assert len((await tablet.ask("conflicts"))["conflicts"]) == 1


async def test_conflict_settlement_over_the_size_is_refused(shared: Running) -> None:
    tablet, conflict_id = await opened(shared)
    decision: Json = {"choice": "merged", "data": {"a": "x" * 262_144}, "version": 1}
    assert (await tablet.refused("resolve", conflict_id=conflict_id, **decision))["code"] == "too_large"


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_two_people_settle_a_conflict_at_once_in_different_processes(serve: Serve) -> None:
    servers = [await serve(**SHARED), await serve(**SHARED)]
    tablet, conflict_id = await opened(servers[0])
    boss = await servers[1].device("boss", role="supervisor")
    decision: Json = {"type": "resolve", "id": "x", "conflict_id": conflict_id, "version": 1}
    await tablet.send(decision | {"choice": "server"})
    await boss.send(decision | {"choice": "client"})
    answers = [await tablet.receive(), await boss.receive()]
    assert {one["type"] for one in answers} == {"resolved", "error"}
    assert [one["code"] for one in answers if "code" in one] == ["conflict_closed"]
    (change,) = (await tablet.pull())["changes"]
    assert change["version"] == 2


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_log_says_how_a_person_decided(serve: Serve) -> None:
    server = await serve(**SHARED)
    _, conflict_id = await opened(server)
    boss = await server.device("boss", role="supervisor")
    await boss.told("resolved", "resolve", conflict_id=conflict_id, choice="client", version=1)
    assert rows(
        server.dsn,
        "SELECT conflict_id, outcome, settled_by, settled_version, settled_seq FROM conflict_resolution_log",
    ) == [(conflict_id, "client", "boss", 2, 2)]


@pytest.mark.asyncio(loop_scope="function")
async def test_conflict_stays_in_the_queue_though_the_policy_changed(serve: Serve) -> None:
    server = await serve(**SHARED)
    tablet, conflict_id = await opened(server)
    execute(
        server.dsn,
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        " SELECT tenant_id, 'note', 'client_wins' FROM tenants",
        "UPDATE cluster_state SET generation = generation + 1",
    )
    await tablet.waited("policies")
    assert [one["conflict_id"] for one in (await tablet.ask("conflicts"))["conflicts"]] == [conflict_id]
    await tablet.told("resolved", "resolve", conflict_id=conflict_id, choice="client", version=1)
