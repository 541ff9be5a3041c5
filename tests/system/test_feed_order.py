"""The feed of several servers on one database, read while everybody writes.

Every reader is told every change of its own tenant, in order and once, and nothing of anybody else.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import NamedTuple

from engine.model.rows import ReadSet, Record, WriteSet
from storage.stores.commit.store import PostgresStore
from storage.stores.sealed.sealing import Sealing
from tests.harness.admin import ensure_tenant
from tests.harness.in_process_server import Serve
from tests.harness.postgres_stalls import deadlocks
from tests.harness.services import Serving, execute, rows
from tests.harness.ws_device import Device, Json, item, put

TENANTS = ("acme", "globex", "initech")
SERVERS = 2
#: Of each tenant on each server.
WRITERS = 2
SYNCS = 60
UNDER_WAY = 4


class Told(NamedTuple):
    """One change as somebody was told of it."""

    seq: int
    record_id: str
    version: int


class Truth:
    """What a tenant's writers were answered."""

    def __init__(self) -> None:
        self.by_seq: dict[int, Told] = {}

    def take(self, results: list[Json]) -> None:
        """Take in the answer to a push. No two may name the same seq."""
        for result in results:
            assert result["status"] in {"applied", "resolved"}, result
            told = Told(result["seq"], result["id"], result["version"])
            assert told.seq not in self.by_seq
            self.by_seq[told.seq] = told

    def latest(self, seq: int) -> dict[str, Told]:
        """Give each record as it stood at ``seq``."""
        upto = [told for _, told in sorted(self.by_seq.items()) if told.seq <= seq]
        return {told.record_id: told for told in upto}


class Reader:
    """Applies pages as a device does. ``told`` is all that it was told, in order."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.told: list[Told] = []
        self.cursor: str | None = None
        self._versions: dict[str, int] = {}

    @property
    def seq(self) -> int:
        """The last seq that it was told."""
        return self.told[-1].seq if self.told else 0

    def take(self, page: Json) -> None:
        """Take in a page: ascending, no version going back, nothing of other tenants."""
        for change in page["changes"]:
            assert change["data"]["tenant"] == self.tenant
            told = Told(change["seq"], change["id"], change["version"])
            assert told.seq > self.seq
            assert told.version > self._versions.get(told.record_id, 0)
            self._versions[told.record_id] = told.version
            self.told.append(told)
        self.cursor = page["cursor"]

    def check(self, truth: Truth) -> None:
        """Compare with what the writers were answered: whatever it was not told, something later replaced."""
        assert [truth.by_seq[told.seq] for told in self.told] == self.told
        latest = truth.latest(self.seq)
        assert self._versions == {name: told.version for name, told in latest.items()}
        missed = {told for told in truth.by_seq.values() if told.seq <= self.seq} - set(self.told)
        assert not missed & set(latest.values())


async def _write(device: Device, tenant: str, name: str, truth: Truth) -> None:
    """Push new records, edits of one's own, and edits of one that all of the tenant fight over."""
    waiting: set[str] = set()
    for turn in itertools.count():
        if turn < SYNCS:
            data = {"tenant": tenant, "writer": name, "turn": turn}
            items = [
                put(f"new-{name}-{turn}", None, **data),
                put(f"own-{name}", turn or None, **data),
                item("put", "journal", "contested", data=data),
            ]
            waiting.add(str(turn))
            await device.send({"type": "sync", "id": str(turn), "key": f"{name}-{turn}", "items": items})
        elif not waiting:
            return
        while waiting and (turn >= SYNCS or len(waiting) == UNDER_WAY):
            answer = await device.receive()
            waiting.remove(answer["id"])
            truth.take(answer["results"])


async def _pull(device: Device, reader: Reader, done: asyncio.Event) -> None:
    """Pull small pages until nothing is left after the writers are done."""
    while True:
        last = done.is_set()
        page = await device.pull(cursor=reader.cursor, limit=7)
        reader.take(page)
        if last and not page["more"]:
            return


