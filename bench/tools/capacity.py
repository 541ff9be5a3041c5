"""What a number of devices needs, and what one costs: ``python -m bench.tools.capacity``.

Fills this fresh process with devices as handshakes and syncs leave them, and stores changed ones twice: new
rows, then the same again. Then it writes syncs for a few seconds to see what one takes on disk and in the
WAL, and prints a table for 10 thousand, 1 million and 10 million devices. Costs in CPU are constants here,
taken from runs of the other scenarios; what is assumed and not measured is printed as such.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import click
import msgspec
import psutil

from bench.baselines.commit_only import Measured, Task
from bench.harness.child import child
from bench.harness.environment import Environment, fresh, read_settings
from bench.harness.stage import add_tenants, tenant_ids
from bench.load.workload import data_of, message
from bench.report.text import table
from engine.cache.device_health import Counts, DeviceKey, Health
from engine.cache.device_limits import DeviceLimits
from engine.cache.devices import DeviceCache
from engine.runtime.settings import Settings
from storage.postgres.blocking import connected
from storage.postgres.pool import Database
from storage.stores.devices import PostgresDevices

DEVICES: Final = (10_000, 1_000_000, 10_000_000)
_MEASURE_S: Final = 4.0
_IN_FLIGHT: Final = 200
_TENANTS: Final = 100
#: Devices whose memory is measured, those that are stored at once, and the bytes that one may take.
_CACHED: Final = 100_000
_FLUSHED: Final = (1_000, 10_000)
_BAR_BYTES: Final = 1_000
_MESSAGES_PER_MINUTE: Final = 6000


async def _known(keys: list[DeviceKey]) -> list[Health]:
    """Know every device, as a database would."""
    return [
        Health(
            key,
            Counts(1_000 + number, number, 12_345_000 + number, number),
            1_767_323_045_000_000 + number,
            *(f"{4 + number % 2}g", f"2.1.{number % 10}", f"Android {number % 10}"),
        )
        for key in keys
        for number in [int(key.device_id[-8:])]
    ]


def _devices(store: Any) -> DeviceCache:
    clock = SimpleNamespace(now_us=lambda: time.time_ns() // 1000, monotonic_s=time.monotonic)
    return DeviceCache(
        store, clock, lambda _: True, DeviceLimits(_CACHED, 300, 5, _CACHED), _MESSAGES_PER_MINUTE
    )


def _sync(devices: DeviceCache, count: int, conflicts: int = 0) -> None:
    now_us, now_s = time.time_ns() // 1000, time.monotonic()
    for number in range(count):
        device = devices.get(1 + number % _TENANTS, f"device-{number:08d}", now_s)
        device.bucket.take(_MESSAGES_PER_MINUTE, now_s)
        device.synced(now_us + number, 12_345 + number, conflicts)


async def _bytes_each() -> float:
    """Measure what a device adds to this process, of which nothing else may have used the memory before."""
    devices = _devices(SimpleNamespace(health=_known))
    gc.collect()
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    _sync(devices, _CACHED)
    await devices.sweep()
    _sync(devices, _CACHED)
    gc.collect()
    return float(process.memory_info().rss - before_bytes) / _CACHED


async def _flushes(dsn: str) -> None:
    database = Database(dsn, 1)
    try:
        for count in _FLUSHED:
            for what in ("new", "known"):
                devices = _devices(PostgresDevices(database))
                _sync(devices, count, conflicts=1)
                begun_s = time.perf_counter()
                await devices.flush()
                took_ms = (time.perf_counter() - begun_s) * 1000
                click.echo(f"{count:6d} {what:5s} devices stored: {took_ms:7.1f} ms")
    finally:
        await database.close()


class Stored(msgspec.Struct, frozen=True):
    """What PostgreSQL holds of a record and of a kept answer, indexes included, and the WAL of a sync."""

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
    #: A sync with its answer, and a change as a follower gets it.
    sync_bytes: int = len(message(b"f9a3c1d2-17", b"f9a3c1d2", 1200, 600, 3)) + 150
    delivery_bytes: int = len(data_of(600, 1200)) + 220
    heartbeat_bytes: int = 150


def need(devices: int, use: Use, costs: Costs, stored: Stored) -> dict[str, float]:
    """Work out what ``devices``, all of them connected, need at their peak."""
    a_day = devices * use.syncs_a_day
    syncs = a_day / (use.day_h * 3600) * use.peak
    deliveries = syncs * use.receivers
    heartbeats = devices / use.heartbeat_s
    busy_ms = syncs * costs.server_ms + deliveries * costs.delivery_ms + heartbeats * costs.heartbeat_ms
    cores = busy_ms / 1000 / use.load
    processes = max(math.ceil(cores), math.ceil(devices / costs.connections))
    primaries = math.ceil(syncs / costs.primary_per_s)
    sent_bytes = (
        syncs * costs.sync_bytes + deliveries * costs.delivery_bytes + heartbeats * costs.heartbeat_bytes
    )
    records = a_day * use.new_records * use.records_kept_days
    kept_bytes = records * stored.record_bytes + a_day * use.keys_kept_days * stored.key_bytes
    return {
        "syncs a second at the peak": syncs,
        "changes handed to followers a second": deliveries,
        "heartbeats a second": heartbeats,
        "cores for servers": cores,
        "server processes": processes,
        "memory for connections, GiB": devices * costs.connection_kib / (1 << 20),
        "cores for PostgreSQL": syncs * costs.postgres_ms / 1000 / use.load,
        "primaries (cells), each with its own Redis": primaries,
        "messages out of each Redis a second, at most": syncs / primaries * math.ceil(processes / primaries),
        "network to and from devices, Mbit/s": sent_bytes * 8 / 1e6,
        "WAL, MiB/s": syncs * stored.wal_bytes / (1 << 20),
        "WAL a day, GiB": a_day * stored.wal_bytes / (1 << 30),
        "disk after a year, GiB": kept_bytes / (1 << 30),
        "all devices back after an outage, s": devices / (500 * processes),
    }


def printed(use: Use, costs: Costs, stored: Stored) -> Iterator[str]:
    """Lay the model out: what it rests on, then the table."""
    for said, rests_on in (
        ("Measured now", stored),
        ("Measured in other runs, but for the heartbeat", costs),
        ("Assumed, every device being connected, without nginx, TLS, replicas and backups", use),
    ):
        named = msgspec.structs.asdict(rests_on).items()
        yield f"{said}: {', '.join(f'{name} {value:,.5g}' for name, value in named)}"
    yield ""
    needs = [need(devices, use, costs, stored) for devices in DEVICES]
    rows = [("devices", *(f"{devices:,}" for devices in DEVICES))]
    rows += [(name, *(_number(one[name]) for one in needs)) for name in needs[0]]
    yield from table(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


async def _measured(environment: Environment, chosen: Settings) -> Stored:
    """Push for a few seconds through the group commit and see what became of it. Raises BenchError."""
    dsn = environment.database("capacity")
    add_tenants(dsn, [f"tenant-{number}" for number in range(20)])
    ids = tenant_ids(dsn)
    task = Task(dsn=dsn, tenant_ids=ids, in_flight=[_IN_FLIGHT], duration_s=_MEASURE_S, settings=chosen)
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("CHECKPOINT")
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        ((begun,),) = cursor.fetchall()
        async with child("the group commit", "bench.baselines.commit_only", task) as committing:
            await committing.read(Measured)
        cursor.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8,"
            " (SELECT sum(seq) FROM tenant_counters)::float8, (SELECT count(*) FROM records)::float8,"
            " pg_total_relation_size('records')::float8, (SELECT sum(pg_total_relation_size(relid))"
            " FROM pg_partition_tree('sync_idempotency_record'))::float8",
            (begun,),
        )
        ((wal, syncs, records, records_size, keys_size),) = cursor.fetchall()
    return Stored(records_size / records, keys_size / syncs, wal / syncs)


@click.command()
@click.option("--data-dir", metavar="DIR", help="Where the database is kept while it is measured.")
def main(data_dir: str | None) -> None:
    """Measure, and print the table; exit with 1 when a device takes more memory than the bar."""
    each_bytes = asyncio.run(_bytes_each())
    click.echo(f"{_CACHED:,} devices: {each_bytes:.0f} bytes each, at most {_BAR_BYTES:,}")
    chosen = read_settings(None, data_dir)
    with fresh(chosen) as environment:
        dsn = environment.database("devices")
        add_tenants(dsn, [f"t{number}" for number in range(_TENANTS)])
        asyncio.run(_flushes(dsn))
        stored = asyncio.run(_measured(environment, chosen))
    for line in printed(Use(), Costs(), stored):
        click.echo(line)
    raise SystemExit(each_bytes > _BAR_BYTES)


if __name__ == "__main__":
    main()
