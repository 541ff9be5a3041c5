"""Group commit in PostgreSQL: two round trips a batch, whatever its size.

The first locks the tenants' counters in ascending order and then, in a later snapshot, reads what the
batch asked for; the second writes everything and commits. ``seq`` comes from the locked row, so that
its order is the order of commits, without gaps, over all processes.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from engine.model.rows import (
    ReadSet,
    Snapshot,
    WriteSet,
)
from engine.plan.tenant_usage import NAMES
from engine.runtime.ports import StoreRetryError
from storage.postgres.arrays import control_joined, hex_array, int_array, split_sql, text_array
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction
from storage.stores.commit_rows import StoredSnapshot, snapshot_of
from storage.stores.commit_writes import finish
from storage.stores.idempotency_keys import RECENT_H, TODAY, older, recent

_LOCK: Final = Statement(
    "SELECT FROM tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[]) ORDER BY tenant_id FOR UPDATE"
)
#: The day is a query of its own, so that it is worked out once and not for each tenant.
_COUNTERS: Final = (
    f"SELECT 0, tenant_id, NULL, NULL, seq, (SELECT {TODAY}), NULL::bigint, NULL::bigint,"
    " {0}, NULL, NULL, NULL, NULL::bigint"
    " FROM tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[])"
)
_USAGE: Final = f"concat_ws(',', {', '.join(NAMES)})"
#: LATERAL with LIMIT fixes the plan: one index probe a row, however the tables are analysed.
_RECORDS: Final = (
    "SELECT CASE WHEN f.data IS NULL THEN 8 ELSE 2 END, w.t, w.d, w.i, f.version, f.seq, f.at_us,"
    " f.chain_from, coalesce(f.data, f.last_data)::text, f.fields::text, f.device_id, f.attachments::text,"
    " f.sent_at_us"
    " FROM unnest(%(record_tenants)s::int[], "
    f"{split_sql('record_domains', 'text')}, {split_sql('record_ids', 'text')})"
    " AS w(t, d, i) CROSS JOIN LATERAL (SELECT * FROM records"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i LIMIT 1) AS f"
)
#: The bounds leave out the days that no event of the batch is of before any of them is opened: with 400
#: of them 2 ms a batch.
_EVENTS: Final = (
    "SELECT 3, w.t, w.d, w.i, w.s, f.at_us, NULL, NULL, f.data::text, NULL, f.device_id, NULL, NULL"
    " FROM unnest(%(event_tenants)s::int[], %(event_domains)s::text[], %(event_ids)s::text[],"
    " %(event_times)s::bigint[]) AS w(t, d, i, s) CROSS JOIN LATERAL (SELECT * FROM events"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i AND sent_at_us = w.s"
    " AND sent_at_us >= %(events_from)s::bigint AND sent_at_us <= %(events_to)s::bigint{0} LIMIT 1) AS f"
)
#: Where one of the events is days ahead: ``events_later`` may be set apart for a while
#: (storage/postgres/partitions.py). The look costs 3 µs an event.
_EVENTS_AHEAD: Final = _EVENTS.format(
    " UNION ALL SELECT * FROM events_later"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i AND sent_at_us = w.s"
)
#: What is set apart is more than a week ahead (storage/postgres/partitions.py), whatever the clock of this
# host.
_AHEAD_US: Final = 86_400_000_000
#: The order is that of one index alone, which fixes that this one is read: while the table is empty, those by
#: time look as good, and read all of a tenant. An order by what is compared with = would count for none.
_HELD: Final = (
    "SELECT 4, w.t, NULL, NULL, NULL, NULL, NULL, NULL, row_to_json(f)::text, NULL, NULL, NULL, NULL"
    " FROM unnest(%(held_tenants)s::int[], %(held_devices)s::text[], %(held_domains)s::text[],"
    " %(held_ids)s::text[]) AS w(t, v, d, i) CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = w.t AND device_id = w.v AND domain = w.d"
    " AND record_id >= w.i AND record_id <= w.i AND outcome = 'open' ORDER BY record_id LIMIT 1) AS f"
)
_CONFLICTS: Final = (
    "SELECT 5, w.t, NULL, NULL, NULL, NULL, NULL, NULL, row_to_json(f)::text, NULL, NULL, NULL, NULL"
    " FROM unnest(%(conflict_tenants)s::int[], %(conflict_ids)s::text[]) AS w(t, c)"
    " CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = w.t AND conflict_id >= w.c AND conflict_id <= w.c ORDER BY conflict_id LIMIT 1) AS f"
)
#: Locked as well: that a file is cancelled meanwhile needs no tenant's lock.
_UPLOADS: Final = (
    "SELECT 6, w.t, replace(w.u::text, '-', ''), f.state,"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
    " FROM unnest(%(upload_tenants)s::int[], %(upload_ids)s::uuid[]) AS w(t, u)"
    " CROSS JOIN LATERAL (SELECT state FROM upload_session"
    " WHERE tenant_id = w.t AND upload_id = w.u LIMIT 1 FOR NO KEY UPDATE) AS f"
)
#: The first of them, so that who recovers it knows that there is none before.
_SET_ASIDE: Final = (
    "SELECT 9, w.t, w.d, w.i, NULL, NULL, NULL, NULL, f.quarantine_id, NULL, w.v, NULL, NULL"
    f" FROM unnest(%(aside_tenants)s::int[], %(aside_devices)s::text[], {split_sql('aside_domains', 'text')},"
    f" {split_sql('aside_ids', 'text')}) AS w(t, v, d, i) CROSS JOIN LATERAL"
    " (SELECT quarantine_id FROM quarantine WHERE tenant_id = w.t AND device_id = w.v"
    " AND domain = w.d AND record_id = w.i ORDER BY place LIMIT 1) AS f"
)
_RECOVERING: Final = (
    "SELECT 10, w.t, w.q, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
    " FROM unnest(%(recovering_tenants)s::int[], %(recovering_ids)s::text[]) AS w(t, q)"
    " CROSS JOIN LATERAL (SELECT FROM quarantine WHERE tenant_id = w.t AND quarantine_id = w.q LIMIT 1) AS f"
)
#: Not locked: a finished upload moves under its tenant's lock alone. OFFSET 0 has them looked for by their
#: record, one probe an upload.
_DUPLICATES: Final = (
    "SELECT 7, w.t, replace(w.u::text, '-', ''), replace(f.upload_id::text, '-', ''),"
    " NULL, NULL, NULL, NULL, f.state, NULL, NULL, NULL, NULL"
    " FROM unnest(%(duplicate_tenants)s::int[], %(duplicate_ids)s::uuid[]) AS w(t, u)"
    " CROSS JOIN LATERAL (SELECT domain, record_id, sha256, file_name FROM upload_session"
    " WHERE tenant_id = w.t AND upload_id = w.u LIMIT 1) AS o"
    " CROSS JOIN LATERAL (SELECT upload_id, state FROM upload_session WHERE tenant_id = w.t"
    " AND domain = o.domain AND record_id = o.record_id AND sha256 = o.sha256 AND file_name = o.file_name"
    " AND upload_id <> w.u AND state IN ('stored', 'attached', 'duplicate', 'lent') OFFSET 0) AS f"
)


class PostgresStore:
    """The seam for writing (``engine.commit.ports.Store``). ``lifetime_h`` is how long a key is found."""

    def __init__(self, database: Database, lifetime_h: float) -> None:
        self._database = database
        self._lifetime_h = lifetime_h
        self._day: int | None = None
        self._statements: dict[_Asked, Statement] = {}

    async def begin(self, read_set: ReadSet) -> PostgresTransaction:
        """Lock the tenants, then read what is asked; see the port for what it raises."""
        transaction = await self._database.begin()
        day = self._day
        try:
            reading, values = self._reading(read_set)
            rows = await transaction.run((_LOCK, reading), values)
            snapshot = snapshot_of(rows)
            if len(snapshot.seqs) != len(read_set.tenants):
                await transaction.rollback()
                await self._create_counters(read_set.tenants)
                raise StoreRetryError("a tenant's counter was missing")
            self._check_day(day, rows[0][5])
        except BaseException:
            await transaction.rollback()
            raise
        return PostgresTransaction(transaction, snapshot)

    def _reading(self, read_set: ReadSet) -> tuple[Statement, dict[str, object]]:
        ahead_us = time.time() * 1_000_000 + _AHEAD_US
        asked = _Asked(
            bool(read_set.keys),
            bool(read_set.old_keys) and self._lifetime_h > RECENT_H,
            bool(read_set.records),
            bool(read_set.events),
            any(key.sent_at_us > ahead_us for key in read_set.events),
            bool(read_set.open_conflicts),
            bool(read_set.conflicts),
            bool(read_set.uploads),
            bool(read_set.duplicates),
            bool(read_set.rejected_before),
            bool(read_set.recovering),
            read_set.usage_above,
        )
        values: dict[str, object] = {"tenants": int_array(read_set.tenants)}
        if read_set.keys:
            tenants, hashes = zip(*read_set.keys, strict=True)
            values["key_tenants"] = int_array(tenants)
            values["key_hashes"] = hex_array(hashes)
        if asked.old_keys:
            tenants, hashes = zip(*read_set.old_keys, strict=True)
            values["old_key_tenants"] = int_array(tenants)
            values["old_key_hashes"] = hex_array(hashes)
        if read_set.records:
            tenants, domains, ids = zip(*read_set.records, strict=True)
            values["record_tenants"] = int_array(tenants)
            values["record_domains"] = control_joined(domains)
            values["record_ids"] = control_joined(ids)
        if read_set.events:
            tenants, domains, ids, times = zip(*read_set.events, strict=True)
            values["event_tenants"] = int_array(tenants)
            values["event_domains"] = text_array(domains)
            values["event_ids"] = text_array(ids)
            values["event_times"] = int_array(times)
            values["events_from"], values["events_to"] = str(min(times)), str(max(times))
        if read_set.open_conflicts:
            tenants, devices, domains, ids = zip(*read_set.open_conflicts, strict=True)
            values["held_tenants"] = int_array(tenants)
            values["held_devices"] = text_array(devices)
            values["held_domains"] = text_array(domains)
            values["held_ids"] = text_array(ids)
        if read_set.conflicts:
            tenants, ids = zip(*read_set.conflicts, strict=True)
            values["conflict_tenants"] = int_array(tenants)
            values["conflict_ids"] = text_array(ids)
        if read_set.uploads:
            values["upload_tenants"] = int_array([ref.tenant_id for ref in read_set.uploads])
            values["upload_ids"] = hex_array([ref.upload_id for ref in read_set.uploads])
        if read_set.duplicates:
            values["duplicate_tenants"] = int_array([ref.tenant_id for ref in read_set.duplicates])
            values["duplicate_ids"] = hex_array([ref.upload_id for ref in read_set.duplicates])
        _quarantined(read_set, values)
        statement = self._statements.get(asked)
        if statement is None:
            statement = self._statements[asked] = self._statement(asked)
        return statement, values

    def _statement(self, asked: _Asked) -> Statement:
        parts = [_COUNTERS.format(_usage(asked.usage_above))]
        parts += [older(self._lifetime_h)] if asked.old_keys else []
        parts += [recent(self._lifetime_h, self._day)] if asked.keys else []
        parts += [_RECORDS] if asked.records else []
        parts += [_EVENTS_AHEAD if asked.ahead else _EVENTS.format("")] if asked.events else []
        parts += [_HELD] if asked.open_conflicts else []
        parts += [_CONFLICTS] if asked.conflicts else []
        parts += [_UPLOADS] if asked.uploads else []
        parts += [_DUPLICATES] if asked.duplicates else []
        parts += [_SET_ASIDE] if asked.rejected_before else []
        parts += [_RECOVERING] if asked.recovering else []
        return Statement(" UNION ALL ".join(parts))

    def _check_day(self, day: int | None, today: int) -> None:
        """Make the statements anew when the database's day has changed.

        Args:
            day: The day that the statement was made for, which holds for the next one, too.
            today: The database's day, as the statement found it.

        Raises:
            StoreRetryError: The statement may have passed over kept answers.
        """
        if today != self._day:
            self._day = today
            self._statements.clear()
        if day is not None and today not in (day, day + 1):
            raise StoreRetryError("the database's day is another one than before")

    async def _create_counters(self, tenants: list[int]) -> None:
        await self._database.execute(
            "INSERT INTO tenant_counters (tenant_id)"
            " SELECT unnest(%(tenants)s::int[]) ORDER BY 1 ON CONFLICT DO NOTHING",
            {"tenants": int_array(tenants)},
        )


def _quarantined(read_set: ReadSet, values: dict[str, object]) -> None:
    if read_set.rejected_before:
        tenants, devices, domains, ids = zip(*read_set.rejected_before, strict=True)
        values["aside_tenants"] = int_array(tenants)
        values["aside_devices"] = text_array(devices)
        values["aside_domains"] = control_joined(domains)
        values["aside_ids"] = control_joined(ids)
    if read_set.recovering:
        tenants, ids = zip(*read_set.recovering, strict=True)
        values["recovering_tenants"] = int_array(tenants)
        values["recovering_ids"] = text_array(ids)


class _Asked(msgspec.Struct, frozen=True):
    keys: bool
    old_keys: bool
    records: bool
    events: bool
    ahead: bool
    open_conflicts: bool
    conflicts: bool
    uploads: bool
    duplicates: bool
    rejected_before: bool
    recovering: bool
    usage_above: tuple[int, ...]


def _usage(above: tuple[int, ...]) -> str:
    """Make the column that tells what a tenant holds, if it holds more than ``above`` of anything."""
    if not above:
        return _USAGE
    more = " OR ".join([f"{name} > {number}" for name, number in zip(NAMES, above, strict=True)])
    return f"CASE WHEN {more} THEN {_USAGE} END"


class PostgresTransaction:
    """One open batch; its tenants are locked until it has ended."""

    snapshot: Snapshot

    def __init__(self, transaction: Transaction, snapshot: StoredSnapshot) -> None:
        self._transaction = transaction
        self.snapshot = snapshot
        self._existing = frozenset(snapshot.records)
        self._tombstones = snapshot.tombstones

    async def commit(self, writes: WriteSet) -> None:
        """Write everything and commit; see the port for what it raises."""
        try:
            statements, values = finish(writes, self._existing, self._tombstones)
        except BaseException:
            await self._transaction.rollback()
            raise
        await self._transaction.commit(statements, values)

    async def rollback(self) -> None:
        """Give the locks back without writing."""
        await self._transaction.rollback()