async def _follow(device: Device, reader: Reader, last_seq: asyncio.Future[int]) -> None:
    """Take live pages until the one with the last change."""
    reader.take(await device.ask("subscribe", limit=9))
    while not (last_seq.done() and reader.seq >= last_seq.result()):
        reader.take(await device.changes())


async def test_feed_every_reader_gets_every_change_in_order(serve: Serve, dsn: str) -> None:
    ensure_tenant(dsn, "initech")
    servers = list(enumerate([await serve() for _ in range(SERVERS)]))
    truths = {tenant: Truth() for tenant in TENANTS}
    pullers = {(tenant, number): Reader(tenant) for tenant in TENANTS for number, _ in servers}
    followers = {place: Reader(place[0]) for place in pullers}
    last_seqs: dict[tuple[str, int], asyncio.Future[int]] = {place: asyncio.Future() for place in pullers}
    done = asyncio.Event()
    async with asyncio.TaskGroup() as reading:
        for tenant, (number, server) in itertools.product(TENANTS, servers):
            place = tenant, number
            device = await server.device(f"puller{number}", tenant)
            reading.create_task(_pull(device, pullers[place], done))
            device = await server.device(f"follower{number}", tenant)
            reading.create_task(_follow(device, followers[place], last_seqs[place]))
        async with asyncio.TaskGroup() as writing:
            for tenant, (number, server), n in itertools.product(TENANTS, servers, range(WRITERS)):
                name = f"writer{number}{n}"
                writer = await server.device(name, tenant)
                writing.create_task(_write(writer, tenant, name, truths[tenant]))
        # A server sees what the others wrote as gaps before what it writes itself.
        for tenant, (number, server) in itertools.product(TENANTS, servers):
            writer = await server.device(f"writer{number}", tenant)
            results = await writer.push(put(f"last{number}", None, tenant=tenant))
            truths[tenant].take(results)
            last_seqs[tenant, number].set_result(results[0]["seq"])
        done.set()
    changes = SERVERS * WRITERS * SYNCS * 3 + SERVERS
    for truth in truths.values():
        assert sorted(truth.by_seq) == list(range(1, changes + 1))
    for (tenant, number), reader in followers.items():
        assert reader.seq >= last_seqs[tenant, number].result()
        reader.check(truths[tenant])
    for (tenant, _), reader in pullers.items():
        assert reader.seq == changes
        reader.check(truths[tenant])


# -- locks ------------------------------------------------------------------------------------


async def test_writers_of_the_same_tenants_in_any_order_never_deadlock(dsn: str) -> None:
    """Each batch is of all tenants, every other one names them backwards.

    They are so many that two batches which lock them in another order than each other meet.
    """
    tenants = list(range(1, 65))
    (name,) = rows(dsn, "SELECT current_database()")[0]
    execute(
        dsn,
        f"ALTER DATABASE {name} SET deadlock_timeout = '10ms'",
        "INSERT INTO tenants (name) SELECT 't' || n FROM generate_series(1, 64) AS n",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
    )
    writers, batches = 4, 25
    database = Serving(dsn, writers)
    store = PostgresStore(database, 24, Sealing())

    async def write(number: int) -> None:
        for turn in range(batches):
            named = tenants if (number + turn) % 2 else tenants[::-1]
            transaction = await store.begin(ReadSet(named, [], [], [], [], []))
            seqs = {tenant: seq + 1 for tenant, seq in transaction.snapshot.seqs.items()}
            records = [
                Record(tenant, "task", f"r{number}-{turn}", 1, seq, 0, None, 1, b"{}")
                for tenant, seq in seqs.items()
            ]
            await transaction.commit(WriteSet(seqs, records, [], [], [], []))

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(write(number))
    finally:
        await database.close()
    assert await deadlocks(dsn) == 0
    assert rows(dsn, "SELECT DISTINCT seq FROM tenant_counters") == [(writers * batches,)]
