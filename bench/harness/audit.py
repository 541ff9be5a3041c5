"""After runs: is everything that was acknowledged stored once, and nothing that was refused?

Read past the server, from its tables (``storage/migrations``).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from bench.harness.load_run import Run
from bench.harness.sealed import open_tables
from bench.load.plan import Plan
from bench.load.workload import DOMAIN, Backlog, key_of, note_of, record_id
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: How many faults an audit names.
_NAMED: Final = 10
#: A sync with this answer may be stored nevertheless, as may one without an answer.
_DOUBTFUL: Final = frozenset({"unanswered", "unavailable", "internal"})

_TASKS: Final = (
    "SELECT tenant_id, id, version, seq, device_id, data ->> 'note' FROM records"
    f" WHERE tenant_id = ANY(%(ids)s) AND domain = '{DOMAIN}' AND id LIKE %(prefix)s"
)
#: One row for the records of a sync: their seqs by id, and how many are not as they were sent.
_BACKLOGS: Final = (
    "SELECT tenant_id, left(id, 16), array_agg(seq ORDER BY id), min(device_id), max(device_id),"
    " count(*) FILTER (WHERE version <> CASE WHEN substr(id, 18)::int < %(changes)s THEN 2 ELSE 1 END"
    "  OR data ->> 'note' IS DISTINCT FROM"
    "   substr(id, 9) || CASE version WHEN 1 THEN ' made' ELSE ' changed' END)"
    f" FROM records WHERE tenant_id = ANY(%(ids)s) AND domain = '{DOMAIN}' AND id LIKE %(prefix)s"
    " GROUP BY 1, 2"
)
_KEYS: Final = (
    "SELECT key_hash::text, results::text FROM sync_idempotency_record"
    " WHERE tenant_id = %s AND created_at >= %s"
)
_COUNTERS: Final = (
    "SELECT tenant_id, c.seq, coalesce(sum(version), 0)"
    " FROM tenant_counters AS c LEFT JOIN records AS r USING (tenant_id)"
    " WHERE tenant_id = ANY(%s) GROUP BY tenant_id, c.seq"
)

Fate = Literal["stored", "refused", "doubtful"]


class Audit(msgspec.Struct, frozen=True):
    """What was found. ``faults`` names the first few of ``fault_count``."""

    items: int
    records: int
    tenants: int
    fault_count: int
    faults: list[str]


class Sync(NamedTuple):
    """A sync that was sent. ``seqs`` and ``versions`` are those of its items if it was acknowledged.

    ``record`` is the number of its task, -1 for a backlog. ``origin`` is the device's name in its records.
    """

    number: int
    tenant: str
    device: str
    origin: str
    fate: Fate
    record: int
    versions: list[int]
    seqs: list[int]


class _Task(NamedTuple):
    version: int
    seq: int
    device: str
    note: str | None


class _Backlog(NamedTuple):
    seqs: list[int]
    first_device: str
    last_device: str
    wrong: int


class _Result(msgspec.Struct):
    version: int | None = None
    seq: int | None = None


_decode_results = msgspec.json.Decoder(list[_Result]).decode


class Auditor:
    """Reads one database, from before the first run until after the last. Raises StoreError."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT now()::text")
            ((self._since,),) = cursor.fetchall()

    def audit(self, *runs: Run) -> Audit:
        """Compare all that was sent in runs that began after this was made with the database."""
        sent = [(run, syncs_of(run)) for run in runs]
        every = {key: sync for _, syncs in sent for key, sync in syncs.items()}
        faults: list[str] = []
        records = 0
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            open_tables(cursor, self._dsn)
            known = sorted({tenant for run in runs for tenant in run.tenants})
            cursor.execute("SELECT tenant_id, name FROM tenants WHERE name = ANY(%s)", (known,))
            names: dict[int, str] = dict(cursor.fetchall())
            for run, syncs in sent:
                count, found = _records(cursor, run.plan, syncs, names)
                records += count
                faults += found
            faults += self._keys(cursor, names, every)
            cursor.execute(_COUNTERS, (list(names),))
            counters = {names[tenant_id]: (seq, int(versions)) for tenant_id, seq, versions in cursor}
        faults += _tenants(counters, every)
        items = sum(len(run.outcome.seqs) for run in runs)
        return Audit(items, records, len(names), len(faults), faults[:_NAMED])

    def _keys(self, cursor: Cursor, names: Mapping[int, str], sent: Mapping[str, Sync]) -> Iterator[str]:
        """Each acknowledged sync is kept once under its key, with the answer that was given."""
        for tenant_id, name in names.items():
            cursor.execute(_KEYS, (tenant_id, self._since))
            kept: dict[str, list[str]] = defaultdict(list)
            for hashed, results in cursor:
                kept[hashed.replace("-", "")].append(results)
            for key, sync in sent.items():
                if sync.tenant == name:
                    yield from _key(f"{name}/{key}", sync, kept.get(key_hash(sync.device, key), []))


