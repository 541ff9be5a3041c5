"""Sums up what subscribers saw of a run, and holds it against what was acknowledged and what is stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from bench.harness.audit import syncs_of
from bench.harness.load_run import Run
from bench.live.subscribers import Seen, digest
from bench.report.statistics import Latency, latency_of, percentile
from storage.postgres.blocking import connected


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the syncs of the measured phase, and how much came within it.

    Latencies are from the acknowledgement at the device that pushed, and from when it was to send.
    """

    from_ack: Latency
    from_sending: Latency
    per_s: float
    pages_per_s: float
    cpus: float
    lag_p99_ms: float
    faults: Sequence[str]

    @property
    def changes_per_page(self) -> float:
        """How many changes a page had, on average."""
        return self.per_s / self.pages_per_s if self.pages_per_s else 0.0


class Tables(msgspec.Struct, frozen=True):
    """What the database holds, by the tenants' names: the last seq, and the digest of records' versions."""

    seqs: Mapping[str, int]
    digests: Mapping[str, str]


def tables_of(dsn: str, tenants: Sequence[str]) -> Tables:
    """Read them past the server. Raises StoreError."""
    versions: dict[str, dict[str, int]] = {name: {} for name in tenants}
    seqs = dict.fromkeys(tenants, 0)
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name, tenant_id FROM tenants WHERE name = ANY(%s)", (list(tenants),))
        names = {tenant_id: name for name, tenant_id in cursor.fetchall()}
        cursor.execute(
            "SELECT tenant_id, id, version, seq FROM records WHERE tenant_id = ANY(%s)", (list(names),)
        )
        for tenant_id, record_id, version, seq in cursor.fetchall():
            name = names[tenant_id]
            versions[name][record_id] = version
            seqs[name] = max(seqs[name], seq)
    return Tables(seqs, {name: digest(held) for name, held in versions.items()})


def delivered(run: Run, seen: Sequence[Seen], tenants: Sequence[str], tables: Tables) -> Delivered:
    """Sum up a run and what its subscribers saw; subscriber n is of ``tenants[n]``."""
    outcome, started_us = run.outcome, int(run.began_s * 1e6)
    first_us, last_us = run.plan.bounds_us[-1]
    begin_us, end_us = started_us + first_us, started_us + last_us
    duration_s = run.plan.steps[-1].duration_s
    acks: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
    for sync in syncs_of(run).values():
        due_us, done_us = outcome.due_us[sync.number], outcome.done_us[sync.number]
        if first_us <= due_us < last_us:
            acks[sync.tenant].update(dict.fromkeys(sync.seqs, (started_us + due_us, started_us + done_us)))
    from_ack_us: list[int] = []
    from_sending_us: list[int] = []
    changes = pages = 0
    for part in seen:
        for connection, first, last, count, at_us in zip(
            part.connection, part.first_seq, part.last_seq, part.changes, part.at_us, strict=True
        ):
            if begin_us <= at_us < end_us:
                changes += count
                pages += 1
            known = acks[tenants[connection]]
            for seq in range(first, last + 1):
                if (times := known.get(seq)) is not None:
                    from_sending_us.append(at_us - times[0])
                    from_ack_us.append(max(0, at_us - times[1]))  # it may be there before
    lag_us = sorted(lag for part in seen for lag in part.lag_us)
    return Delivered(
        from_ack=latency_of(from_ack_us),
        from_sending=latency_of(from_sending_us),
        per_s=changes / duration_s,
        pages_per_s=pages / duration_s,
        cpus=sum(part.cpus for part in seen),
        lag_p99_ms=percentile(lag_us, 99) / 1000,
        faults=list(_faults(seen, tenants, tables)),
    )


def _faults(seen: Sequence[Seen], tenants: Sequence[str], tables: Tables) -> Iterator[str]:
    """Name each subscriber that does not know every record at the version that is stored."""
    digests = [one for part in seen for one in part.digests]
    short = {index for part in seen for index in part.short}
    for index, (tenant, known) in enumerate(zip(tenants, digests, strict=True)):
        if index in short:
            yield f"subscriber {index} of {tenant} did not get to seq {tables.seqs[tenant]}"
        elif known != tables.digests[tenant]:
            yield f"subscriber {index} of {tenant} holds other versions than the tables"
    backwards = sum(part.backwards for part in seen)
    if backwards:
        yield f"{backwards:,} changes came with a lower version than their record had"
    errors = sum((Counter(part.errors) for part in seen), Counter[str]())
    if errors:
        yield f"subscribers were told or cut off: {', '.join(f'{what} {n}' for what, n in errors.items())}"
