"""Conflicts during a sync: when a change meets one, and what each policy makes of it."""

from __future__ import annotations

import pytest

from tests.harness.in_process_server import ON_SHARED, SHARED, Running, Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import Json, change, day, item, put

pytestmark = ON_SHARED

# -- when a change meets a conflict -----------------------------------------------------------


def at(number: int, one: Json) -> Json:
    return one | {"at": day(number)}


#: Who writes what, in order, and the status of the last; the policy is field_merge, then most_recent_wins.
MEETINGS: dict[str, tuple[list[tuple[str, Json]], str]] = {
    "on the version that stands": (
        [("phone", put("a1", None, n=1)), ("tablet", put("a1", 1, n=2))],
        "applied",
    ),
    "of another device, behind": (
        [("phone", put("a1", None, n=1)), ("tablet", put("a1", None, n=2))],
        "resolved",
    ),
    "of the same device, behind": (
        [("phone", put("a1", None, n=1)), ("phone", put("a1", None, n=2))],
        "applied",
    ),
    "a chain made offline": (
        [("phone", at(n, put("a1", None, n=n))) for n in (1, 2)] + [("phone", at(3, put("a1", 1, n=3)))],
        "applied",
    ),
    "a chain at one time": ([("phone", at(1, put("a1", None, n=n))) for n in (1, 2, 3)], "applied"),
    "a late retry of an older edit": (
        [("phone", at(5, put("a1", None, n=1))), ("phone", at(4, put("a1", None, n=2)))],
        "resolved",
    ),
    "a chain that another device broke": (
        [
            ("phone", put("a1", None, n=1)),
            ("tablet", put("a1", 1, n=2)),
            ("phone", put("a1", 2, n=3)),
            ("phone", put("a1", 1, n=4)),
        ],
        "resolved",
    ),
    "a chain of its own behind another's": (
        [
            ("phone", put("a1", None, n=1)),
            ("tablet", put("a1", 1, n=2)),
            ("tablet", put("a1", 2, n=3)),
            ("tablet", put("a1", 1, n=4)),
        ],
        "applied",
    ),
    "ahead, of another device": (
        [("phone", put("a1", None, n=1)), ("tablet", put("a1", 2, n=2))],
        "resolved",
    ),
    "ahead, of the same device": (
        [("phone", put("a1", None, n=1)), ("phone", put("a1", 2, n=2))],
        "resolved",
    ),
    "a delete, behind": (
        [("phone", put("a1", None, n=1)), ("tablet", item("delete", "task", "a1", base=None))],
        "resolved",
    ),
    "against a tombstone": (
        [
            ("phone", put("a1", None, n=1)),
            ("phone", item("delete", "task", "a1", base=1)),
            ("tablet", put("a1", 1, n=2)),
        ],
        "resolved",
    ),
    "its own chain over a tombstone": (
        [
            ("phone", put("a1", None, n=1)),
            ("phone", item("delete", "task", "a1", base=1)),
            ("phone", put("a1", 1, n=2)),
        ],
        "applied",
    ),
}


@pytest.mark.parametrize(("edits", "status"), MEETINGS.values(), ids=MEETINGS)
async def test_policy_change_of_another_device_has_its_outcome(
    shared: Running, edits: list[tuple[str, Json]], status: str
) -> None:
    devices = {name: await shared.device(name) for name in ("phone", "tablet")}
    for who, edit in edits:
        (result,) = await devices[who].push(edit)
    assert result["status"] == status


async def test_policy_change_of_the_same_device_over_another_connection_is_its_own_too(
    shared: Running,
) -> None:
    await (await shared.device()).push(put("a1", None, n=1))
    (result,) = await (await shared.device()).push(put("a1", None, n=2))
    assert result["status"] == "applied"


# -- what each policy makes of it -------------------------------------------------------------

STANDS = {"a": 1, "b": 1, "status": "OPEN", "escalation_level": 1}
LATER, SAME_TIME, EARLIER = 7, 5, 3


PUT = {"a": 2, "status": "INPROGRESS"}
PATCH: Json = {"a": 2, "b": None, "status": "INPROGRESS"}
ESCALATED = {"status": "OPEN", "escalation_level": 1}
SERVER = ("server", STANDS)