def syncs_of(run: Run) -> dict[str, Sync]:
    """Return the syncs that left, by their keys."""
    outcome, plan = run.outcome, run.plan
    seqs = iter(outcome.seqs)
    found: dict[str, Sync] = {}
    for number, (device, sent_us, code) in enumerate(
        zip(outcome.device, outcome.sent_us, run.codes, strict=True)
    ):
        if sent_us < 0:
            continue
        # What a server applied otherwise than it was asked to is no refusal: it may stand.
        refused = code not in _DOUBTFUL and not code.startswith(("item_", "wrong_", "answered_"))
        fate: Fate = "stored" if code == "synced" else "refused" if refused else "doubtful"
        if plan.backlog is None:
            record, versions = outcome.record[number], [outcome.base[number] + 1]
        else:
            record, versions = -1, plan.backlog.versions
        own = [next(seqs) for _ in versions] if fate == "stored" else []
        origin = plan.devices[device]
        known_as = plan.identities[device] if plan.identities else origin
        sync = Sync(number, run.tenant_of(device), known_as, origin, fate, record, versions, own)
        found[key_of(plan.prefix, number)] = sync
    return found


def _records(
    cursor: Cursor, plan: Plan, syncs: Mapping[str, Sync], names: Mapping[int, str]
) -> tuple[int, list[str]]:
    """Count the records of a run, and compare each task, or each backlog, with the syncs that wrote it."""
    backlog = plan.backlog
    query, pattern, changes = _TASKS, f"{plan.prefix}-%", 0
    if backlog is not None:
        query, pattern, changes = _BACKLOGS, f"{plan.prefix}%", backlog.changes
    cursor.execute(query, {"ids": list(names), "prefix": pattern, "changes": changes})
    stored = {(names[tenant_id], name): rest for tenant_id, name, *rest in cursor}
    count = len(stored) if backlog is None else sum(len(seqs) for seqs, *_ in stored.values())
    written: dict[tuple[str, str], list[Sync]] = defaultdict(list)
    for key, sync in syncs.items():
        written[sync.tenant, record_id(sync.origin, sync.record) if backlog is None else key].append(sync)
    faults: list[str] = []
    for where, history in written.items():
        there = stored.pop(where, None)
        if backlog is None:
            found = _task(history, None if there is None else _Task(*there))
        else:
            found = _whole(backlog, history[0], None if there is None else _Backlog(*there))
        faults += [f"{'/'.join(where)}: {fault}" for fault in found]
    return count, faults + [f"{tenant}/{name}: there and never sent" for tenant, name in stored]


def _task(history: Sequence[Sync], stored: _Task | None) -> Iterator[str]:
    """A task is there once, at the version of its last acknowledged write or of a doubtful one."""
    acknowledged = sorted((one.versions[0], one.seqs[0], one) for one in history if one.fate == "stored")
    doubtful = sum(one.fate == "doubtful" for one in history)
    versions = [version for version, _, _ in acknowledged]
    if versions != list(range(1, len(versions) + 1)):
        yield f"acknowledged versions are {versions}"
    if any(later[1] <= earlier[1] for earlier, later in pairwise(acknowledged)):
        yield "a later version has no later seq"
    last = versions[-1] if versions else 0
    if stored is None:
        if versions:
            yield f"acknowledged at version {last} and not there"
    elif not last <= stored.version <= last + doubtful:
        yield f"acknowledged at version {last}, there at {stored.version}"
    elif versions and stored.version == last:
        version, seq, sync = acknowledged[-1]
        expected = _Task(version, seq, sync.device, note_of(sync.number))
        if stored != expected:
            yield f"acknowledged as {expected}, there as {stored}"


def _whole(backlog: Backlog, sync: Sync, there: _Backlog | None) -> Iterator[str]:
    """A backlog is there whole or not at all, as it was sent; what was refused is not there."""
    if there is None:
        if sync.fate == "stored":
            yield "acknowledged and not there"
    elif sync.fate == "refused":
        yield "refused and there"
    elif there.wrong or len(there.seqs) != backlog.new_records:
        yield "there otherwise than it was sent"
    elif not there.first_device == there.last_device == sync.device:
        yield f"sent by {sync.device}, there as of {there.first_device}"
    elif sync.fate == "stored" and there.seqs != backlog.final_seqs(sync.seqs):
        yield "there with other seqs than were acknowledged"


def _key(where: str, sync: Sync, kept: Sequence[str]) -> Iterator[str]:
    expected = list(zip(sync.versions, sync.seqs, strict=False))
    if sync.fate == "refused" and kept:
        yield f"{where}: refused and its key is kept"
    elif len(kept) > 1 or (sync.fate == "stored" and not kept):
        yield f"{where}: its key is kept {len(kept)} times"
    elif sync.fate == "stored" and [(one.version, one.seq) for one in _decode_results(kept[0])] != expected:
        yield f"{where}: its key is kept with another answer"


def _tenants(counters: Mapping[str, tuple[int, int]], sent: Mapping[str, Sync]) -> Iterator[str]:
    """A tenant's counter counts its versions, and no seq was given twice.

    The table's own constraint keeps two records from one seq.
    """
    seqs: dict[str, list[int]] = defaultdict(list)
    for sync in sent.values():
        seqs[sync.tenant] += sync.seqs
    for tenant in sorted(counters.keys() | seqs.keys()):
        counter, versions = counters.get(tenant, (0, 0))
        given = seqs[tenant]
        if len(set(given)) != len(given):
            yield f"{tenant}: a seq was acknowledged twice"
        if given and not 1 <= min(given) <= max(given) <= counter:
            yield f"{tenant}: a seq was acknowledged that the counter ({counter}) has not reached"
        if counter != versions:
            yield f"{tenant}: the counter stands at {counter}, the records count {versions} versions"


def key_hash(device: str, key: str) -> str:
    """Hash a key as the server stores it, bound to its device."""
    return hashlib.blake2b(f"{device}\0{key}".encode(), digest_size=16).hexdigest()
