"""Tokens that are forged, expired or another's, at every door of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import jwt
import pytest

from tests.harness.in_process_server import ON_SHARED, Reply
from tests.harness.raw_http import wired
from tests.security.arena import Arena
from tests.security.catalogue import against
from tests.security.forged import CLAIMS, SERVERS, SIGNATURES, Forge, claims, signed

pytestmark = [ON_SHARED, against("API2:2023", "V9.1")]

JSON: Final = {"Content-Type": "application/json"}
UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
TUS: Final = {"Tus-Resumable": "1.0.0"}


class Door(NamedTuple):
    """A request that needs a token."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None


DOORS: Final = {
    "a socket": Door("GET", "/v1/sync", UPGRADE),
    "a sync": Door("POST", "/v1/sync", JSON, b'{"type":"sync","key":"k","items":[]}'),
    "a pull": Door("GET", "/v1/changes"),
    "conflicts": Door("GET", "/v1/conflicts"),
    "a resolution": Door("POST", "/v1/conflicts/1/resolution", JSON, b'{"choice":"client","version":1}'),
    "a heartbeat": Door("POST", "/v1/heartbeat", JSON, b"{}"),
    "telemetry": Door("POST", "/v1/telemetry", JSON, b'{"key":"k"}'),
    "domains": Door("GET", "/v1/domains"),
    "an upload": Door("POST", "/v1/uploads", TUS | {"Upload-Length": "10"}),
    "a part of an upload": Door("PATCH", "/v1/uploads/" + "0" * 32, TUS | {"Upload-Offset": "0"}, b"abc"),
    "the end of an upload": Door("DELETE", "/v1/uploads/" + "0" * 32, TUS),
    "an upload of the draft": Door(
        "POST", "/v1/uploads", {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?0"}, b"abc"
    ),
    "a file": Door("GET", "/v1/files/" + "0" * 32),
    "health": Door("GET", "/v1/admin/health"),
}


async def _knock(arena: Arena, door: Door, token: str | None, **headers: str) -> Reply:
    sent = {**door.headers, **headers}
    return await arena.ask(door.method, door.path, token, headers=sent, body=door.body)


def _is_refused(reply: Reply, message: str) -> None:
    assert reply.verdict == (401, "unauthenticated")
    wanted = {"type": "error", "code": "unauthenticated", "message": message, "retryable": False}
    assert reply.message == wanted
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("forged", SIGNATURES.values(), ids=SIGNATURES)
async def test_token_of_a_forged_signature_is_refused(forged: tuple[Forge, str], arena: Arena) -> None:
    forge, message = forged
    async with arena.holds():
        reply = await _knock(arena, DOORS["a sync"], forge(arena.running.tenant("globex")))
    _is_refused(reply, message)


@pytest.mark.parametrize("change", CLAIMS.values(), ids=CLAIMS)
@against("API2:2023", "V9.2")
async def test_token_of_wrong_claims_is_refused(change: tuple[dict[str, object], str], arena: Arena) -> None:
    said, message = change
    async with arena.holds():
        reply = await _knock(arena, DOORS["a sync"], signed(claims(arena.running.tenant("acme"), **said)))
    _is_refused(reply, message)


ANYWHERE: Final = ("alg none", "a public key as a secret", "another key and its jwk", "a kid that is a path")


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
async def test_door_of_any_kind_refuses_forged_tokens(door: Door, name: str, arena: Arena) -> None:
    forge, message = SIGNATURES[name]
    async with arena.holds():
        reply = await _knock(arena, door, forge(arena.running.tenant("globex")))
    _is_refused(reply, message)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@against("API2:2023", "V8.2")
async def test_door_of_any_kind_refuses_nobody(door: Door, arena: Arena) -> None:
    async with arena.holds():
        reply = await _knock(arena, door, None)
    _is_refused(reply, "a token is required: Authorization: Bearer …")


async def test_door_of_each_key_opens_for_its_tokens(arena: Arena) -> None:
    """What this file shows to be refused is refused for what it says, and not for what it is."""
    acme = arena.running.tenant("acme")
    good = [signed(claims(acme))]
    good += [jwt.encode(claims(acme), SERVERS["es"], "ES256", {"kid": "es"})]
    good += [jwt.encode(claims(acme), SERVERS["ed"], "EdDSA", {"kid": "ed"})]
    for token in good:
        assert (await _knock(arena, DOORS["a pull"], token)).status == 200, token


#: Where a token may be that nobody looks for it: addresses stand in logs, and browsers send cookies unasked.
PLACES: Final = {
    "the address": ("?access_token={token}", {}),
    "the address, as the header": ("?Authorization=Bearer%20{token}", {}),
    "a cookie": ("", {"Cookie": "token={token}; Authorization=Bearer {token}"}),
    "another scheme": ("", {"Authorization": "Basic {token}"}),
    "no scheme": ("", {"Authorization": "{token}"}),
    "quotes": ("", {"Authorization": 'Bearer "{token}"'}),
    "behind another": ("", {"Authorization": "Bearer x, Bearer {token}"}),
    "a header of proxies": ("", {"X-Forwarded-Authorization": "Bearer {token}", "X-Forwarded-User": "owner"}),
    "a header of another name": ("", {"X-Access-Token": "{token}", "Proxy-Authorization": "Bearer {token}"}),
    "the password of the address": ("", {"Authorization": "Basic b3duZXI6e3Rva2VufQ=="}),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@against("API2:2023", "V14.2")
async def test_token_where_none_belongs_is_not_looked_for(
    place: tuple[str, dict[str, str]], arena: Arena
) -> None:
    query, headers = place
    token = arena.running.token("owner")
    async with arena.holds():
        reply = await arena.ask(
            "GET",
            "/v1/changes" + query.format(token=token),
            headers={name: value.format(token=token) for name, value in headers.items()},
        )
    assert reply.verdict == (401, "unauthenticated")
    assert token not in reply.body.decode()


async def test_token_of_two_headers_is_the_first(arena: Arena) -> None:
    """A proxy that looks at one and a server that looks at the other would let pass what neither has seen."""
    async with arena.holds(), wired(arena.url) as wire:
        good = f"Authorization: Bearer {arena.running.token('owner')}"
        await wire.head("GET", "/v1/changes", {"Authorization": "Bearer x"}, good)
        reply = await wire.answer()
    assert reply.verdict == (401, "unauthenticated")


async def test_token_of_an_earlier_request_counts_for_that_one_alone(arena: Arena) -> None:
    async with arena.holds(), wired(arena.url) as wire:
        good = {"Authorization": f"Bearer {arena.running.token('owner')}"}
        assert (await wire.ask("GET", "/v1/changes", good)).status == 200
        reply = await wire.ask("GET", "/v1/changes", {})
    assert reply.verdict == (401, "unauthenticated")


async def test_token_too_long_is_refused_unread(arena: Arena) -> None:
    async with arena.holds():
        reply = await _knock(arena, DOORS["a pull"], signed(claims("acme", x="a" * 9000)))
    _is_refused(reply, "the token is too long: the limit is 8192 characters")


@pytest.mark.parametrize("kind", ["authenticate", "login", "token", "hello"])
async def test_message_of_a_socket_changes_nobody(kind: str, arena: Arena) -> None:
    """A device is who its handshake's token says, whatever its messages say."""
    phone = await arena.running.device("phone")
    other = arena.running.token("owner", "globex", role="supervisor")
    naming = {"token": other, "tid": arena.running.tenant("globex"), "did": "owner", "role": "supervisor"}
    async with arena.holds():
        if kind == "hello":
            await phone.send({"type": "hello", **naming})
        else:
            answer = await phone.ask(kind, **naming)
            assert (answer["type"], answer["code"]) == ("error", "unknown_type")
        listed = await phone.ask("conflicts")
    assert listed["conflicts"] == []


@pytest.mark.parametrize("tenant", ["nobody", "ACME", "acme ", "acm", "globex%", "*"])
@against("API1:2023", "V8.2")
async def test_tenant_that_does_not_exist_is_forbidden(tenant: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await _knock(arena, DOORS["a pull"], signed(claims(tenant)))
    assert reply.verdict == (403, "forbidden")
    assert reply.message["message"] == "there is no such tenant: check the tid of the token"


@against("API2:2023", "V6.3")
async def test_guesses_are_refused_counted_and_lock_nobody_out(arena: Arena) -> None:
    guesses = 200
    acme = arena.running.tenant("acme")
    name = 'tidemark_errors_total{code="unauthenticated"}'
    before = (await arena.counted())[name]
    async with arena.holds():
        for guess in range(guesses):
            token = signed(claims(acme), guess.to_bytes(32, "big"))
            assert (await _knock(arena, DOORS["a pull"], token)).verdict == (401, "unauthenticated")
    assert (await arena.counted())[name] - before == guesses
    assert (await _knock(arena, DOORS["a pull"], signed(claims(acme)))).status == 200
