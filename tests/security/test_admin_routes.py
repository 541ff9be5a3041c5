"""Routes of people: a device's token opens none of them, nor does a person's token one of devices."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.harness.in_process_server import ON_SHARED
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API5:2023", "V8.3")]

DEVICES_ALONE = "this is not the token of a device: it needs a tid and a did"
PEOPLE_ALONE = "a token of an operator or a viewer is required"


class Attack(NamedTuple):
    """A request with a token of another role, and the sentence that refuses it."""

    role: str | None
    method: str
    path: str
    message: str


ROUTES_OF_DEVICES = (
    ("POST", "/v1/sync"),
    ("GET", "/v1/sync"),
    ("GET", "/v1/changes"),
    ("GET", "/v1/conflicts"),
    ("POST", "/v1/conflicts/1/resolution"),
    ("POST", "/v1/heartbeat"),
    ("POST", "/v1/telemetry"),
    ("GET", "/v1/domains"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/files/" + "0" * 32),
)
ATTACKS = [
    *(Attack(role, "GET", "/v1/admin/health", PEOPLE_ALONE) for role in (None, "supervisor")),
    *(
        Attack(role, method, path, DEVICES_ALONE)
        for role in ("operator", "viewer")
        for method, path in ROUTES_OF_DEVICES
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: f"{one.role} {one.method} {one.path[:20]}")
async def test_route_of_another_role_is_forbidden(attack: Attack, arena: Arena) -> None:
    signed = arena.running.token("owner", role=attack.role)
    headers = {"Content-Type": "application/json", "Tus-Resumable": "1.0.0"}
    async with arena.holds():
        reply = await arena.ask(attack.method, attack.path, signed, headers=headers, body=b"{}")
    assert reply.verdict == (403, "forbidden")
    assert reply.message["message"] == attack.message
