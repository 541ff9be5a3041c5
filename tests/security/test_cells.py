"""Tokens of one cell at the server of another, which has the same key, tenant and device."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Final

import pytest
import redis.asyncio
from aiohttp import WSServerHandshakeError

from storage.bus.bus_messages import IDENTITY, BusMessage, Connected, channel_of, encode
from storage.bus.signing import signed
from storage.embedded.servers import Services
from tests.harness.in_process_server import Running, Serve, new_tenants
from tests.harness.postgres_stalls import until
from tests.harness.services import CELLS, execute, in_cell, rows
from tests.harness.uploads.tus_uploader import TUS, file_path, photo, uploader
from tests.harness.ws_device import connected, token
from tests.security.arena import figures
from tests.security.catalogue import against

pytestmark = [
    against("A01:2025", "V9.2"),
    pytest.mark.parametrize("dsn", ["cells_template"], indirect=True),
]

ONE, OTHER = (f"tidemark/{schema}" for schema in CELLS)
#: The ``aud`` of a token, and which servers let it in: of the first cell, of the second one.
TAKEN: Final[dict[str, tuple[object, tuple[bool, bool]]]] = {
    "of the first cell": (ONE, (True, False)),
    "of the second cell": (OTHER, (False, True)),
    "of both cells": ([ONE, OTHER], (True, True)),
    "of a server without a cell": ("tidemark", (False, False)),
    "of no cell": ("tidemark/", (False, False)),
    "of a cell of another audience": (f"other/{CELLS[0]}", (False, False)),
    "of a cell whose name goes on": (f"{ONE}_x", (False, False)),
    "of a cell whose name begins so": (ONE[:-1], (False, False)),
    "of the audience before a cell": ("tidemark/", (False, False)),
    "in capitals": (ONE.upper(), (False, False)),
    "with a slash behind": (f"{ONE}/", (False, False)),
    "with a slash more": (ONE.replace("/", "//"), (False, False)),
    "with a way back": (f"{OTHER}/../{CELLS[0]}", (False, False)),
    "with a point": (ONE.replace("/", "/./"), (False, False)),
    "in per cent": (ONE.replace("/", "%2f"), (False, False)),
    "with a backslash": (ONE.replace("/", "\\"), (False, False)),
    "with a letter that looks alike": (ONE.replace("c", "\u0441"), (False, False)),
    "with a slash that looks alike": (ONE.replace("/", "\u2215"), (False, False)),
    "in wide letters": (ONE.replace("cell", "\uff43\uff45\uff4c\uff4c"), (False, False)),
    "with a sign that nobody sees": (f"{ONE}\u200b", (False, False)),
    "with a NUL": (f"{ONE}\0", (False, False)),
    "with a line": (f"{ONE}\n", (False, False)),
    "with a space": (f" {ONE}", (False, False)),
    "as a list in a text": (f"{ONE},{OTHER}", (False, False)),
    "as a list in a list": ([[ONE]], (False, False)),
    "as a number in a list": ([ONE, 1], (False, False)),
    "as an object": ({ONE: OTHER}, (False, False)),
    "as a pattern": ("tidemark/*", (False, False)),
    "as true": (True, (False, False)),
    "as an empty text": ("", (False, False)),
    "as an empty list": ([], (False, False)),
    "missing": (None, (False, False)),
}
REFUSED: Final = ("the token is meant for another audience", "the token has no aud")


async def _lets_in(server: Running, text: str) -> bool:
    headers = {"Authorization": f"Bearer {text}"}
    async with server.http.get(f"{server.url}/v1/changes", headers=headers) as response:
        over_http, answer = response.status == 200, await response.text()
        assert over_http or any(sentence in answer for sentence in REFUSED)
    with nullcontext() if over_http else pytest.raises(WSServerHandshakeError, match="401"):
        async with connected(server.url, server.http, signed=text):
            pass
    return over_http


async def test_cells_token_of_one_is_refused_by_the_other(serve: Serve, dsn: str) -> None:
    execute(in_cell(dsn, CELLS[1]), new_tenants("acme"))
    servers = [await serve(at=in_cell(dsn, schema), postgres={"schema": schema}) for schema in CELLS]
    found = {
        name: tuple([await _lets_in(server, token(aud=aud)) for server in servers])
        for name, (aud, _) in TAKEN.items()
    }
    assert found == {name: taken for name, (_, taken) in TAKEN.items()}


async def test_cells_operators_token_of_one_is_refused_by_the_other(serve: Serve, dsn: str) -> None:
    """Also at ``/metrics`` from another machine, where nothing but the token lets in."""
    execute(in_cell(dsn, CELLS[1]), new_tenants("acme"))
    away = {"X-Forwarded-For": "203.0.113.7"}
    for schema, status in zip(CELLS, (200, 401), strict=True):
        server = await serve(at=in_cell(dsn, schema), postgres={"schema": schema})
        people = [token(None, None, aud=ONE, role="operator"), token("acme", None, aud=ONE, role="viewer")]
        for text, path in zip((*people, people[0]), (*["/v1/admin/health"] * 2, "/metrics"), strict=True):
            headers = away | {"Authorization": f"Bearer {text}"}
            async with server.http.get(f"{server.url}{path}", headers=headers) as response:
                assert response.status == status, (path, await response.text())


async def test_cells_ids_of_one_name_nothing_in_the_other(serve: Serve, dsn: str) -> None:
    """Both cells have a tenant of the same name and number, and files below one directory."""
    execute(in_cell(dsn, CELLS[1]), new_tenants("acme"))
    one, other = [await serve(at=in_cell(dsn, schema), postgres={"schema": schema}) for schema in CELLS]
    theirs = uploader(one, "phone", "acme")
    upload = await theirs.begun(1_000)
    file = file_path(await theirs.uploaded(photo(500), record_id="pump-1"))
    ours = uploader(other, "phone", "acme")
    looks = [("HEAD", upload), ("DELETE", upload), ("GET", file), ("HEAD", file)]
    for method, path in looks:
        assert (await ours.ask(method, path, TUS)).status == 404, (method, path)
    assert (await ours.append(upload, 0, b"stolen")).status == 404
    assert (await theirs.ask("HEAD", upload, TUS)).headers["Upload-Offset"] == "0"
    assert (await theirs.ask("GET", file, {})).body == photo(500)


async def test_cells_messages_of_one_are_not_heard_by_the_other(
    serve: Serve, dsn: str, services: Services
) -> None:
    """Who serves one cell reaches the Redis of both, and has the key of its own messages alone."""
    execute(in_cell(dsn, CELLS[1]), new_tenants("acme"))
    here, there = (in_cell(dsn, schema) for schema in CELLS)
    server = await serve(at=here, postgres={"schema": CELLS[0]})
    device = await server.device("phone")
    await device.told("heartbeat_ack", "heartbeat")
    ((name, epoch, _, _),) = rows(here, IDENTITY)
    ((_, own_epoch, own_key, _),) = rows(there, IDENTITY)
    channel, own_channel = (
        channel_of(str(name), str(epoch), CELLS[0]),
        channel_of(str(name), str(own_epoch), CELLS[1]),
    )
    later_us = time.time_ns() // 1000 + 1_000_000
    message = encode(BusMessage("forger", later_us, 1, connected=[Connected(1, "phone", "x", later_us)]))
    key = bytes(own_key)  # type: ignore[call-overload]
    forged = [signed(message, key, one) for one in (channel, own_channel)] + [
        signed(message, b"", channel),
        message,
    ]
    async with redis.asyncio.from_url(services.redis_url) as client:

        async def is_heard() -> bool:
            return await client.pubsub_numsub(channel) == [(channel.encode(), 1)]

        await until(is_heard)  # a server listens for devices before it follows the bus
        for one in forged:
            assert await client.publish(channel, one) == 1

    async def is_rejected() -> bool:
        counts = figures((await server.get("/metrics")).body)
        return counts["tidemark_bus_rejected_total"] >= len(forged)

    await until(is_rejected)
    await device.told("heartbeat_ack", "heartbeat")
    assert device.unasked == []
