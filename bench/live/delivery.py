"""Subscribers beside a load: run in processes of their own, and held against what is stored."""

from __future__ import annotations

import resource
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec

from bench.harness.audit import syncs_of
from bench.harness.child import Child, child
from bench.harness.environment import BenchError
from bench.harness.load_run import Run, Target
from bench.live.subscribers import Seen, WatchPlan, digest
from bench.report.statistics import Latency, latency_of, percentile
from storage.postgres.blocking import connected

#: Connections that come from one loopback address: the system gives each of them a port of its own.
_FROM_ONE_ADDRESS: Final = 10_000


class Watchers:
    """Subscribers that are all connected, in parts; connection n is of ``tenants[n]``."""

    def __init__(self, tenants: Sequence[str], processes: Sequence[tuple[Child, slice]]) -> None:
        self.tenants = tenants
        self._processes = processes

    def watched(self, target: Target) -> Target:
        """Add their processes to those that are measured."""
        own = {f"subscribers {place}": one.pid for place, (one, _) in enumerate(self._processes, 1)}
        return msgspec.structs.replace(target, watched={**target.watched, **own})

    def begin(self) -> None:
        """Tell them to note what arrives."""
        for process, _ in self._processes:
            process.tell()

    async def finish(self, seqs: Mapping[str, int]) -> Seen:
        """Tell each to wait for its tenant's seq. Returns what they saw. Raises BenchError."""
        for process, part in self._processes:
            process.tell([seqs[tenant] for tenant in self.tenants[part]])
        seen = Seen()
        errors: Counter[str] = Counter()
        for process, part in self._processes:
            one = await process.read(Seen)
            seen.pages += [(part.start + connection, *page) for connection, *page in one.pages]
            seen.short += [part.start + connection for connection in one.short]
            for field in ("digests", "lag_us", "backwards", "heartbeats", "heartbeats_answered", "cpus"):
                setattr(seen, field, getattr(seen, field) + getattr(one, field))
            errors.update(one.errors)
        seen.errors = dict(errors)
        return seen


@asynccontextmanager
async def watching(
    target: Target,
    tenants: Sequence[str],
    connections: int,
    processes: int,
    *,
    heartbeats: bool = False,
    deflate: bool = False,
) -> AsyncIterator[Watchers]:
    """Subscribe, connection n for tenant n modulo these, over all ports of the target. Raises BenchError."""
    prefix = secrets.token_hex(4)
    mine = [tenants[index % len(tenants)] for index in range(connections)]
    ports = list(target.ports) or [target.port]
    own_ports = [ports[index % len(ports)] for index in range(connections)]
    tokens = [target.token(tenant, f"{prefix}-{index}") for index, tenant in enumerate(mine)]
    addresses = sources(connections)
    async with AsyncExitStack() as stack:
        started: list[tuple[Child, slice]] = []
        size = -(-connections // processes) or 1
        for first in range(0, connections, size):
            part = slice(first, min(first + size, connections))
            plan = WatchPlan(
                host=target.host,
                ports=own_ports[part],
                tokens=tokens[part],
                sources=addresses[part],
                heartbeats=heartbeats,
                deflate=deflate,
            )
            running = child("subscribers", "bench.live.subscribers", plan)
            started.append((await stack.enter_async_context(running), part))
        for process, _ in started:
            await process.read(str)
        yield Watchers(mine, started)


def sources(connections: int) -> list[str]:
    """Give each connection an address of this machine to come from; none if they all may come from one."""
    if connections <= _FROM_ONE_ADDRESS:
        return []
    return [f"127.0.0.{2 + index // _FROM_ONE_ADDRESS}" for index in range(connections)]


def check_files(connections: int, processes: int, workers: int, own: int) -> None:
    """Refuse more connections, and ``own`` files, than a process of either side may open: BenchError."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = -(-connections // min(processes, workers)) + own
    if files < needed:
        raise BenchError(
            f"a process of this account may open {files:,} files and {needed:,} are needed for"
            f" {connections:,} connections: raise the limit (ulimit -Hn {needed}), or give more --workers"
            " or fewer --connections"
        )


class Tables(msgspec.Struct, frozen=True):
    """What the database holds, by the tenants' names: the last seq, and the digest of records' versions."""

    seqs: Mapping[str, int]
    digests: Mapping[str, str]


def tables_of(dsn: str, tenants: Sequence[str]) -> Tables:
    """Read them past the server. Raises StoreError."""
    versions: dict[str, dict[str, int]] = {name: {} for name in tenants}
    seqs = dict.fromkeys(tenants, 0)
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, id, version, seq FROM records JOIN tenants USING (tenant_id) WHERE name = ANY(%s)",
            (list(tenants),),
        )
        for name, record_id, version, seq in cursor:
            versions[name][record_id] = version
            seqs[name] = max(seqs[name], seq)
    return Tables(seqs, {name: digest(held) for name, held in versions.items()})


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


def delivered(run: Run, seen: Seen, tenants: Sequence[str], tables: Tables) -> Delivered:
    """Sum up a run and what its subscribers saw; subscriber n is of ``tenants[n]``."""
    outcome, started_us = run.outcome, int(run.began_s * 1e6)
    first_us, last_us = run.plan.bounds_us[-1]
    duration_s = run.plan.steps[-1].duration_s
    acks: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
    for sync in syncs_of(run).values():
        due_us, done_us = outcome.due_us[sync.number], outcome.done_us[sync.number]
        if first_us <= due_us < last_us:
            acks[sync.tenant].update(dict.fromkeys(sync.seqs, (started_us + due_us, started_us + done_us)))
    from_ack_us: list[int] = []
    from_sending_us: list[int] = []
    changes = pages = 0
    for connection, first, last, count, at_us in seen.pages:
        if first_us <= at_us - started_us < last_us:
            changes += count
            pages += 1
        known = acks[tenants[connection]]
        for seq in range(first, last + 1):
            if (times := known.get(seq)) is not None:
                from_sending_us.append(at_us - times[0])
                from_ack_us.append(max(0, at_us - times[1]))  # it may be there before
    return Delivered(
        from_ack=latency_of(from_ack_us),
        from_sending=latency_of(from_sending_us),
        per_s=changes / duration_s,
        pages_per_s=pages / duration_s,
        cpus=seen.cpus,
        lag_p99_ms=percentile(sorted(seen.lag_us), 99) / 1000,
        faults=list(_faults(seen, tenants, tables)),
    )


def _faults(seen: Seen, tenants: Sequence[str], tables: Tables) -> Iterator[str]:
    """Name each subscriber that does not know every record at the version that is stored."""
    short = {*seen.short}
    for index, (tenant, known) in enumerate(zip(tenants, seen.digests, strict=True)):
        if index in short:
            yield f"subscriber {index} of {tenant} did not get to seq {tables.seqs[tenant]}"
        elif known != tables.digests[tenant]:
            yield f"subscriber {index} of {tenant} holds other versions than the tables"
    if seen.backwards:
        yield f"{seen.backwards:,} changes came with a lower version than their record had"
    if seen.errors:
        told = ", ".join(f"{what} {count}" for what, count in seen.errors.items())
        yield f"subscribers were told or cut off: {told}"
