"""Two cells on Citus under load, one of which moves to another node. It needs TIDEMARK_TEST_CITUS.

Its figures are shown by ``pytest -s``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import ClientSession
from psycopg2 import InternalError
from psycopg2.extensions import make_dsn

from storage.embedded.servers import Services
from storage.postgres.cell.dsn import schema_of
from tests.harness.in_process_server import new_tenants
from tests.harness.numbered_edits import TENANTS, Editor, acknowledged, audit, progressed
from tests.harness.server_process import ServerProcess
from tests.harness.services import citus_cell, execute, rows
from tests.harness.ws_device import token

DEVICES = 6
ACKS = 150
#: A commit takes a part of a millisecond of some: of so many one is in the midst of it.
CUTS = 40

pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """A node that may hold cells."""

    host: str
    port: int


def _nodes(dsn: str) -> set[Place]:
    found = rows(dsn, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 AND shouldhaveshards")
    return {Place(str(host), int(str(port))) for host, port in found}


def _node_of(dsn: str) -> Place:
    ((host, port),) = rows(
        dsn, "SELECT nodename, nodeport FROM citus_shards WHERE table_name = 'records'::regclass"
    )
    return Place(str(host), int(str(port)))


def _cut(dsn: str) -> int:
    """End the sessions of the coordinator on the node of a cell, some of them within a commit."""
    host, port = _node_of(dsn)
    ended = rows(
        make_dsn(dsn, host=host, port=port),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND usename = current_user AND application_name LIKE 'citus_internal%'",
    )
    return len(ended)


def _move(dsn: str, to: Place) -> None:
    """Move a cell. What a move before it left behind has to be removed first, once nobody reads it."""
    moving = f"SELECT citus_schema_move('{schema_of(dsn)}', '{to.host}', {to.port})"
    for _ in range(20):
        try:
            execute(dsn, "CALL citus_cleanup_orphaned_resources()", moving)
        except InternalError as error:
            if "orphaned" not in str(error):
                raise
        else:
            return
    raise AssertionError("what the last move left behind is still there")


def _editors(dsn: str, progress: asyncio.Condition) -> list[Editor]:
    audience = f"tidemark/{schema_of(dsn)}"
    names = [(f"device-{number}", TENANTS[number % len(TENANTS)]) for number in range(DEVICES)]
    return [Editor(name, tenant, progress, token(tenant, name, aud=audience)) for name, tenant in names]


def _show(figure: str) -> None:
    sys.stdout.write(f"{figure}\n")


async def _longest_pause_s(editors: list[Editor], progress: asyncio.Condition) -> float:
    """Watch until cancelled. Returns the longest time in which nothing was acknowledged."""
    longest_s, last_s, seen = 0.0, time.monotonic(), acknowledged(editors)
    try:
        while True:
            async with progress:
                await progress.wait()
            now_s, count = time.monotonic(), acknowledged(editors)
            if count != seen:
                longest_s, last_s, seen = max(longest_s, now_s - last_s), now_s, count
    except asyncio.CancelledError:
        return max(longest_s, time.monotonic() - last_s)


async def test_citus_cell_that_moves_under_load_loses_nothing_and_stays_apart(
    services: Services, tmp_path: Path
) -> None:
    """Devices and tenants of both cells have the same names.

    The server of the moved cell is killed while it moves. Then its sessions on the node are cut: Citus only
    warns if that ends a commit, which must not be taken for one.
    """
    with ExitStack() as stack:
        dsns = [stack.enter_context(citus_cell()) for _ in range(2)]
        servers = [ServerProcess(dsn, services.redis_url, tmp_path) for dsn in dsns]
        progress = asyncio.Condition()
        editors = [_editors(dsn, progress) for dsn in dsns]
        try:
            for dsn in dsns:
                execute(dsn, new_tenants(*TENANTS))
            await asyncio.gather(*(server.start() for server in servers))
            async with ClientSession() as session, asyncio.TaskGroup() as group:
                for server, own in zip(servers, editors, strict=True):
                    for editor in own:
                        group.create_task(editor.run(server, session))
                await asyncio.gather(*(progressed(own, progress, ACKS) for own in editors))
                for killed in (False, True):
                    (other,) = _nodes(dsns[0]) - {_node_of(dsns[0])}
                    watching = [group.create_task(_longest_pause_s(own, progress)) for own in editors]
                    before, began_s = [acknowledged(own) for own in editors], time.monotonic()
                    moving = asyncio.create_task(asyncio.to_thread(_move, dsns[0], other))
                    if killed:
                        await progressed(editors[0], progress, ACKS)
                        killed_s = time.monotonic()
                        await servers[0].kill()
                        await servers[0].start()
                        _show(f"the server started again in {time.monotonic() - killed_s:.1f} s")
                    await moving
                    took_s = time.monotonic() - began_s
                    for watcher in watching:
                        watcher.cancel()
                    pauses_s = await asyncio.gather(*watching)
                    assert _node_of(dsns[0]) == other
                    for name, count, own, pause_s in zip("ab", before, editors, pauses_s, strict=True):
                        edits = acknowledged(own) - count
                        assert edits > 0
                        _show(f"cell {name}: {edits} edits in {took_s:.1f} s, longest pause {pause_s:.2f} s")
                    await asyncio.gather(*(progressed(own, progress, ACKS) for own in editors))
                for _ in range(CUTS):
                    assert await asyncio.to_thread(_cut, dsns[0]) > 0
                    await asyncio.gather(*(progressed(own, progress, ACKS // 10) for own in editors))
                for editor in (*editors[0], *editors[1]):
                    editor.stopping = True
            for dsn, own in zip(dsns, editors, strict=True):
                assert [editor.wrong for editor in own if editor.wrong] == []
                audit(dsn, own)
                _show(f"{acknowledged(own)} edits acknowledged, each stored once")
        finally:
            for server in servers:
                await server.stop()
