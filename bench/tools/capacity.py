"""What a number of devices needs: ``python -m bench.tools.capacity``.

Writes syncs into a database of its own for a few seconds to see what one takes on disk and in the WAL, and
prints a table for 10 thousand, 1 million and 10 million devices. Costs in CPU and memory are constants
here, taken from runs of the other scenarios; what is assumed and not measured is printed as such.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Final

import click
import msgspec

from bench.baselines.commit_only import Task
from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.stage import add_tenants, tenant_ids
from bench.load.workload import data_of, message
from bench.report.tables import table
from engine.runtime.settings import Settings
from storage.postgres.blocking import connected

DEVICES: Final = (10_000, 1_000_000, 10_000_000)
_MEASURE_S: Final = 4.0
_IN_FLIGHT: Final = 200
_TENANTS: Final = 20


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What PostgreSQL holds and writes, in bytes."""

    record_bytes: float
    key_bytes: float
    wal_bytes: float


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How devices are used. Not measured: put in your own."""

    syncs_a_day: float = 60.0
    day_h: float = 10.0
    peak: float = 2.0
    new_records: float = 0.5
    receivers: float = 3.0
    heartbeat_s: float = 30.0
    records_kept_days: float = 365.0
    keys_kept_days: float = 1.0
    load: float = 0.6


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What one of each costs, the upper end of what was measured; ``heartbeat_ms`` is assumed."""

    server_ms: float = 0.062
    postgres_ms: float = 0.040
    delivery_ms: float = 0.012
    heartbeat_ms: float = 0.020
    connection_kib: float = 16.5
    #: Most connections of one process, so that losing it or draining it stays a matter of a minute.
    connections: int = 25_000
    #: Syncs a second of one primary: half of what the durable pipeline reached on two shared cores.
    primary_per_s: float = 8_000.0
    sync_bytes: int = 0
    delivery_bytes: int = 0
    heartbeat_bytes: int = 150


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a number of devices needs at its peak; disk is what is there after ``records_kept_days``."""

    syncs_per_s: float
    deliveries_per_s: float
    heartbeats_per_s: float
    server_cores: float
    processes: int
    server_gib: float
    postgres_cores: float
    primaries: int
    redis_out_per_s: float
    network_mbit_s: float
    wal_mib_s: float
    wal_gib_day: float
    disk_gib: float
    reconnect_s: float


def need(devices: int, use: Use, costs: Costs, stored: Stored) -> Need:
    """Work out what ``devices``, all of them connected, need."""
    a_day = devices * use.syncs_a_day
    syncs = a_day / (use.day_h * 3600) * use.peak
    deliveries = syncs * use.receivers
    heartbeats = devices / use.heartbeat_s
    busy_ms = syncs * costs.server_ms + deliveries * costs.delivery_ms + heartbeats * costs.heartbeat_ms
    server_cores = busy_ms / 1000 / use.load
    processes = max(math.ceil(server_cores), math.ceil(devices / costs.connections))
    primaries = math.ceil(syncs / costs.primary_per_s)
    sent_bytes = (
        syncs * costs.sync_bytes + deliveries * costs.delivery_bytes + heartbeats * costs.heartbeat_bytes
    )
    records = a_day * use.new_records * use.records_kept_days
    return Need(
        syncs_per_s=syncs,
        deliveries_per_s=deliveries,
        heartbeats_per_s=heartbeats,
        server_cores=server_cores,
        processes=processes,
        server_gib=devices * costs.connection_kib / (1 << 20),
        postgres_cores=syncs * costs.postgres_ms / 1000 / use.load,
        primaries=primaries,
        redis_out_per_s=syncs / primaries * math.ceil(processes / primaries),
        network_mbit_s=sent_bytes * 8 / 1e6,
        wal_mib_s=syncs * stored.wal_bytes / (1 << 20),
        wal_gib_day=a_day * stored.wal_bytes / (1 << 30),
        disk_gib=(records * stored.record_bytes + a_day * use.keys_kept_days * stored.key_bytes) / (1 << 30),
        reconnect_s=devices / (500 * processes),
    )


_ROWS: Final[tuple[tuple[str, Callable[[Need], float]], ...]] = (
    ("syncs a second at the peak", lambda one: one.syncs_per_s),
    ("changes handed to followers a second", lambda one: one.deliveries_per_s),
    ("heartbeats a second", lambda one: one.heartbeats_per_s),
    ("cores for servers", lambda one: one.server_cores),
    ("server processes", lambda one: one.processes),
    ("memory for connections, GiB", lambda one: one.server_gib),
    ("cores for PostgreSQL", lambda one: one.postgres_cores),
    ("primaries (cells), each with its own Redis", lambda one: one.primaries),
    ("messages out of each Redis a second, at most", lambda one: one.redis_out_per_s),
    ("network to and from devices, Mbit/s", lambda one: one.network_mbit_s),
    ("WAL, MiB/s", lambda one: one.wal_mib_s),
    ("WAL a day, GiB", lambda one: one.wal_gib_day),
    ("disk after a year, GiB", lambda one: one.disk_gib),
    ("all devices back after an outage, s", lambda one: one.reconnect_s),
)


def printed(use: Use, costs: Costs, stored: Stored) -> Iterator[str]:
    """Lay the model out: what it rests on, then the table."""
    yield (
        f"Measured now: {stored.record_bytes:,.0f} bytes a record and {stored.key_bytes:,.0f} bytes a kept"
        f" answer, indexes included; {stored.wal_bytes:,.0f} bytes of WAL a sync."
    )
    yield (
        f"Measured in other runs: a sync costs {costs.server_ms} ms of CPU in the server and"
        f" {costs.postgres_ms} ms in PostgreSQL, a change handed to a follower {costs.delivery_ms} ms,"
        f" an idle connection {costs.connection_kib} KiB."
    )
    yield (
        f"Assumed: every device is connected and syncs {use.syncs_a_day:g} times a day within"
        f" {use.day_h:g} hours, at the peak {use.peak:g} times as often;"
        f" {use.new_records:.0%} of syncs make a record, kept for"
        f" {use.records_kept_days:g} days; {use.receivers:g} others follow each change; a heartbeat each"
        f" {use.heartbeat_s:g} s costs {costs.heartbeat_ms} ms; cores are {use.load:.0%} busy; a process"
        f" takes {costs.connections:,} connections and a primary {costs.primary_per_s:,.0f} syncs a second."
        " nginx, TLS, replicas and backups come on top."
    )
    yield ""
    needs = [need(devices, use, costs, stored) for devices in DEVICES]
    rows = [("devices", *(f"{devices:,}" for devices in DEVICES))]
    rows += [(name, *(_number(figure(one)) for one in needs)) for name, figure in _ROWS]
    yield from table(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def wire() -> Costs:
    """Fill in how long messages are: a sync with its answer, and a change as a follower gets it."""
    sync = len(message(b"f9a3c1d2-17", b"f9a3c1d2", 1200, 600, 3)) + 150  # its answer
    return Costs(sync_bytes=sync, delivery_bytes=len(data_of(600, 1200)) + 220)


def measured(environment: Environment, chosen: Settings) -> Stored:
    """Push for a few seconds through the group commit and see what became of it. Raises BenchError."""
    dsn = environment.database("capacity")
    add_tenants(dsn, [f"tenant-{number}" for number in range(_TENANTS)])
    task = Task(
        dsn=dsn,
        tenant_ids=tenant_ids(dsn),
        in_flight=[_IN_FLIGHT],
        duration_s=_MEASURE_S,
        settings=chosen,
    )
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        ((begun,),) = cursor.fetchall()
        command = [sys.executable, "-m", "bench.baselines.commit_only"]
        plan = msgspec.json.encode(task) + b"\n"
        ended = subprocess.run(command, cwd=ROOT, input=plan, stdout=subprocess.PIPE, check=False)
        if ended.returncode:
            raise BenchError("the group commit ended before it was measured: its last words are above")
        cursor.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8,"
            " (SELECT sum(seq) FROM tenant_counters)::float8, (SELECT count(*) FROM records)::float8,"
            " pg_total_relation_size('records')::float8, (SELECT sum(pg_total_relation_size(relid))"
            " FROM pg_partition_tree('sync_idempotency_record'))::float8",
            (begun,),
        )
        ((wal, syncs, records, records_size, keys_size),) = cursor.fetchall()
    return Stored(record_bytes=records_size / records, key_bytes=keys_size / syncs, wal_bytes=wal / syncs)


@click.command()
@click.option("--data-dir", metavar="DIR", help="Where the database is kept while it is measured.")
def main(data_dir: str | None) -> None:
    """Measure, and print the table."""
    chosen = read_settings(None, data_dir)
    with fresh(chosen) as environment:
        stored = measured(environment, chosen)
    for line in printed(Use(), wire(), stored):
        click.echo(line)


if __name__ == "__main__":
    main()
