"""A client that is gone before its answer: nothing is logged, as nothing is wrong with the server."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.contract.test_frames_masked import HANDSHAKE
from tests.harness.in_process_server import Serve, new_tenants
from tests.harness.postgres_stalls import Stall, until
from tests.harness.raw_http import wired
from tests.harness.services import execute

pytestmark = pytest.mark.asyncio(loop_scope="function")


def _requests() -> list[asyncio.Task[object]]:
    names = {"EdgeProtocol._handle_request"}
    return [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") in names]


async def _waits() -> bool:
    return bool(_requests())


@pytest.mark.parametrize("path", ["/v1/sync", "/v1/domains"])
async def test_handshake_whose_client_vanishes_logs_nothing(
    path: str, serve: Serve, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve()
    execute(dsn, new_tenants("elsewhere"))  # a server has those of its start in memory
    stall = Stall(dsn)
    stall.run("LOCK TABLE tenants IN ACCESS EXCLUSIVE MODE")
    with caplog.at_level(logging.DEBUG, "aiohttp.server"):
        async with wired(server.url) as wire:
            await wire.head("GET", path, HANDSHAKE | server.headers(tenant="elsewhere"))
            await until(_waits)
            waiting = _requests()
            wire.reset()
        for _ in range(2):  # in the first of them the loop hears of the reset
            assert (await server.get("/healthz")).status == 200
        stall.let_go()
        await asyncio.wait(waiting)
    assert [record.getMessage() for record in caplog.records] == []
