"""The first round trip of a batch: the tenants' locks, and one statement for every row that it reads."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from engine.model.rows import ReadSet
from engine.plan.bounds.tenant_usage import NAMES
from storage.postgres.arrays import control_joined, hex_array, int_array, split_sql, text_array
from storage.postgres.connection import Statement
from storage.stores.commit.answers import RECENT_H, THIS_HOUR, older, recent
from storage.stores.commit.rows import (
    ConflictRow,
    CounterRow,
    DuplicateRow,
    EventRow,
    OpenConflictRow,
    QuarantineRow,
    RecordRow,
    RejectedRow,
    TombstoneRow,
    UploadRow,
    number_of,
    select,
)
from storage.stores.sealed.followed import ANY_SEALED_SQL, SEALED_SQL
from storage.stores.sealed.same_file import may_be_same
from storage.stores.upload_states import FILE_OR_DUPLICATE

LOCK: Final = Statement(
    "SELECT FROM tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[]) ORDER BY tenant_id FOR UPDATE"
)
#: The hour is a subquery, so that it is computed once and not for each tenant.
_COUNTERS: Final = (
    select(
        CounterRow,
        tenant_id="tenant_id",
        seq="seq",
        hour=f"(SELECT {THIS_HOUR})",
        counted_hour="sync_hour",
        usage="{0}",
        counts="sync_counts",
        sealed="{1}",
        key_id="{2}",
    )
    + " FROM tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[])"
)
_USAGE: Final = f"concat_ws(',', {', '.join(NAMES)})"
#: LATERAL with LIMIT fixes the plan: one index probe a row, whatever the statistics of the tables say.
_RECORDS: Final = (
    select(
        RecordRow,
        number=f"CASE WHEN f.data IS NULL THEN {number_of(TombstoneRow)} ELSE {number_of(RecordRow)} END",
        tenant_id="w.t",
        domain="w.d",
        id="w.i",
        version="f.version",
        seq="f.seq",
        at_us="f.at_us",
        chain_from="f.chain_from",
        data="coalesce(f.data, f.last_data)::text",
        fields="f.fields::text",
        device_id="f.device_id",
        attachments="f.attachments::text",
        sent_at_us="f.sent_at_us",
    )
    + " FROM unnest(%(record_tenants)s::int[], "
    f"{split_sql('record_domains', 'text')}, {split_sql('record_ids', 'text')})"
    " AS w(t, d, i) CROSS JOIN LATERAL (SELECT * FROM records"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i LIMIT 1) AS f"
)
#: The bounds exclude the partitions of days that no event of the batch is of, before any of them is opened:
#: with 400 of them this saves 2 ms a batch.
_EVENTS: Final = (
    select(
        EventRow,
        tenant_id="w.t",
        domain="w.d",
        id="w.i",
        sent_at_us="w.s",
        at_us="f.at_us",
        device_id="f.device_id",
        data="f.data::text",
    )
    + " FROM unnest(%(event_tenants)s::int[], %(event_domains)s::text[], %(event_ids)s::text[],"
    " %(event_times)s::bigint[]) AS w(t, d, i, s) CROSS JOIN LATERAL (SELECT * FROM events"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i AND sent_at_us = w.s"
    " AND sent_at_us >= %(events_from)s::bigint AND sent_at_us <= %(events_to)s::bigint{0} LIMIT 1) AS f"
)
#: For a batch with an event that is dated days ahead: ``events_later`` may be detached for a while
#: (storage/postgres/partitions/maintenance.py). Reading it, too, costs 3 µs an event.
_EVENTS_AHEAD: Final = _EVENTS.format(
    " UNION ALL SELECT * FROM events_later"
    " WHERE tenant_id = w.t AND domain = w.d AND id = w.i AND sent_at_us = w.s"
)
#: An event is days ahead from one day on: what is detached is more than a week ahead
#: (storage/postgres/partitions/maintenance.py), so the clock of this host may be wrong by days.
_AHEAD_US: Final = 86_400_000_000
#: Only one index has this order, which makes PostgreSQL use it. While the table is empty, the indexes by time
#: look as good, and would read all rows of a tenant. ORDER BY a column that is compared with = has no effect,
#: so the record is compared with >= and <=.
_OPEN_CONFLICTS: Final = (
    select(OpenConflictRow, tenant_id="w.t", conflict="row_to_json(f)::text")
    + " FROM unnest(%(open_tenants)s::int[], %(open_devices)s::text[], %(open_domains)s::text[],"
    " %(open_ids)s::text[]) AS w(t, v, d, i) CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = w.t AND device_id = w.v AND domain = w.d"
    " AND record_id >= w.i AND record_id <= w.i AND outcome = 'open' ORDER BY record_id LIMIT 1) AS f"
)
_CONFLICTS: Final = (
    select(ConflictRow, tenant_id="w.t", conflict="row_to_json(f)::text")
    + " FROM unnest(%(conflict_tenants)s::int[], %(conflict_ids)s::text[]) AS w(t, c)"
    " CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = w.t AND conflict_id >= w.c AND conflict_id <= w.c ORDER BY conflict_id LIMIT 1) AS f"
)
#: Locked, too, because a file can be cancelled without its tenant's lock.
_UPLOADS: Final = (
    select(UploadRow, tenant_id="w.t", upload_id="replace(w.u::text, '-', '')", state="f.state")
    + " FROM unnest(%(upload_tenants)s::int[], %(upload_ids)s::uuid[]) AS w(t, u)"
    " CROSS JOIN LATERAL (SELECT state FROM upload_session"
    " WHERE tenant_id = w.t AND upload_id = w.u LIMIT 1 FOR NO KEY UPDATE) AS f"
)
#: Not locked: a finished upload changes its state only under its tenant's lock. OFFSET 0 makes PostgreSQL
#: look them up by their record, one index probe an upload.
_DUPLICATES: Final = (
    select(
        DuplicateRow,
        tenant_id="w.t",
        upload_id="replace(w.u::text, '-', '')",
        duplicate_id="replace(f.upload_id::text, '-', '')",
        state="f.state",
        domain="o.domain",
        own="concat(o.sha256, ' ', o.file_name)",
        other="concat(f.sha256, ' ', f.file_name)",
    )
    + " FROM unnest(%(duplicate_tenants)s::int[], %(duplicate_ids)s::uuid[]) AS w(t, u)"
    " CROSS JOIN LATERAL (SELECT domain, record_id, sha256, file_name FROM upload_session"
    " WHERE tenant_id = w.t AND upload_id = w.u LIMIT 1) AS o"
    " CROSS JOIN LATERAL (SELECT upload_id, state, sha256, file_name FROM upload_session AS u"
    " WHERE tenant_id = w.t AND domain = o.domain AND record_id = o.record_id"
    f" AND {may_be_same('u', 'o')}"
    f" AND upload_id <> w.u AND state IN {FILE_OR_DUPLICATE} OFFSET 0) AS f"
)
#: The first item of each, so that a retry of it knows that none is left before it.
_REJECTED_BEFORE: Final = (
    select(
        RejectedRow, tenant_id="w.t", device_id="w.v", domain="w.d", id="w.i", quarantine_id="f.quarantine_id"
    )
    + " FROM unnest(%(rejected_tenants)s::int[], %(rejected_devices)s::text[],"
    f" {split_sql('rejected_domains', 'text')},"
    f" {split_sql('rejected_ids', 'text')}) AS w(t, v, d, i) CROSS JOIN LATERAL"
    " (SELECT quarantine_id FROM quarantine WHERE tenant_id = w.t AND device_id = w.v"
    " AND domain = w.d AND record_id = w.i ORDER BY place LIMIT 1) AS f"
)
_RECOVERING: Final = (
    select(QuarantineRow, tenant_id="w.t", quarantine_id="w.q")
    + " FROM unnest(%(recovering_tenants)s::int[], %(recovering_ids)s::text[]) AS w(t, q)"
    " CROSS JOIN LATERAL (SELECT FROM quarantine WHERE tenant_id = w.t AND quarantine_id = w.q LIMIT 1) AS f"
)

Values = dict[str, object]


class ReadKinds(msgspec.Struct, frozen=True):
    """The kinds of row that a batch reads: each combination has a prepared statement of its own.

    ``sealing`` says whether this process seals anything.
    """

    sealing: bool
    keys: bool
    old_keys: bool
    records: bool
    events: bool
    events_ahead: bool
    open_conflicts: bool
    conflicts: bool
    uploads: bool
    duplicates: bool
    rejected_before: bool
    recovering: bool
    usage_above: tuple[int, ...]


def kinds_of(read_set: ReadSet, lifetime_h: float, *, sealing: bool) -> ReadKinds:
    """Return the kinds of row that a read set names. ``lifetime_h`` is how long answers are kept."""
    ahead_us = time.time() * 1_000_000 + _AHEAD_US
    return ReadKinds(
        sealing,
        bool(read_set.keys),
        bool(read_set.old_keys) and lifetime_h > RECENT_H,
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


def reading(kinds: ReadKinds, lifetime_h: float, day: int | None) -> Statement:
    """Return the statement that reads some kinds of row. ``day`` is as for ``answers.recent``."""
    sealing = (SEALED_SQL, "key_id::text") if kinds.sealing else (ANY_SEALED_SQL, "NULL::text")
    parts = [_COUNTERS.format(_usage(kinds.usage_above), *sealing)]
    parts += [older(lifetime_h)] if kinds.old_keys else []
    parts += [recent(lifetime_h, day)] if kinds.keys else []
    parts += [_RECORDS] if kinds.records else []
    parts += [_EVENTS_AHEAD if kinds.events_ahead else _EVENTS.format("")] if kinds.events else []
    parts += [_OPEN_CONFLICTS] if kinds.open_conflicts else []
    parts += [_CONFLICTS] if kinds.conflicts else []
    parts += [_UPLOADS] if kinds.uploads else []
    parts += [_DUPLICATES] if kinds.duplicates else []
    parts += [_REJECTED_BEFORE] if kinds.rejected_before else []
    parts += [_RECOVERING] if kinds.recovering else []
    return Statement(" UNION ALL ".join(parts))


def _usage(above: tuple[int, ...]) -> str:
    """Return the expression of what a tenant holds, NULL unless it holds more than ``above`` of anything."""
    if not above:
        return _USAGE
    more = " OR ".join([f"{name} > {number}" for name, number in zip(NAMES, above, strict=True)])
    return f"CASE WHEN {more} THEN {_USAGE} END"


def values_of(read_set: ReadSet, kinds: ReadKinds) -> Values:
    """Return the parameters of the statement."""
    values: Values = {"tenants": int_array(read_set.tenants)}
    if read_set.keys:
        tenants, hashes = zip(*read_set.keys, strict=True)
        values["key_tenants"] = int_array(tenants)
        values["key_hashes"] = hex_array(hashes)
    if kinds.old_keys:
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
    _add_conflicts(read_set, values)
    if read_set.uploads:
        values["upload_tenants"] = int_array([ref.tenant_id for ref in read_set.uploads])
        values["upload_ids"] = hex_array([ref.upload_id for ref in read_set.uploads])
    if read_set.duplicates:
        values["duplicate_tenants"] = int_array([ref.tenant_id for ref in read_set.duplicates])
        values["duplicate_ids"] = hex_array([ref.upload_id for ref in read_set.duplicates])
    return values


def _add_conflicts(read_set: ReadSet, values: Values) -> None:
    """Add the parameters of conflicts and of the quarantine."""
    if read_set.open_conflicts:
        tenants, devices, domains, ids = zip(*read_set.open_conflicts, strict=True)
        values["open_tenants"] = int_array(tenants)
        values["open_devices"] = text_array(devices)
        values["open_domains"] = text_array(domains)
        values["open_ids"] = text_array(ids)
    if read_set.conflicts:
        tenants, ids = zip(*read_set.conflicts, strict=True)
        values["conflict_tenants"] = int_array(tenants)
        values["conflict_ids"] = text_array(ids)
    if read_set.rejected_before:
        tenants, devices, domains, ids = zip(*read_set.rejected_before, strict=True)
        values["rejected_tenants"] = int_array(tenants)
        values["rejected_devices"] = text_array(devices)
        values["rejected_domains"] = control_joined(domains)
        values["rejected_ids"] = control_joined(ids)
    if read_set.recovering:
        tenants, ids = zip(*read_set.recovering, strict=True)
        values["recovering_tenants"] = int_array(tenants)
        values["recovering_ids"] = text_array(ids)
