"""After ``overload``: each acknowledged sync is stored once and whole, and nothing that was refused is.

Read past the server, from its tables, a sync a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from bench.harness.audit import Audit, counters, key_hash
from bench.overload.drive import Loaded
from bench.overload.workload import key_of
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

_NAMED: Final = 10
#: What these answer may be stored nevertheless, as may what was not answered.
_DOUBTFUL: Final = frozenset({"unanswered", "unavailable", "internal"})

_SYNCS: Final = (
    "SELECT tenant_id, left(id, 16), array_agg(seq ORDER BY id), min(device_id), max(device_id),"
    " count(*) FILTER (WHERE version <> CASE WHEN substr(id, 18)::int < %(changes)s THEN 2 ELSE 1 END"
    "  OR data ->> 'note' IS DISTINCT FROM"
    "   substr(id, 9) || CASE version WHEN 1 THEN ' made' ELSE ' changed' END)"
    " FROM records WHERE tenant_id = ANY(%(ids)s) AND domain = 'task' AND id LIKE %(prefix)s GROUP BY 1, 2"
)
_KEYS: Final = (
    "SELECT key_hash::text, results::text FROM sync_idempotency_record"
    " WHERE tenant_id = %s AND created_at >= %s"
)

Fate = Literal["stored", "refused", "doubtful"]


class _Sync(NamedTuple):
    """A sync that was sent: ``seqs`` of its items, where it was acknowledged."""

    tenant: str
    device: str
    fate: Fate
    seqs: list[int]


class _Stored(NamedTuple):
    """The records of a sync: their seqs in the order of their ids, and how many are not as they were sent."""

    seqs: list[int]
    first_device: str
    last_device: str
    wrong: int


class _Result(msgspec.Struct):
    seq: int | None = None


_decode_results = msgspec.json.Decoder(list[_Result]).decode


class OverloadAuditor:
    """Looks at one database, from before the first run until after the last. Raises StoreError."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT now()::text")
            ((self._since,),) = cursor.fetchall()

    def audit(self, runs: Sequence[Loaded]) -> Audit:
        """Hold all that was sent in runs that began after this was made against the database."""
        sent = [_sent(run) for run in runs]
        everything = dict(chain.from_iterable(map(dict.items, sent)))
        tenants = sorted({tenant for run in runs for tenant in run.tenants})
        faults: list[str] = []
        records = 0
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT tenant_id, name FROM tenants WHERE name = ANY(%s)", (tenants,))
            names: dict[int, str] = dict(cursor.fetchall())
            for run, syncs in zip(runs, sent, strict=True):
                stored = _stored(cursor, run, names)
                records += sum(len(one.seqs) for one in stored.values())
                faults += _records(run, syncs, stored)
            faults += self._keys(cursor, names, everything)
            faults += _tenants(counters(cursor, names), everything)
        items = sum(len(run.happened.seqs) for run in runs)
        return Audit(items, records, len(names), len(faults), faults[:_NAMED])

    def _keys(self, cursor: Cursor, names: Mapping[int, str], sent: Mapping[str, _Sync]) -> Iterator[str]:
        """Each acknowledged sync is kept once under its key, with the answer that was given."""
        for tenant_id, name in names.items():
            cursor.execute(_KEYS, (tenant_id, self._since))
            kept: dict[str, list[str]] = {}
            for hashed, results in cursor.fetchall():
                kept.setdefault(hashed.replace("-", ""), []).append(results)
            for key, sync in sent.items():
                if sync.tenant == name:
                    yield from _key(f"{name}/{key}", sync, kept.get(key_hash(sync.device, key), []))


def _sent(run: Loaded) -> dict[str, _Sync]:
    """Give the syncs that left, by their keys."""
    happened, devices, items = run.happened, run.plan.devices, run.plan.backlog.items
    seqs = iter(happened.seqs)
    found: dict[str, _Sync] = {}
    for number, (device, sent_us, code) in enumerate(
        zip(happened.device, happened.sent_us, happened.code, strict=True)
    ):
        if sent_us < 0:
            continue
        name = happened.codes[code]
        fate: Fate = "stored" if name == "synced" else "doubtful" if name in _DOUBTFUL else "refused"
        own = [next(seqs) for _ in range(items)] if fate == "stored" else []
        found[key_of(run.plan.prefix, number)] = _Sync(run.tenant_of(device), devices[device], fate, own)
    return found


def _stored(cursor: Cursor, run: Loaded, names: Mapping[int, str]) -> dict[tuple[str, str], _Stored]:
    """Read what there is of a run, by tenant and key."""
    plan = run.plan
    parameters = {"ids": list(names), "prefix": plan.prefix + "%", "changes": plan.backlog.changes}
    cursor.execute(_SYNCS, parameters)
    return {(names[tenant_id], key): _Stored(*rest) for tenant_id, key, *rest in cursor.fetchall()}


def _records(run: Loaded, sent: Mapping[str, _Sync], stored: dict[tuple[str, str], _Stored]) -> Iterator[str]:
    """What was acknowledged is there as it was sent, what was refused is not, nor what was never sent."""
    backlog = run.plan.backlog
    for key, sync in sent.items():
        where = f"{sync.tenant}/{key}"
        there = stored.pop((sync.tenant, key), None)
        if there is None:
            if sync.fate == "stored":
                yield f"{where}: acknowledged and not there"
        elif sync.fate == "refused":
            yield f"{where}: refused and there"
        elif there.wrong or len(there.seqs) != backlog.new_records:
            yield f"{where}: there otherwise than it was sent"
        elif not there.first_device == there.last_device == sync.device:
            yield f"{where}: sent by {sync.device}, there as of {there.first_device}"
        elif sync.fate == "stored" and there.seqs != backlog.standing(sync.seqs):
            yield f"{where}: there with other seqs than were acknowledged"
    for tenant, key in stored:
        yield f"{tenant}/{key}: there and never sent"


def _key(where: str, sync: _Sync, kept: Sequence[str]) -> Iterator[str]:
    if sync.fate == "refused" and kept:
        yield f"{where}: refused and its key is kept"
    elif len(kept) > 1 or (sync.fate == "stored" and not kept):
        yield f"{where}: its key is kept {len(kept)} times"
    elif sync.fate == "stored" and [result.seq for result in _decode_results(kept[0])] != sync.seqs:
        yield f"{where}: its key is kept with another answer"


def _tenants(standing: Mapping[str, tuple[int, int]], sent: Mapping[str, _Sync]) -> Iterator[str]:
    """A tenant's counter counts its versions, and no seq was given twice."""
    seqs: dict[str, list[int]] = {tenant: [] for tenant in standing}
    for sync in sent.values():
        seqs[sync.tenant] += sync.seqs
    for tenant, (counter, versions) in standing.items():
        given = seqs[tenant]
        if len(set(given)) != len(given):
            yield f"{tenant}: a seq was acknowledged twice"
        if given and max(given) > counter:
            yield f"{tenant}: a seq was acknowledged that the counter ({counter}) has not reached"
        if counter != versions:
            yield f"{tenant}: the counter stands at {counter}, the records count {versions} versions"
