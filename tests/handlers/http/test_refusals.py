"""What a server refuses for security leaves its event and its counter; no request waits for it."""

from __future__ import annotations

import time

import pytest
from aiohttp import WSServerHandshakeError

from engine.wire.close_codes import CloseCode
from engine.wire.errors import SyncError
from handlers.http.unauthenticated import UnauthenticatedConnections, UnauthenticatedLimits
from tests.handlers.http.test_edge_protocol import from_address
from tests.harness.admin import revoke_device
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import rows
from tests.harness.ws_device import token

_EVENTS = (
    "SELECT event, actor_kind, actor, tenant, target, details->>'message', times FROM audit_log"
    " WHERE event IN ('token_refused', 'access_forbidden') ORDER BY audit_id"
)
_CLOSED = (
    "SELECT actor_kind, actor, tenant, tenant_number, target, details->>'message' FROM audit_log"
    " WHERE event = 'socket_closed' ORDER BY audit_id"
)
_EXPIRED = "the token has expired"


async def told(server: Running) -> list[tuple[object, ...]]:
    """Stop the server, and read what it refused."""
    await server.drained()
    return rows(server.dsn, _EVENTS)


async def test_refusal_handshakes_and_requests_of_wrong_tokens_are_told_by_address(serve: Serve) -> None:
    server = await serve()
    with pytest.raises(WSServerHandshakeError):
        await server.device("phone", exp=int(time.time()) - 1000)
    url = server.url + "/v1/domains"
    async with server.http.get(url) as unnamed:
        assert unnamed.status == 401
    async with server.http.get(url, headers={"Authorization": "Bearer x.y.z"}) as forged:
        assert forged.status == 401
    metrics = (await server.get("/metrics")).body.decode()
    assert 'tidemark_security_events_total{event="token_refused"} 3\n' in metrics
    here = ("address", "127.0.0.1", None)
    assert await told(server) == [
        ("token_refused", *here, "GET /v1/sync", _EXPIRED, 1),
        ("token_refused", *here, "GET /v1/domains", "a token is required: Authorization: Bearer …", 1),
        ("token_refused", *here, "GET /v1/domains", "the token is not valid", 1),
    ]


async def test_refusal_verified_tokens_are_told_by_their_person_or_device(serve: Serve, dsn: str) -> None:
    revoke_device(dsn, "acme", "phone")
    server = await serve()
    for device, claims in (("phone", {"sub": "ann"}), ("phone", {})):
        with pytest.raises(WSServerHandshakeError):
            await server.device(device, **claims)
    headers = {"Authorization": f"Bearer {token(None, None, role='viewer', sub='eve')}"}
    async with server.http.get(server.url + "/v1/domains", headers=headers) as answer:
        assert answer.status == 403
    headers = {"Authorization": f"Bearer {token('acme', None, role='viewer', sub='eve', jti='7')}"}
    async with server.http.get(server.url + "/v1/admin/health?tenant=globex", headers=headers) as answer:
        assert answer.status == 403
    revoked = "this device or its token was revoked"
    assert await told(server) == [
        ("token_refused", "user", "ann", "acme", "GET /v1/sync", revoked, 1),
        ("token_refused", "device", "phone", "acme", "GET /v1/sync", revoked, 1),
        (
            "access_forbidden",
            *("user", "eve", None, "GET /v1/domains"),
            "this is not the token of a device: it needs a tid and a did",
            1,
        ),
        (
            "access_forbidden",
            *("user", "eve", "acme", "GET /v1/admin/health"),
            "this token is for one tenant alone, and that is another one",
            1,
        ),
    ]
    assert rows(server.dsn, "SELECT details->>'jti' FROM audit_log WHERE event = 'access_forbidden'") == [
        ("1",),
        ("7",),
    ]


async def test_refusal_flood_leaves_few_rows_and_the_whole_count(serve: Serve) -> None:
    server = await serve()
    for _ in range(200):
        async with server.http.get(
            server.url + "/v1/domains", headers={"Authorization": "Bearer x"}
        ) as answer:
            assert answer.status == 401
    told_rows = await told(server)
    assert [row[-1] for row in told_rows] == [1] * 5 + [195]


async def test_refusal_of_an_origin_and_of_any_text_is_told(serve: Serve) -> None:
    server = await serve()
    reply = await server.get("/v1/domains", headers={"Origin": "https://evil.example"})
    assert reply.status == 403
    async with server.http.get(server.url + "/v1/files/%00%FF\u202e") as answer:
        assert answer.status in (401, 404)
    (origin, *_) = await told(server)
    assert origin[0] == "access_forbidden"
    assert origin[-2] == "this origin is not allowed: add it to server.origins"


async def test_refusal_sockets_closed_for_what_they_sent_are_told_and_no_others(serve: Serve) -> None:
    server = await serve(limits={"frame_bytes": 1 << 20})
    await (await server.device("fine")).socket.close()
    phone = await server.device("phone", sub="ann")
    await phone.socket.send_bytes(b"{}")
    assert await phone.closed() == CloseCode.BAD_FRAMES
    tablet = await server.device("tablet", "globex")
    await tablet.socket.send_str("x" * ((1 << 20) + 1))
    assert await tablet.closed() == CloseCode.TOO_LARGE
    await server.drained()
    assert rows(server.dsn, _CLOSED) == [
        ("user", "ann", "acme", 1, "4400", CloseCode.BAD_FRAMES.meaning),
        ("device", "tablet", "globex", 2, "1009", CloseCode.TOO_LARGE.meaning),
    ]


async def test_refusal_connections_and_heads_past_their_bounds_are_told_by_address(serve: Serve) -> None:
    told: list[tuple[str, str | None, str]] = []
    unauthenticated = UnauthenticatedConnections(
        UnauthenticatedLimits(
            head_s=1, head_bytes=1 << 16, address_connections=1, write_patience_s=1, trusted=()
        ),
        on_refused=lambda *what: told.append(what),
    )
    unauthenticated.enter("192.0.2.1")
    with pytest.raises(SyncError):
        unauthenticated.enter("192.0.2.1")
    unauthenticated.refuse_head("192.0.2.2", SyncError("overloaded", ""))
    assert told == [("connections_refused", "192.0.2.1", ""), ("heads_refused", "192.0.2.2", "overloaded")]
    server = await serve(server={"port": 0, "address_connections": 1})
    async with from_address("127.0.0.2", server) as first:
        assert (await first.ask("GET", "/healthz", {})).status == 200
        async with from_address("127.0.0.2", server) as second:
            assert (await second.answer()).status == 503
    await server.drained()
    refused = "SELECT actor, times FROM audit_log WHERE event = 'connections_refused'"
    assert rows(server.dsn, refused) == [("127.0.0.2", 1)]
