"""After a run: does PostgreSQL hold what was acknowledged, each item exactly once?

Read past the server, from its tables (``storage/migrations``).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bench.harness.drive import Run
from bench.load.workload import DOMAIN, key_of, note_of, record_id
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

_NAMED = 10


class Audit(msgspec.Struct, frozen=True):
    """What was found. ``faults`` names the first few of ``fault_count``."""

    items: int
    records: int
    tenants: int
    fault_count: int
    faults: list[str]


class _Ack(NamedTuple):
    number: int
    version: int
    seq: int


class _Stored(NamedTuple):
    version: int
    seq: int
    device: str
    note: str | None


class _Result(msgspec.Struct):
    id: str
    version: int | None = None
    seq: int | None = None


_decode_results = msgspec.json.Decoder(list[_Result]).decode


class Auditor:
    """Looks at one database, from before a run until after it. Raises StoreError."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT now()::text")
            ((self._since,),) = cursor.fetchall()

    def audit(self, run: Run) -> Audit:
        """Hold every acknowledged item of a run that began after this was made against the database."""
        acks = run.outcome.acks
        tables = _Tables(self._dsn, self._since, run)
        faults = [*_records(run, tables), *_keys(run, tables), *_tenants(run, tables)]
        return Audit(
            len(acks.device), len(tables.records), len(tables.counters), len(faults), faults[:_NAMED]
        )


class _Tables:
    """What the database holds of a run. Records by (tenant, id), answers by (tenant, key hash)."""

    def __init__(self, dsn: str, since: str, run: Run) -> None:
        prefix = run.plan.devices[0].split("-")[0] + "-"
        self.records: dict[tuple[str, str], _Stored] = {}
        self.answers: dict[tuple[str, str], list[bytes]] = defaultdict(list)
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name, tenant_id FROM tenants WHERE name = ANY(%s)", (list(run.tenants),))
            names = {tenant_id: name for name, tenant_id in cursor.fetchall()}
            ids = list(names)
            cursor.execute(
                "SELECT tenant_id, id, version, seq, device_id, data ->> 'note' FROM records"
                " WHERE tenant_id = ANY(%s) AND domain = %s AND id LIKE %s",
                (ids, DOMAIN, prefix + "%"),
            )
            for tenant_id, item_id, *rest in cursor.fetchall():
                self.records[names[tenant_id], item_id] = _Stored(*rest)
            cursor.execute(
                "SELECT tenant_id, key_hash::text, results::text FROM sync_idempotency_record"
                " WHERE tenant_id = ANY(%s) AND created_at >= %s",
                (ids, since),
            )
            for tenant_id, key_hash, results in cursor.fetchall():
                self.answers[names[tenant_id], key_hash.replace("-", "")].append(results.encode())
            self.counters = counters(cursor, names)


def counters(cursor: Cursor, names: Mapping[int, str]) -> dict[str, tuple[int, int]]:
    """Read the counters of tenants and how many versions their records count, both by the tenants' names."""
    cursor.execute(
        "SELECT tenant_id, c.seq, coalesce(sum(version), 0)"
        " FROM tenant_counters AS c LEFT JOIN records AS r USING (tenant_id)"
        " WHERE tenant_id = ANY(%s) GROUP BY tenant_id, c.seq",
        (list(names),),
    )
    return {names[tenant_id]: (seq, int(versions)) for tenant_id, seq, versions in cursor.fetchall()}


def _records(run: Run, tables: _Tables) -> Iterator[str]:
    """Each record is there once, at the version of its last acknowledged write or of one not answered."""
    acks, devices = run.outcome.acks, run.plan.devices
    written: dict[tuple[int, int], list[_Ack]] = defaultdict(list)
    for device, number, record, version, seq in zip(
        acks.device, acks.number, acks.record, acks.version, acks.seq, strict=True
    ):
        written[device, record].append(_Ack(number, version, seq))
    unsure = Counter((item.device, item.record) for item in run.outcome.unsure)
    known: set[tuple[str, str]] = set()
    for (device, record), history in written.items():
        identity = (run.tenant_of(device), record_id(devices[device], record))
        known.add(identity)
        stored = tables.records.get(identity)
        history.sort(key=lambda ack: ack.version)
        last = history[-1]
        where = f"{identity[0]}/{identity[1]}"
        if [ack.version for ack in history] != list(range(1, len(history) + 1)):
            yield f"{where}: acknowledged versions are {[ack.version for ack in history]}"
        if any(later.seq <= earlier.seq for earlier, later in pairwise(history)):
            yield f"{where}: a later version has no later seq"
        if stored is None:
            yield f"{where}: acknowledged at version {last.version} and not there"
        elif not last.version <= stored.version <= last.version + unsure[device, record]:
            yield f"{where}: acknowledged at version {last.version}, there at {stored.version}"
        elif stored.version == last.version and stored != (
            last.version,
            last.seq,
            devices[device],
            note_of(last.number),
        ):
            yield f"{where}: acknowledged as {last} of {devices[device]}, there as {stored}"
    known |= {(run.tenant_of(device), record_id(devices[device], record)) for device, record in unsure}
    for tenant, item_id in tables.records.keys() - known:
        yield f"{tenant}/{item_id}: there and never sent"


def _keys(run: Run, tables: _Tables) -> Iterator[str]:
    """Each acknowledged message is kept once under its key, with the answer that was given."""
    acks, devices = run.outcome.acks, run.plan.devices
    for device, number, record, version, seq in zip(
        acks.device, acks.number, acks.record, acks.version, acks.seq, strict=True
    ):
        name, key = devices[device], key_of(devices[device], number)
        kept = tables.answers.get((run.tenant_of(device), key_hash(name, key)), [])
        if len(kept) != 1:
            yield f"{run.tenant_of(device)}: key {key} is kept {len(kept)} times"
        elif _decode_results(kept[0]) != [_Result(record_id(name, record), version, seq)]:
            yield f"{run.tenant_of(device)}: key {key} is kept with another answer"
    for item in run.outcome.unsure:
        name = devices[item.device]
        key = key_of(name, item.number)
        if len(tables.answers.get((run.tenant_of(item.device), key_hash(name, key)), [])) > 1:
            yield f"{run.tenant_of(item.device)}: key {key}, not acknowledged, is kept twice"


def _tenants(run: Run, tables: _Tables) -> Iterator[str]:
    """A tenant's counter counts its versions, and each took a seq of its own.

    Of two records with one seq the table's own constraint keeps it free.
    """
    seqs: dict[str, list[int]] = defaultdict(list)
    for device, seq in zip(run.outcome.acks.device, run.outcome.acks.seq, strict=True):
        seqs[run.tenant_of(device)].append(seq)
    for tenant in run.tenants:
        counter, versions = tables.counters.get(tenant, (0, 0))
        acknowledged = seqs[tenant]
        if len(set(acknowledged)) != len(acknowledged):
            yield f"{tenant}: a seq was acknowledged twice"
        if acknowledged and not 1 <= min(acknowledged) <= max(acknowledged) <= counter:
            yield f"{tenant}: a seq was acknowledged that the counter ({counter}) has not reached"
        if counter != versions:
            yield f"{tenant}: the counter stands at {counter}, the records count {versions} versions"


def key_hash(device: str, key: str) -> str:
    """Hash a key as the server stores it, bound to its device."""
    return hashlib.blake2b(f"{device}\0{key}".encode(), digest_size=16).hexdigest()