#: Against a record of day 5: the domain, the change, and who wins with what.
OUTCOMES: dict[str, tuple[str, Json, tuple[str, Json | None]]] = {
    "server_wins, put": ("attendance", change("put", LATER, data={"a": 2}), SERVER),
    "server_wins, patch": ("attendance", change("patch", LATER, data={"a": 2}), SERVER),
    "server_wins, delete": ("attendance", change("delete", LATER), SERVER),
    "client_wins, put": ("journal", change("put", EARLIER, data=PUT), ("client", PUT)),
    "client_wins, patch": (
        "journal",
        change("patch", EARLIER, data=PATCH),
        ("client", {"a": 2, "status": "INPROGRESS", "escalation_level": 1}),
    ),
    "client_wins, delete": ("journal", change("delete", EARLIER), ("client", None)),
    "most_recent_wins, later": ("report", change("put", LATER, data={"a": 2}), ("client", {"a": 2})),
    "most_recent_wins, later patch": (
        "report",
        change("patch", LATER, data={"a": 2, "status": None}),
        ("client", {"a": 2, "b": 1, "escalation_level": 1}),
    ),
    "most_recent_wins, later delete": ("report", change("delete", LATER), ("client", None)),
    "most_recent_wins, earlier": ("report", change("put", EARLIER, data={"a": 2}), SERVER),
    "most_recent_wins, a tie": ("report", change("put", SAME_TIME, data={"a": 2}), SERVER),
    "preserve_escalation, put": (
        "ticket",
        change("put", EARLIER, data=PUT | {"escalated_by": "me"}),
        ("merged", {"a": 2} | ESCALATED),
    ),
    "preserve_escalation, patch": (
        "ticket",
        change("patch", EARLIER, data=PATCH),
        ("merged", {"a": 2} | ESCALATED),
    ),
    "preserve_escalation, nothing of it touched": (
        "ticket",
        change("patch", EARLIER, data={"a": 2}),
        ("client", STANDS | {"a": 2}),
    ),
    "preserve_escalation, nothing else touched": (
        "ticket",
        change("patch", LATER, data={"status": "INPROGRESS"}),
        SERVER,
    ),
    "preserve_escalation, delete": ("ticket", change("delete", LATER), SERVER),
    "field_merge, later put": ("form", change("put", LATER, data={"a": 2}), ("client", {"a": 2})),
    "field_merge, earlier put": ("form", change("put", EARLIER, data={"a": 2}), SERVER),
    "field_merge, later delete": ("form", change("delete", LATER), ("client", None)),
    "field_merge, earlier delete": ("form", change("delete", EARLIER), SERVER),
}
POLICIES = {
    "attendance": "server_wins",
    "journal": "client_wins",
    "report": "most_recent_wins",
    "ticket": "preserve_escalation",
    "form": "field_merge",
    "note": "manual",
}
#: The server's record of a domain that declares steps has a status that they know.
DECLARED = {"attendance": "VERIFIED"}


@pytest.mark.parametrize(("domain", "sent", "outcome"), OUTCOMES.values(), ids=OUTCOMES)
async def test_policy_each_one_has_its_outcome(
    shared: Running, domain: str, sent: Json, outcome: tuple[str, Json | None]
) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    stands = STANDS | ({"status": DECLARED[domain]} if domain in DECLARED else {})
    await phone.push(item("put", domain, "r1", base=None, at=day(5), data=stands))
    winner, data = outcome
    if data is STANDS:
        data = stands
    written = winner != "server"
    version = 2 if written else 1
    assert await tablet.push({"domain": domain, "id": "r1", "base": None, **sent}) == [
        {
            "domain": domain,
            "id": "r1",
            "status": "resolved",
            "winner": winner,
            "policy": POLICIES[domain],
            "version": version,
            "seq": version,
            "data": data,
        }
    ]
    (stored,) = (await phone.pull())["changes"]
    assert (stored["version"], stored["data"]) == (version, data)
    assert stored["at"] == (
        sent["at"] if written and domain != "form" else max(sent["at"], day(5)) if written else day(5)
    )
    assert stored["device_id"] == ("tablet" if written else "phone")


#: Who wins against the tombstone of a record, of day 5, with a later change of another device.
AGAINST_TOMBSTONE = {
    "attendance": "server",
    "journal": "client",
    "task": "client",
    "ticket": "server",
    "form": "client",
    "form_server": "server",
}


@pytest.mark.parametrize(("op", "back"), [("put", {"a": 2}), ("patch", {"a": 2, "b": {"c": 1}})])
@pytest.mark.parametrize(("domain", "winner"), AGAINST_TOMBSTONE.items())
async def test_policy_change_against_a_tombstone_has_its_outcome(
    shared: Running, domain: str, winner: str, op: str, back: Json
) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(
        item("put", domain, "r1", at=day(4), data={"a": 1, "b": {"c": 1}}),
        item("delete", domain, "r1", base=1, at=day(5)),
    )
    (gone,) = (await tablet.pull())["changes"]
    assert (gone["deleted"], gone["data"]) == (True, None)
    (result,) = await tablet.push(item(op, domain, "r1", base=1, at=day(6), data={"a": 2}))
    data = back if winner == "client" else None
    assert (result["status"], result["winner"], result["data"]) == ("resolved", winner, data)
    (stands,) = (await phone.pull())["changes"]
    assert stands["data"] == data


async def test_policy_time_in_the_future_does_not_win_for_ever(shared: Running) -> None:
    """What is later than the server's now counts as now: the next change is later all the same."""
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(put("a1", None, n=1) | {"at": "2999-01-01T00:00:00Z"})
    (result,) = await tablet.push(put("a1", None, n=2))
    assert (result["winner"], result["version"]) == ("client", 2)


