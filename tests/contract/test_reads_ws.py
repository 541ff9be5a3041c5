"""What waits in the database is felt by those who asked for it, and by no probe."""

from __future__ import annotations

import asyncio

import psycopg2

from tests.harness.in_process_server import Serve
from tests.harness.services import rows
from tests.harness.ws_device import put


async def test_probes_readyz_while_every_read_waits_answers_at_once(serve: Serve) -> None:
    server = await serve()
    phone = await server.device()
    await phone.push(put("a1", n=1))
    connection = psycopg2.connect(server.dsn)
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE records IN ACCESS EXCLUSIVE MODE")
        reads = [asyncio.create_task(server.get("/v1/changes", f"phone-{number}")) for number in range(12)]

        # All connections that devices have for reading. A thread asks: the loop is the server's. Each look
        # has a connection of its own: within a transaction PostgreSQL shows the same activity again.
        blocked = (
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while len(await asyncio.to_thread(rows, server.dsn, blocked)) < 2:
            assert not any(read.done() for read in reads)
        ready = await asyncio.gather(*(server.get("/readyz") for _ in range(50)))
        assert {reply.status for reply in ready} == {200}
        assert not any(read.done() for read in reads)
    connection.rollback()
    connection.close()
    assert {reply.status for reply in await asyncio.gather(*reads)} == {200}
