"""Group commit in PostgreSQL: two round trips a batch, whatever its size.

The first locks the tenants' counters in ascending order and then, in a later snapshot, reads the rows of the
batch. The second writes everything and commits. ``seq`` comes from the locked row. So the order of ``seq`` is
the order of commits, without gaps, over all processes.
"""

from __future__ import annotations

from engine.model.rows import ReadSet, Snapshot, WriteSet
from engine.runtime.ports import StoreRetryError
from engine.seal.ports import KeysMissingError
from storage.postgres.arrays import int_array
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction
from storage.stores.commit.reads import LOCK, ReadKinds, kinds_of, reading, values_of
from storage.stores.commit.rows import StoredSnapshot, snapshot_steps
from storage.stores.commit.writes import Stored, finish
from storage.stores.sealed.followed import BEHIND_TRIES, SealingChangedError
from storage.stores.sealed.sealing import Sealing, UnreadableValueError, in_steps


class PostgresStore:
    """The only way to write what devices send (``engine.commit.ports.Store``)."""

    def __init__(self, database: Database, lifetime_h: float, sealing: Sealing) -> None:
        """Make a store.

        Args:
            database: The connections.
            lifetime_h: How long an idempotency key is found.
            sealing: Seals what is written, and opens what is read.
        """
        self._database = database
        self._sealing = sealing
        self._lifetime_h = lifetime_h
        self._day: int | None = None
        self._statements: dict[ReadKinds, Statement] = {}

    async def begin(self, read_set: ReadSet) -> PostgresTransaction:
        """Lock the tenants and read the rows. The port says what it raises.

        Another process may have changed what is sealed, or made a key. Nothing is locked while that is read.
        """
        sealing = self._sealing
        asked: set[int] = set()
        behind = 0
        while True:
            if sealing.on:
                await sealing.load_missing(read_set.tenants)
            try:
                return await self._begin(read_set)
            except (KeysMissingError, UnreadableValueError) as error:
                await sealing.load_again(error, asked)
            except SealingChangedError:
                behind += 1
                if behind > BEHIND_TRIES:
                    await self._name_keys(read_set.tenants)
                    raise
                await sealing.follow_again(read_set.tenants)

    async def _begin(self, read_set: ReadSet) -> PostgresTransaction:
        transaction = await self._database.begin(tenants=read_set.tenants)
        day = self._day
        try:
            kinds = kinds_of(read_set, self._lifetime_h, sealing=self._sealing.on)
            statement = self._statements.get(kinds)
            if statement is None:
                statement = self._statements[kinds] = reading(kinds, self._lifetime_h, day)
            rows = await transaction.run((LOCK, statement), values_of(read_set, kinds))
            snapshot = await in_steps(snapshot_steps(rows, self._sealing))
            if len(snapshot.seqs) != len(read_set.tenants):
                await transaction.rollback()
                await self._create_counters(read_set.tenants)
                raise StoreRetryError("a tenant's counter was missing")
            self._check_day(day, snapshot.hour // 24)
        except BaseException:
            await transaction.rollback()
            raise
        return PostgresTransaction(transaction, snapshot)

    def _check_day(self, day: int | None, today: int) -> None:
        """Make the statements again when the database's day has changed.

        Args:
            day: The day that the statement was made for. It is right for the next day, too.
            today: The database's day when the statement ran.

        Raises:
            StoreRetryError: The statement may have missed kept answers.
        """
        if today != self._day:
            self._day = today
            self._statements.clear()
        if day is not None and today not in (day, day + 1):
            raise StoreRetryError("the database's day has changed")

    async def _name_keys(self, tenants: list[int]) -> None:
        """Have counters name the keys that seal, which a restore without triggers may have left behind."""
        await self._database.execute(
            "UPDATE tenant_counters AS c SET key_id = k.key_id FROM tenant_keys AS k"
            " WHERE c.tenant_id = ANY(%(tenants)s::int[]) AND k.tenant_id = c.tenant_id"
            " AND k.retired_at IS NULL AND c.key_id IS DISTINCT FROM k.key_id",
            {"tenants": int_array(tenants)},
            tenants=tenants,
        )

    async def _create_counters(self, tenants: list[int]) -> None:
        await self._database.execute(
            "INSERT INTO tenant_counters (tenant_id)"
            " SELECT unnest(%(tenants)s::int[]) ORDER BY 1 ON CONFLICT DO NOTHING",
            {"tenants": int_array(tenants)},
            tenants=tenants,
        )


class PostgresTransaction:
    """One open batch. Its tenants are locked until it has ended."""

    snapshot: Snapshot

    def __init__(self, transaction: Transaction, snapshot: StoredSnapshot) -> None:
        self._transaction = transaction
        self._sealing = snapshot.sealing
        self._sealed, self._key_ids = snapshot.sealed, snapshot.key_ids
        self.snapshot = snapshot
        self._stored = Stored(
            frozenset(snapshot.records), snapshot.tombstones, snapshot.hour, snapshot.counted
        )

    async def commit(self, writes: WriteSet) -> None:
        """Write everything and commit. The port says what it raises."""
        try:
            self._sealing.check(self._sealed, self._key_ids)  # both may have been read again since
            statements, values = finish(writes, self._stored, self._sealing)
        except BaseException:
            await self._transaction.rollback()
            raise
        await self._transaction.commit(statements, values)

    async def rollback(self) -> None:
        """Release the locks without writing."""
        await self._transaction.rollback()
