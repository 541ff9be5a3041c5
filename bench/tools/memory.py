"""What devices cost in memory and to write behind: ``python -m bench.tools.memory``.

Fills this fresh process with devices as handshakes and syncs leave them, all of them changed, and then
stores 1,000 and 10,000 changed ones in an embedded PostgreSQL, twice each: new rows, then the same again.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Final

import click
import psutil

from bench.harness.environment import fresh, read_settings
from engine.cache.device_health import Counts, DeviceKey, Health
from engine.cache.devices import DeviceCache, DeviceLimits
from engine.cache.ports import Revoked
from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected
from storage.postgres.pool import Database
from storage.stores.devices import PostgresDevices

DEVICES: Final = 100_000
FLUSHED: Final = (1_000, 10_000)
BAR_BYTES: Final = 1_000
_TENANTS: Final = 100
_MESSAGES_PER_MINUTE: Final = 6000


class _Clock:
    now_us = staticmethod(lambda: time.time_ns() // 1000)
    monotonic_s = staticmethod(time.monotonic)


class _Nowhere:
    """``engine.cache.ports.DeviceStore`` that knows every device, as a database would tell it."""

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        return [_health(key) for key in keys]

    async def latest(self, limit: int) -> list[Health]:
        raise NotImplementedError

    async def add(self, changes: list[Health]) -> None:
        raise NotImplementedError

    async def stored(self, receipt: str) -> bool | None:
        raise NotImplementedError

    async def revoked(self) -> Revoked:
        raise NotImplementedError


@click.command()
@click.option("--data-dir", metavar="DIR", help="Where the embedded PostgreSQL is kept while this runs.")
def main(data_dir: str | None) -> None:
    """Print bytes a device and seconds a flush; exit with 1 when a device is over the bar."""
    each_bytes = asyncio.run(_bytes_each())
    click.echo(f"{DEVICES} devices: {each_bytes:.0f} bytes each, at most {BAR_BYTES}")
    with fresh(read_settings(None, data_dir)) as environment:
        dsn = environment.database("hot_state")
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO tenants (name) SELECT 't' || generate_series(1, {_TENANTS})")
        asyncio.run(_flushes(dsn))
    raise SystemExit(each_bytes > BAR_BYTES)


async def _bytes_each() -> float:
    devices = _devices(_Nowhere())
    gc.collect()
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    _fill(devices, DEVICES)
    await devices.sweep()
    _sync(devices, DEVICES)
    gc.collect()
    return (process.memory_info().rss - before_bytes) / DEVICES


async def _flushes(dsn: str) -> None:
    database = Database(dsn, 1)
    try:
        for count in FLUSHED:
            for what in ("new", "known"):
                devices = _devices(PostgresDevices(database))
                _sync(devices, count, conflicts=1)
                begun_s = time.perf_counter()
                await _flush(devices)
                took_s = time.perf_counter() - begun_s
                each_us = took_s / count * 1e6
                click.echo(f"{count:6d} {what:5s} devices: {took_s * 1000:7.1f} ms, {each_us:5.1f} us each")
    finally:
        await database.close()


async def _flush(devices: DeviceCache) -> None:
    try:
        await devices.flush()
    except StoreError as error:
        raise SystemExit(f"the flush failed: {error}") from None


def _devices(store: _Nowhere | PostgresDevices) -> DeviceCache:
    return DeviceCache(store, _Clock(), lambda _: True, DeviceLimits(DEVICES, 300, 5), _MESSAGES_PER_MINUTE)


def _fill(devices: DeviceCache, count: int) -> None:
    now_s = time.monotonic()
    for number in range(count):
        devices.get(*_key(number), now_s).bucket.take(_MESSAGES_PER_MINUTE, now_s)


def _sync(devices: DeviceCache, count: int, conflicts: int = 0) -> None:
    now_us, now_s = _Clock.now_us(), time.monotonic()
    for number in range(count):
        device = devices.get(*_key(number), now_s)
        device.synced(now_us + number, 12_345 + number, conflicts)


def _key(number: int) -> DeviceKey:
    return DeviceKey(1 + number % _TENANTS, f"device-{number:08d}")


def _health(key: DeviceKey) -> Health:
    number = int(key.device_id[-8:])
    return Health(
        key,
        Counts(1_000 + number, number, 12_345_000 + number, number),
        1_767_323_045_000_000 + number,
        f"{4 + number % 2}g",
        f"2.1.{number % 10}",
        f"Android {number % 10}",
    )


if __name__ == "__main__":
    main()
