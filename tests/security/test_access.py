"""What is another's: asking for it is answered as asking for what does not exist, byte by byte."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final, NamedTuple

import pytest

from tests.harness.in_process_server import ON_SHARED
from tests.harness.uploads.tus_uploader import TUS, described, encoded
from tests.harness.ws_device import Json, item, put
from tests.security.arena import Arena, Seeded
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API1:2023", "V8.2")]

JSON: Final = {"Content-Type": "application/json"}
DRAFT: Final = {"Upload-Draft-Interop-Version": "6"}
CHUNK: Final = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
PARTIAL: Final = {"Upload-Offset": "0", "Upload-Complete": "?0", "Content-Type": "application/partial-upload"}
RESOLUTION: Final = b'{"choice":"client","version":1}'
MERGED: Final = b'{"choice":"merged","version":1,"data":{"owned":true}}'
NOBODYS: Final = "0123456789abcdef" * 2


class Look(NamedTuple):
    """A request about something by its id; ``of`` is the field of ``Seeded`` that has it."""

    of: str
    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    status: int = 404


CONFLICTS: Final = {
    "settle a conflict": Look("conflict_id", "POST", "/v1/conflicts/{id}/resolution", JSON, RESOLUTION),
    "merge a conflict": Look("conflict_id", "POST", "/v1/conflicts/{id}/resolution", JSON, MERGED),
}
UPLOADS: Final = {
    "ask for an upload": Look("upload", "HEAD", "/v1/uploads/{id}", TUS),
    "append to an upload": Look("upload", "PATCH", "/v1/uploads/{id}", TUS | CHUNK, b"abc"),
    "append to it beyond its end": Look(
        "upload", "PATCH", "/v1/uploads/{id}", TUS | CHUNK | {"Upload-Offset": "999"}, b"abc"
    ),
    "cancel an upload": Look("upload", "DELETE", "/v1/uploads/{id}", TUS),
    "cancel it as a POST": Look(
        "upload", "POST", "/v1/uploads/{id}", TUS | {"X-HTTP-Method-Override": "DELETE"}
    ),
    "append to it as a POST": Look(
        "upload", "POST", "/v1/uploads/{id}", TUS | CHUNK | {"X-HTTP-Method-Override": "PATCH"}, b"a"
    ),
    "ask for an upload by the draft": Look("upload", "HEAD", "/v1/uploads/{id}", DRAFT),
    "append to an upload by the draft": Look("upload", "PATCH", "/v1/uploads/{id}", DRAFT | PARTIAL, b"abc"),
    "cancel an upload by the draft": Look("upload", "DELETE", "/v1/uploads/{id}", DRAFT),
    "put an upload into a final one": Look(
        "upload",
        "POST",
        "/v1/uploads",
        TUS | {"Upload-Concat": "final;/v1/uploads/{id}", "Upload-Metadata": encoded(described())},
    ),
    "ask for the upload of a file": Look("file", "HEAD", "/v1/uploads/{id}", TUS),
    "append to a file": Look("file", "PATCH", "/v1/uploads/{id}", TUS | CHUNK, b"abc"),
    "delete a file": Look("file", "DELETE", "/v1/uploads/{id}", TUS),
}
FILES: Final = {
    "read a file": Look("file", "GET", "/v1/files/{id}"),
    "ask for a file": Look("file", "HEAD", "/v1/files/{id}"),
    "read a part of a file": Look("file", "GET", "/v1/files/{id}", {"Range": "bytes=0-0"}),
    "read past a file": Look("file", "GET", "/v1/files/{id}", {"Range": "bytes=9999-"}),
    "ask whether a file is there": Look("file", "GET", "/v1/files/{id}", {"If-None-Match": "*"}),
    "read an upload": Look("upload", "GET", "/v1/files/{id}"),
}


class Attacker(NamedTuple):
    """Whose token asks: of a device, its tenant and its role."""

    device: str
    tenant: str
    role: str | None = None


OTHER_TENANTS: Final = {
    "a device of another tenant": Attacker("phone", "globex"),
    "the device of the same name": Attacker("owner", "globex"),
    "a supervisor of another tenant": Attacker("boss", "globex", "supervisor"),
}
OTHER_DEVICES: Final = {"another device of the tenant": Attacker("phone", "acme")}
#: A supervisor may settle every conflict of its tenant, and has the files of all its devices; the uploads of
#: others it has not.
SUPERVISORS: Final = {"a supervisor of the tenant": Attacker("boss", "acme", "supervisor")}

LOOKS: Final = [
    *((name, look, who) for name, look in (CONFLICTS | UPLOADS | FILES).items() for who in OTHER_TENANTS),
    *((name, look, who) for name, look in (CONFLICTS | UPLOADS).items() for who in OTHER_DEVICES),
    *((name, look, who) for name, look in UPLOADS.items() for who in SUPERVISORS),
]
ATTACKERS: Final = OTHER_TENANTS | OTHER_DEVICES | SUPERVISORS


class Told(NamedTuple):
    """An answer, without what differs from second to second, and without the id that was asked for."""

    status: int
    headers: dict[str, str]
    body: bytes


async def _told(arena: Arena, look: Look, attacker: Attacker, wanted: str) -> Told:
    token = arena.running.token(attacker.device, attacker.tenant, role=attacker.role)
    reply = await arena.ask(
        look.method,
        look.path.replace("{id}", wanted),
        token,
        headers={name: value.replace("{id}", wanted) for name, value in look.headers.items()},
        body=look.body,
    )
    headers = {name: value for name, value in reply.headers.items() if name != "Date"}
    return Told(reply.status, headers, reply.body.replace(wanted.encode(), b"ID"))


def _id(seeded: Seeded, of: str) -> str:
    wanted: str = getattr(seeded, of)
    return wanted.rpartition("/")[2]


@pytest.mark.parametrize(
    ("look", "who"), [one[1:] for one in LOOKS], ids=[f"{one[2]}, to {one[0]}" for one in LOOKS]
)
async def test_look_at_what_is_anothers_is_a_look_at_nothing(look: Look, who: str, arena: Arena) -> None:
    attacker = ATTACKERS[who]
    async with arena.holds():
        await _told(arena, look, attacker, NOBODYS)  # from here on the device is known
        (theirs, at_theirs), (nothing, at_nothing) = await arena.round_trips(
            lambda: _told(arena, look, attacker, _id(arena.seeded["acme"], look.of)),
            lambda: _told(arena, look, attacker, NOBODYS),
        )
    assert theirs == nothing
    assert at_theirs == at_nothing
    assert theirs.status == look.status
    if look.method != "HEAD":
        assert b'"code":"not_found"' in theirs.body


# -- cursors, conflicts and keys over a socket --------------------------------------------------


def _cursor(of: str, **change: str) -> str:
    """Change a part of a cursor: version, epoch, tenant, domains, seq."""
    names = ("version", "epoch", "tenant", "domains", "seq")
    parts = base64.urlsafe_b64decode(of + "=" * (-len(of) % 4)).decode().split(".")
    text = ".".join((dict(zip(names, parts, strict=True)) | change).values())
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


CURSORS: Final[dict[str, dict[str, str]]] = {
    "as it is": {},
    "at the beginning": {"seq": "0"},
    "beyond the end": {"seq": "999999"},
    "of one domain": {"domains": "0" * 12},
    "of another epoch": {"epoch": "0" * 32},
}


@pytest.mark.parametrize("change", CURSORS.values(), ids=CURSORS)
@pytest.mark.parametrize("kind", ["pull", "subscribe"])
async def test_cursor_of_another_tenant_is_one_of_none(
    kind: str, change: dict[str, str], arena: Arena
) -> None:
    phone = await arena.running.device("phone", "globex")
    theirs = _cursor(arena.seeded["acme"].cursor, **change)
    nobodys = _cursor(theirs, tenant="2000000000")
    async with arena.holds():
        answers = [await phone.ask(kind, cursor=cursor, id="1") for cursor in (theirs, nobodys)]
        over_http = [
            await arena.ask("GET", f"/v1/changes?cursor={cursor}", arena.running.token("phone", "globex"))
            for cursor in (theirs, nobodys)
        ]
    assert answers[0] == answers[1]
    assert (answers[0]["type"], answers[0]["code"]) == ("error", "cursor_expired")
    assert over_http[0].body == over_http[1].body
    assert over_http[0].verdict == (410, "cursor_expired")


CONFLICTS_OF: Final = {
    "settled by another tenant": Attacker("phone", "globex"),
    "settled by a supervisor of another tenant": Attacker("boss", "globex", "supervisor"),
    "settled by another device": Attacker("phone", "acme"),
}


@pytest.mark.parametrize("attacker", CONFLICTS_OF.values(), ids=CONFLICTS_OF)
@pytest.mark.parametrize("choice", ["server", "client", "merged"])
async def test_conflict_of_another_over_a_socket_is_none(
    attacker: Attacker, choice: str, arena: Arena
) -> None:
    phone = await arena.running.device(attacker.device, attacker.tenant, role=attacker.role)
    fields: Json = {"choice": choice, "version": 1, "data": {"owned": True}}
    async with arena.holds():
        theirs, nobodys = [
            await phone.ask("resolve", id="1", conflict_id=conflict_id, **fields)
            for conflict_id in (arena.seeded["acme"].conflict_id, NOBODYS)
        ]
    assert theirs == nobodys
    assert (theirs["type"], theirs["code"]) == ("error", "not_found")


@pytest.mark.parametrize(
    "attacker",
    [Attacker("late", "acme"), Attacker("late", "globex"), Attacker("late", "globex", "supervisor")],
    ids=["another device", "another tenant", "a supervisor of another tenant"],
)
async def test_list_of_conflicts_behind_one_of_another_is_that_behind_none(
    attacker: Attacker, arena: Arena
) -> None:
    """The attacker has a conflict of its own, which began later: a place in the list would show it."""
    phone = await arena.running.device(attacker.device, attacker.tenant, role=attacker.role)
    changing = ("conflict_resolution_log", "sync_idempotency_record", "tenant_counters")
    async with arena.holds(*changing, tenants=[attacker.tenant]):
        await phone.push(item("put", "note", "n1", data={"late": 1}))
    theirs, nobodys = [
        await phone.ask("conflicts", id="1", after=after)
        for after in (arena.seeded["acme"].conflict_id, NOBODYS)
    ]
    assert theirs == nobodys
    assert (theirs["type"], theirs["conflicts"]) == ("conflicts", [])


# -- people -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["operator", "viewer"])
@against("API5:2023", "V8.4")
async def test_health_of_another_tenant_is_that_of_none(role: str, arena: Arena) -> None:
    token = arena.running.token(None, "globex", role=role)
    async with arena.holds():
        await arena.ask("GET", "/v1/admin/health", token)
        (theirs, at_theirs), (nothing, at_nothing) = await arena.round_trips(
            lambda: arena.ask("GET", f"/v1/admin/health?tenant={arena.running.tenant('acme')}", token),
            lambda: arena.ask("GET", "/v1/admin/health?tenant=nobody", token),
        )
    assert theirs.body == nothing.body
    assert theirs.verdict == (403, "forbidden")
    assert at_theirs == at_nothing


ROUTES: Final = (
    "/v1/admin",
    "/v1/admin/",
    "/v1/admin/health/",
    "/v1/admin/health/{tenant}",
    "/v1/admin/tenants",
    "/v1/admin/tenants/{tenant}",
    "/v1/admin/devices",
    "/v1/admin/keys",
    "/v1/admin/jobs",
    "/v1/admin/exports",
    "/v1/admin/audit",
    "/v1/admin/quarantine",
    "/v1/admin/live",
    "/v1/tenants/{tenant}/records",
    "/v1/records/task/pump-1",
    "/v1/quarantine/{quarantine}",
    "/v1/files",
    "/v1/files/../admin/health",
    "/v1//admin/health",
    "/V1/admin/health",
    "/v1/admin%2fhealth",
    "/v1/admin/health;a=b",
    "/v1/changes/..;/admin/health",
    "/v2/sync",
    "/debug",
    "/console",
    "/actuator/env",
    "/.git/config",
    "/.env",
    "/config.toml",
)


@pytest.mark.parametrize("route", ROUTES)
@against("API9:2023", "V13.4")
async def test_route_that_is_none_is_the_same_for_everybody(route: str, arena: Arena) -> None:
    seeded = arena.seeded["acme"]
    path = route.format(tenant=arena.running.tenant("acme"), quarantine=seeded.quarantine_id)
    tokens = [
        None,
        arena.running.token("owner"),
        arena.running.token("boss", role="supervisor"),
        arena.running.token(None, role="viewer"),
        arena.running.token(None, role="operator", tid=None),
    ]
    async with arena.holds():
        replies = [await arena.ask("GET", path, token) for token in tokens]
    assert {reply.verdict for reply in replies} == {(404, "not_found")}
    assert len({reply.body for reply in replies}) == 1


# -- members of a message that are the server's --------------------------------------------------

MEMBERS: Final[dict[str, Json]] = {
    "the tenant": {"tenant": "globex", "tenant_id": 1, "tid": "globex"},
    "the device": {"device_id": "owner", "did": "owner", "device": "owner"},
    "the version": {"version": 99},
    "the place in the feed": {"seq": 99},
    "the time of the server": {"at_us": 1, "received_at": "2020-01-01T00:00:00Z"},
    "the files": {"attachments": [{"file_id": NOBODYS}]},
    "the policy": {"policy": "client_wins", "winner": "client"},
    "the status": {"status": "resolved", "error": None},
    "the role": {"role": "supervisor", "supervisor": True},
    "the user": {"sub": "root", "user": "root"},
    "a parent of all objects": {"__proto__": {"supervisor": True}, "constructor": {"prototype": {}}},
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS)
@against("API3:2023", "V15.3")
async def test_member_that_is_the_servers_is_ignored(members: Json, arena: Arena) -> None:
    phone = await arena.running.device("phone")
    name = f"with {min(members)}"
    changing = ("records", "sync_idempotency_record", "tenant_counters")
    async with arena.holds(*changing):
        (result,) = await phone.push(put(name, None, n=1) | members, **members)
    assert (result["status"], result["version"]) == ("applied", 1)
    [row] = arena.rows(
        "SELECT device_id, version, attachments::text, data::jsonb FROM records"
        " WHERE tenant_id = %s AND domain = 'task' AND id = %s",
        arena.seeded["acme"].tenant_id,
        name,
    )
    assert row == ("phone", 1, None, {"n": 1})
