"""The wall between tenants: whatever is called the same in both, nobody sees or moves the other's."""

from __future__ import annotations

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import Json, day, item, put
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API1:2023", "V8.4")]

TENANTS = ("acme", "globex")


async def test_tenant_same_ids_keys_and_devices_in_two_tenants_are_independent(shared: Running) -> None:
    for tenant in TENANTS:
        phone = await shared.device("phone", tenant)
        event = {"metric_name": tenant, "value": 1, "timestamp": day(1)}
        synced = await phone.told(
            "synced",
            "sync",
            key="k",
            items=[put("a1", None, of=tenant), item("append", "metrics", "m1", at=day(1), data=event)],
        )
        assert synced["replayed"] is False
        assert [one["status"] for one in synced["results"]] == ["applied", "applied"]
        assert (synced["results"][0]["version"], synced["results"][0]["seq"]) == (1, 1)
    for tenant in TENANTS:
        (change,) = (await (await shared.device("phone", tenant)).pull())["changes"]
        assert change["data"] == {"of": tenant}


async def test_tenant_each_tenant_counts_its_own_changes(shared: Running) -> None:
    phones = [await shared.device("phone", tenant) for tenant in TENANTS]
    for number in range(1, 4):
        for phone in phones:
            (result,) = await phone.push(put(f"a{number}", None, n=1))
            assert result["seq"] == number


async def test_tenant_delete_or_an_edit_reaches_its_own_tenant_alone(shared: Running) -> None:
    acme, globex = [await shared.device("phone", tenant) for tenant in TENANTS]
    for phone in (acme, globex):
        await phone.push(put("a1", None, n=1), put("a2", None, n=1))
    await acme.push(item("delete", "task", "a1", base=1), put("a2", 1, n=2))
    changes = (await globex.pull())["changes"]
    assert [(one["id"], one["version"], one["data"]) for one in changes] == [
        ("a1", 1, {"n": 1}),
        ("a2", 1, {"n": 1}),
    ]


@pytest.mark.parametrize("role", [None, "supervisor"])
async def test_tenant_subscription_gets_its_own_tenants_changes_alone(
    shared: Running, role: str | None
) -> None:
    listeners = [await shared.device("listener", tenant, role=role) for tenant in TENANTS]
    for listener in listeners:
        await listener.ask("subscribe")
    for tenant in TENANTS:
        await (await shared.device("phone", tenant)).push(put("a1", None, of=tenant))
    for tenant, listener in zip(TENANTS, listeners, strict=True):
        (change,) = (await listener.changes())["changes"]
        assert change["data"] == {"of": tenant}
        await listener.ask("heartbeat")
        assert listener.unasked == []


@pytest.mark.parametrize("role", [None, "supervisor"])
async def test_tenant_conflicts_are_seen_and_settled_in_their_own_tenant_alone(
    shared: Running, role: str | None
) -> None:
    ids: dict[str, str] = {}
    for tenant in TENANTS:
        await (await shared.device("phone", tenant)).push(item("put", "note", "n1", data={"of": tenant}))
        tablet = await shared.device("tablet", tenant, role=role)
        (held,) = await tablet.push(item("put", "note", "n1", data={"mine": tenant}))
        ids[tenant] = held["conflict_id"]
    for tenant, other in (TENANTS, TENANTS[::-1]):
        tablet = await shared.device("tablet", tenant, role=role)
        (listed,) = (await tablet.ask("conflicts"))["conflicts"]
        assert (listed["conflict_id"], listed["client"]["data"]) == (ids[tenant], {"mine": tenant})
        assert (await tablet.ask("conflicts", after=ids[other]))["conflicts"] == []
        decision: Json = {"conflict_id": ids[other], "choice": "client", "version": 1}
        assert (await tablet.refused("resolve", **decision))["code"] == "not_found"
        reply = await shared.post(
            f"/v1/conflicts/{ids[other]}/resolution", decision, "tablet", tenant, role=role
        )
        assert reply.verdict == (404, "not_found")
    for tenant in TENANTS:
        tablet = await shared.device("tablet", tenant, role=role)
        await tablet.told("resolved", "resolve", conflict_id=ids[tenant], choice="client", version=1)
        assert (await tablet.pull())["changes"][0]["data"] == {"mine": tenant}


async def test_tenant_message_cannot_name_another_tenant(shared: Running) -> None:
    phone = await shared.device("phone", "acme")
    naming = {"tenant": shared.tenant("globex"), "tid": shared.tenant("globex"), "tenant_id": 1}
    await phone.push(put("a1", None, n=1) | naming, **naming)
    assert (await phone.pull(**naming))["changes"][0]["data"] == {"n": 1}
    params = {name: str(value) for name, value in naming.items()}
    assert len((await shared.get("/v1/changes", params=params)).message["changes"]) == 1
    assert (await (await shared.device("phone", "globex")).pull())["changes"] == []


async def test_tenant_later_held_change_replaces_its_own_tenants_and_not_the_others(shared: Running) -> None:
    """Device, domain and record are the same in both."""
    tablets = {tenant: await shared.device("tablet", tenant) for tenant in TENANTS}
    ids: dict[str, str] = {}
    for tenant, tablet in tablets.items():
        await (await shared.device("phone", tenant)).push(item("put", "note", "n1", data={"n": 1}))
        (held,) = await tablet.push(item("put", "note", "n1", data={"mine": tenant}))
        ids[tenant] = held["conflict_id"]
    assert ids["acme"] != ids["globex"]
    for tenant, tablet in tablets.items():
        (held,) = await tablet.push(item("put", "note", "n1", data={"again": tenant}))
        assert (held["status"], held["conflict_id"]) == ("conflict", ids[tenant])
    for tenant, tablet in tablets.items():
        (listed,) = (await tablet.ask("conflicts"))["conflicts"]
        assert listed["client"]["data"] == {"again": tenant}
