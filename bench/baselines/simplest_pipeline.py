"""Limit (c): the simplest durable pipeline that gives the product's promise to one device at a time.

Decode, read the versions in one SELECT, write records and keys in one INSERT, commit, acknowledge. No
authentication, no policies, no feed, no counters of tenants, no health. The product is measured as a ratio
of it. A server process of its own: ``python -m bench.baselines.simplest_pipeline DSN``, on an empty database.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from itertools import count
from typing import Final

import msgspec
import uvloop

from bench.baselines.bare_server import Socket, Sync, acknowledge, serve
from storage.postgres.driver import Link, connect

#: Two batches under way keep both PostgreSQL and this process busy.
CONNECTIONS: Final = 2
BATCH: Final = 400
_PATIENCE_S: Final = 60.0
#: A table that was never analysed is read by scanning it.
ANALYSE_AFTER: Final = (1_000, 10_000, 50_000, 200_000)

#: Led by the id, the lookup needs one probe a row and stays the same plan however the table grows.
_TABLES: Final = """
DROP TABLE IF EXISTS records, keys;
CREATE TABLE records (
    tenant text COLLATE "C", domain text COLLATE "C", id text COLLATE "C",
    version bigint NOT NULL, seq bigint NOT NULL, data jsonb NOT NULL, PRIMARY KEY (id, tenant, domain));
CREATE TABLE keys (tenant text COLLATE "C", key text COLLATE "C", PRIMARY KEY (key, tenant));
ANALYZE records, keys"""
_VERSIONS: Final = "SELECT id, version FROM records WHERE id = ANY(%(ids)s)"
_WRITE: Final = """
WITH rows AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb)
    AS r(tenant text, domain text, id text, version bigint, seq bigint, data jsonb, key text)),
kept AS (INSERT INTO keys SELECT tenant, key FROM rows)
INSERT INTO records SELECT tenant, domain, id, version, seq, data FROM rows
ON CONFLICT (id, tenant, domain) DO UPDATE
SET version = excluded.version, seq = excluded.seq, data = excluded.data"""


class _Row(msgspec.Struct, frozen=True, gc=False):
    tenant: str
    domain: str
    id: str
    version: int
    seq: int
    data: msgspec.Raw
    key: str


class _Pipeline:
    """Gathers syncs while batches are under way; each connection takes what has gathered."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Sync, Socket, str]] = deque()
        self._work = asyncio.Event()
        self._seq = count(1)
        self._stored = 0

    async def take(self, sync: Sync, socket: Socket, tenant: str) -> None:
        self._waiting.append((sync, socket, tenant))
        self._work.set()

    async def commit(self, link: Link) -> None:
        """Store batch after batch on one connection."""
        waiting = self._waiting
        while True:
            while not waiting:
                self._work.clear()
                await self._work.wait()
            batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
            asked = {"ids": [sync.items[0].id for sync, _, _ in batch]}
            versions: dict[str, int] = dict(await link.run(_VERSIONS, asked, _PATIENCE_S))
            rows = [self._row(sync, tenant, versions) for sync, _, tenant in batch]
            await link.run(_WRITE, {"rows": msgspec.json.encode(rows).decode()}, _PATIENCE_S)
            for (sync, socket, _), row in zip(batch, rows, strict=True):
                if not socket.closed:
                    await acknowledge(sync, socket, row.version, row.seq)
            before, self._stored = self._stored, self._stored + len(batch)
            if any(before < stored <= self._stored for stored in ANALYSE_AFTER):
                await link.run("ANALYZE records, keys", None, _PATIENCE_S)

    def _row(self, sync: Sync, tenant: str, versions: dict[str, int]) -> _Row:
        item = sync.items[0]
        version = versions.get(item.id, 0) + 1
        return _Row(tenant, item.domain, item.id, version, next(self._seq), item.data, sync.key)


async def _main(dsn: str) -> None:
    pipeline = _Pipeline()
    links = [await connect(dsn) for _ in range(CONNECTIONS)]
    await links[0].run(_TABLES, None, _PATIENCE_S)
    async with asyncio.TaskGroup() as group:
        for link in links:
            group.create_task(pipeline.commit(link))
        await serve(pipeline.take)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