async def test_policy_wrong_clock_that_hello_told_does_not_win(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(put("a1", None, n=1) | {"at": day(20)})
    await tablet.send({"type": "hello", "clock": "2999-01-01T00:00:00Z"})
    (result,) = await tablet.push(put("a1", None, n=2) | {"at": "2998-01-01T00:00:00Z"})
    assert result["winner"] == "client"
    (result,) = await tablet.push(put("a1", None, n=3) | {"at": day(25)})
    assert result["winner"] == "server"


async def test_policy_server_takes_no_version_where_nothing_is_written(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(item("put", "attendance", "r1", data={"a": 1}), item("put", "note", "r1", data={"a": 1}))
    results = await tablet.push(
        item("put", "attendance", "r1", data={"a": 2}),
        item("put", "note", "r1", data={"a": 2}),
        item("put", "note", "r1", data={"a": 1}),
    )
    assert [(one["status"], one["version"], one["seq"]) for one in results] == [
        ("resolved", 1, 1),
        ("conflict", 1, 2),
        ("conflict", 1, 2),
    ]
    (next_one,) = await tablet.push(put("a1", None, n=1))
    assert next_one["seq"] == 3


# -- the tenant's own policies, and the log ---------------------------------------------------


def chosen(tenant: str, domain: str, policy: str, fallback: str = "most_recent_wins") -> list[str]:
    """Statements by which an operator sets a policy."""
    row = f"SELECT tenant_id, '{domain}', '{policy}', '{fallback}' FROM tenants WHERE name = '{tenant}'"
    return [
        f"INSERT INTO tenant_conflict_policy {row}",
        "UPDATE cluster_state SET generation = generation + 1",
    ]


@pytest.mark.asyncio(loop_scope="function")
async def test_policy_of_a_tenant_applies_to_it_alone(serve: Serve, dsn: str) -> None:
    execute(
        dsn,
        *chosen("acme", "task", "server_wins"),
        *chosen("acme", "journal", "manual"),
        *chosen("acme", "ticket", "field_merge", "server_wins"),
    )
    server = await serve()
    winners: dict[str, list[object]] = {}
    for tenant in ("acme", "globex"):
        phone, tablet = await server.device("phone", tenant), await server.device("tablet", tenant)
        policies = phone.welcome["policies"]
        assert (policies["task"], policies["journal"], policies["ticket"]) == (
            ("server_wins", "manual", "field_merge")
            if tenant == "acme"
            else ("field_merge", "client_wins", "preserve_escalation")
        )
        assert policies["attendance"] == "server_wins"
        for domain in ("task", "journal", "ticket"):
            await phone.push(item("put", domain, "r1", at=day(1), data={"a": 1}))
        results = await tablet.push(
            *(item("put", domain, "r1", at=day(2), data={"a": 2}) for domain in ("task", "journal", "ticket"))
        )
        winners[tenant] = [one.get("winner", one["status"]) for one in results]
    assert winners == {"acme": ["server", "conflict", "server"], "globex": ["client", "client", "client"]}


@pytest.mark.asyncio(loop_scope="function")
async def test_policy_change_is_announced_and_applies_in_every_process(serve: Serve) -> None:
    servers = [await serve(**SHARED), await serve(**SHARED)]
    phones = [await one.device(f"phone{number}") for number, one in enumerate(servers)]
    stranger = await servers[0].device("phone", "globex")
    await phones[0].push(put("a1", None, n=1))
    execute(servers[0].dsn, *chosen("acme", "task", "manual"))
    for phone in phones:
        told = await phone.waited("policies")
        assert told == {"type": "policies", "policies": phone.welcome["policies"] | {"task": "manual"}}
    other = await servers[1].device("tablet")
    (result,) = await other.push(put("a1", None, n=2))
    assert result["status"] == "conflict"
    await stranger.ask("heartbeat")
    assert stranger.unasked == []


@pytest.mark.asyncio(loop_scope="function")
async def test_policy_every_conflict_is_logged_with_both_sides(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    for domain in ("attendance", "journal", "note"):
        await phone.push(item("put", domain, "r1", data={"a": 1}))
    await tablet.push(
        item("put", "attendance", "r1", base=9, data={"a": 2}),
        item("patch", "journal", "r1", data={"b": 2}),
        item("delete", "note", "r1"),
        item("put", "note", "r1", base=1, data={"a": 1}),
    )
    assert rows(
        server.dsn,
        "SELECT domain, policy, outcome, device_id, server_version, server_data::text, client_op,"
        " client_base, client_data::text FROM conflict_resolution_log ORDER BY domain",
    ) == [
        ("attendance", "server_wins", "server", "tablet", 1, '{"a":1}', "put", 9, '{"a":2}'),
        ("journal", "client_wins", "client", "tablet", 1, "{}", "patch", None, '{"b":2}'),
        ("note", "manual", "open", "tablet", 1, '{"a":1}', "delete", None, None),
    ]
