"""The server that attacks are tried on, the tables that they must not change, and a device that syncs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
from yarl import URL

from tests.harness.in_process_server import Reply, Running
from tests.harness.uploads.tus_uploader import file_path, photo, uploader
from tests.harness.ws_device import Device, day, item, put

#: Table -> what of its rows an attack must leave alone. Times of contact and sums by the minute are left out:
#: a refused request counts there.
TABLES: Final = {
    "tenants": "t.*",
    "tenant_counters": "t.seq, t.record_rows, t.conflict_rows, t.quarantine_rows, t.event_rows",
    "tenant_conflict_policy": "t.*",
    "revoked_tokens": "t.*",
    "records": "t.*",
    "events": "t.*",
    "sync_idempotency_record": "t.key_hash, t.created_at",  # the job reseal may seal its answers
    "conflict_resolution_log": "t.*",
    "quarantine": "t.*",
    "upload_session": "t.*",
    "device_telemetry": "t.*",
}
#: A digest of the rows of each table, in whichever order they are read.
_DIGESTS: Final = " UNION ALL ".join(
    f"SELECT '{table}', t.tenant_id, count(*), sum(hashtextextended(row({columns})::text, 0))"
    f" FROM {table} AS t WHERE t.tenant_id = ANY($1) GROUP BY t.tenant_id"
    for table, columns in TABLES.items()
) + (  # devices are written down some seconds after they are seen
    " UNION ALL SELECT 'devices', t.tenant_id, count(*), sum(hashtextextended(t::text, 0))"
    " FROM devices AS t WHERE t.tenant_id = ANY($1) AND t.revoked_at IS NOT NULL GROUP BY t.tenant_id"
)
_Answer = TypeVar("_Answer")
#: Of a request whose round trips are counted.
_TRIES: Final = 20
#: (table, number of the tenant) -> (rows, digest).
Digests = dict[tuple[str, int], tuple[int, int]]


class Seeded(NamedTuple):
    """What a tenant has: two of each kind would tell an attacker no more.

    Attributes:
        tenant_id: Its number.
        record: The id of a record of the domain ``task``.
        key: The key of the message that wrote it.
        conflict_id: An open conflict.
        upload: The path of an upload that lacks bytes.
        file: The path of a file.
        cursor: A cursor of its feed.
        quarantine_id: A rejected item.
    """

    tenant_id: int
    record: str
    key: str
    conflict_id: str
    upload: str
    file: str
    cursor: str
    quarantine_id: str


def figures(page: bytes) -> dict[str, float]:
    """Return the metrics of a page, by name with labels."""
    rows = (line.rpartition(" ") for line in page.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


class Arena:
    """Tenants acme and globex to attack and to attack from, and a device of a third that syncs on.

    Args:
        running: A server, with its tenants.
        connection: A connection to its database, past the server.
        witness: The device of the third tenant.
    """

    def __init__(self, running: Running, connection: Connection, witness: Device) -> None:
        self.running = running
        self.url = running.url
        self._witness = witness
        self._synced = 0
        self._cursor = connection.cursor()
        self._cursor.execute("SET plan_cache_mode = force_generic_plan")  # events have a partition a day
        self._cursor.execute("DEALLOCATE ALL")
        self._cursor.execute(f"PREPARE digests(int[]) AS {_DIGESTS}")
        self.seeded: dict[str, Seeded] = {}

    async def seed(self, tenant: str) -> None:
        """Give a tenant one of each: a record, an event, a conflict, an upload, a file, a rejected item."""
        running = self.running
        owner = await running.device("owner", tenant)
        other = await running.device("other", tenant)
        key = f"key-of-{tenant}"
        event = {"metric_name": "m", "value": 1, "timestamp": day(1)}
        await owner.sync(key, put("pump-1", None, of=tenant), item("put", "note", "n1", data={"of": tenant}))
        await owner.push(item("append", "metrics", "m1", at=day(1), data=event))
        (held,) = await other.push(item("put", "note", "n1", data={"mine": tenant}))
        (rejected,) = await other.push(item("put", "task", "", data={}))
        assert (held["status"], rejected["status"]) == ("conflict", "rejected")
        uploads = uploader(running, "owner", tenant)
        upload = await uploads.begun(1_000)
        file = file_path(await uploads.uploaded(photo(500), record_id="pump-1"))
        [(tenant_id,)] = self.rows("SELECT tenant_id FROM tenants WHERE name = %s", running.tenant(tenant))
        [(quarantine_id,)] = self.rows("SELECT quarantine_id FROM quarantine WHERE tenant_id = %s", tenant_id)
        cursor = (await owner.pull())["cursor"]
        self.seeded[tenant] = Seeded(
            tenant_id, "pump-1", key, held["conflict_id"], upload, file, cursor, str(quarantine_id)
        )

    async def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        **options: Any,
    ) -> Reply:
        """Send a request; ``path`` goes out as it is written. ``options`` are those of aiohttp."""
        sent = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = URL(self.url + path, encoded=True)
        async with self.running.http.request(
            method, url, headers=sent | dict(headers or {}), data=body, **options
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    def digests(self) -> Digests:
        """Read what the tables have of the seeded tenants."""
        self._cursor.execute("EXECUTE digests(%s)", ([one.tenant_id for one in self.seeded.values()],))
        return {(table, tenant): (rows, digest) for table, tenant, rows, digest in self._cursor.fetchall()}

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Read rows past the server."""
        self._cursor.execute(statement, values)
        return self._cursor.fetchall()

    async def sync_of_another(self) -> None:
        """Sync as the device of the third tenant, and see that it is answered as always."""
        self._synced += 1
        fields = {"base": self._synced - 1 or None, "data": {"n": self._synced}}
        (result,) = await self._witness.push(item("put", "task", "round", **fields))
        assert (result["status"], result["version"], result["seq"]) == ("applied", self._synced, self._synced)

    async def round_trips(self, *asks: Callable[[], Awaitable[_Answer]]) -> list[tuple[_Answer, int]]:
        """Ask in turn, and count the requests to the database that each takes.

        Those of the server's own work may come between, so each counts as its fewest of several tries, until
        all are equal.
        """
        fewest: dict[int, tuple[_Answer, int]] = {}
        for _ in range(_TRIES):
            for place, ask in enumerate(asks):
                before = await self._trips()
                answer = await ask()
                count = await self._trips() - before
                fewest[place] = answer, min(count, fewest.get(place, (answer, count))[1])
            if len({count for _, count in fewest.values()}) == 1:
                break
        return [fewest[place] for place in range(len(asks))]

    async def _trips(self) -> int:
        counts = await self.counted()
        return sum(
            int(count)
            for name, count in counts.items()
            if name.startswith("tidemark_database_round_trips_total{")
        )

    async def counted(self) -> dict[str, float]:
        """Read the metrics of the server, by name with labels."""
        return figures((await self.ask("GET", "/metrics")).body)

    @asynccontextmanager
    async def holds(self, *changing: str, tenants: Sequence[str] = ("acme",)) -> AsyncIterator[None]:
        """Check that what is done changes no row, and that another device syncs on.

        Args:
            changing: Tables that the attack may add to in its own tenant: ``quarantine`` for a rejected item.
            tenants: The tenants that it is made from.
        """
        before = self.digests()
        yield
        after = self.digests()
        own = {(table, self.seeded[tenant].tenant_id) for table in changing for tenant in tenants}
        moved = {at for at in before | after if before.get(at) != after.get(at)} - own
        changed = {at: (before.get(at), after.get(at)) for at in moved}
        assert not moved, f"rows changed: {changed}"
        await self.sync_of_another()
