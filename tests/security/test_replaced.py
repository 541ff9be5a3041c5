"""A thief of a device's token takes its connection over, again and again, on another worker."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from aiohttp import WSServerHandshakeError

from tests.contract.test_several_processes_ws import ready
from tests.harness.in_process_server import Running, Serve
from tests.harness.ws_device import Closed, Json, put
from tests.security.catalogue import against

pytestmark = against("API2:2023", "V7.4")

EDITS: Final = 20


async def _take_over(server: Running) -> None:
    """Send a ping, the smallest first frame, on one connection after the other, until refused."""
    headers, protocols = server.headers(), ("tidemark.v1.json",)
    for _ in range(400):
        async with server.http.ws_connect(
            f"{server.url}/v1/sync", headers=headers, protocols=protocols, autoping=False
        ) as thief:
            await thief.receive()
            await thief.ping()
            await thief.receive()


async def test_stolen_token_takes_time_from_the_device_and_no_edit(serve: Serve) -> None:
    """The device comes back at once each time, as no reference device does, and repeats what it must."""
    own, other = await serve(), await serve()
    await ready(own, other)
    fight = asyncio.create_task(_take_over(other))
    results: list[Json] = []
    codes: set[int | None] = set()
    while len(results) < EDITS:
        device = await own.device()
        try:
            while len(results) < EDITS:
                number = len(results)
                results += await device.sync(f"k{number}", put(f"r{number}", None, n=number))
        except Closed as closed:
            codes.add(closed.code)
    assert [(one["status"], one["version"]) for one in results] == [("applied", 1)] * EDITS
    assert codes <= {4409}
    with pytest.raises(WSServerHandshakeError, match="429"):  # 300 in a minute
        await fight
    assert (await (await own.device()).push(put("r0", 1, n=-1)))[0]["status"] == "applied"
