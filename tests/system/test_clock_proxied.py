"""How long a request was under way is told by a proxy: a slow line through nginx is no wrong clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tests.harness.fronted import Cluster, cluster, sync
from tests.harness.in_process_server import Serve
from tests.harness.raw_http import wired
from tests.harness.ws_device import day, put, token

__all__ = ["cluster"]


async def test_request_seconds_without_a_trusted_proxy_are_not_believed(serve: Serve) -> None:
    server = await serve(server={"trusted_proxies": []})
    hour = timedelta(hours=1)
    message = sync("k", put("a1", n=1) | {"at": day(10)}) | {"clock": (datetime.now(UTC) - hour).isoformat()}
    reply = await server.post("/v1/sync", message, headers={"X-Tidemark-Request-Seconds": "3600.000"})
    assert reply.status == 200
    page = (await server.get("/v1/changes")).message
    corrected = datetime.fromisoformat(page["changes"][0]["at"]) - datetime.fromisoformat(day(10))
    assert abs(corrected - hour) < timedelta(minutes=1)


@pytest.mark.slow
async def test_two_edits_on_one_base_the_first_on_a_slow_line_through_nginx(cluster: Cluster) -> None:
    """The body takes two seconds more than the five that connecting may take, as nginx says."""
    phone = await cluster.device("phone")
    await phone.push(put("a1", n=0) | {"at": day(9)})
    headers = {
        "Authorization": f"Bearer {token('acme', 'phone')}",
        "Content-Type": "application/json",
        "Content-Encoding": "identity",
    }
    async with wired(cluster.nginx.url, cluster.trusting) as wire:
        clock = datetime.now(UTC) - timedelta(seconds=4)
        message = sync("k1", put("a1", 1, n=1) | {"at": day(10)}) | {"clock": clock.isoformat()}
        body = msgspec.json.encode(message)
        await wire.begin("POST", "/v1/sync", {**headers, "Content-Length": str(len(body))})
        await wire.send(body[:1])
        await asyncio.sleep(2)  # the time itself is the subject
        await wire.send(body[1:])
        answer = await wire.answer()
    assert answer.status == 200
    (change,) = (await phone.pull())["changes"]
    assert (change["version"], change["at"]) == (2, day(10))
    status, answered = await cluster.post("phone", sync("k2", put("a1", 1, n=2) | {"at": day(10)}))
    assert (status, answered["results"][0]["status"]) == (200, "applied")
