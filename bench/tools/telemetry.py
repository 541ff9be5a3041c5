"""What a weekend of telemetry does to a server of two workers: ``python -m bench.tools.telemetry``.

Devices that were offline send 48 to 60 hours each, all at once, four messages under way on each connection.
The syncs of other devices that were due while telemetry was stored are compared with those before and after.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import click

from bench.harness.environment import Environment, fresh, read_settings
from bench.harness.load_run import Target, planned, run_tasks
from bench.harness.product import product
from bench.harness.stage import add_tenants
from bench.load.simple_device import SimpleDevice
from bench.report.own_metrics import longest_delay_ms
from bench.report.summary import latencies_beside
from bench.report.text import table
from storage.postgres.blocking import connected

TENANTS: Final = [f"bench-{number}" for number in range(8)]
CONNECTIONS: Final = 100
WARMUP_S: Final = 3.0
_CALM_S: Final = 20.0


def _hours(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Make a device's messages: twelve counters and three histograms of ten to twenty buckets an hour."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for back in range(1, draw.randint(48, 60) + 1):
        buckets = [sorted(draw.sample(range(200, 420), draw.randint(10, 20))) for _ in range(3)]
        yield {
            "key": secrets.token_hex(16),
            "hour": (now - timedelta(hours=back)).isoformat(),
            "counters": {f"action_{number}": draw.randrange(500) for number in range(12)},
            "histograms": {f"screen_{n}": [[one, 1] for one in some] for n, some in enumerate(buckets)},
        }


async def _send(device: SimpleDevice, hours: Iterator[dict[str, Any]], answers: Counter[str]) -> None:
    """Send messages, each again while the server asks to come back."""
    for message in hours:
        while wait_ms := (answer := await device.ask("telemetry", **message)).get("retry_after_ms"):
            answers[answer["code"]] += 1
            await asyncio.sleep(wait_ms / 1000)
        answers[answer.get("code", "stored")] += 1


async def _measure(count: int, per_s: float, duration_s: float, environment: Environment) -> None:
    dsn, secret = environment.database("telemetry"), secrets.token_urlsafe(48)
    add_tenants(dsn, TENANTS)
    answers, devices = Counter[str](), [SimpleDevice(answer_s=60) for _ in range(count)]
    hours = [iter(list(_hours(random.Random(number)))) for number in range(count)]
    async with product(environment, dsn, secret, None, 2) as server:
        target = Target(port=server.port, secret=secret, tenants=TENANTS, ports=server.own_ports)
        plan = planned(target, count, []).plan
        for device, port, token in zip(devices, plan.ports, plan.tokens, strict=True):
            await device.open(target.host, port, token)
        load = run_tasks("syncs", target, "open", CONNECTIONS, duration_s, per_s=per_s, warmup_s=WARMUP_S)
        syncing = asyncio.create_task(load)
        await asyncio.sleep(2 * WARMUP_S)
        await longest_delay_ms(target)
        await asyncio.sleep(_CALM_S)
        delays_ms, began_s = [await longest_delay_ms(target)], perf_counter()
        await asyncio.gather(
            *(_send(*one, answers) for one in zip(devices, hours, strict=True) for _ in "1234")
        )
        ended_s = perf_counter()
        delays_ms.append(await longest_delay_ms(target))
        latency = latencies_beside(await syncing, began_s, ended_s, warmup_s=WARMUP_S)
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), pg_total_relation_size('device_telemetry') FROM device_telemetry")
        ((rows, size_bytes),) = cursor.fetchall()
    click.echo(f"{rows:,} rows of {count} devices, {size_bytes / rows:,.0f} bytes each: {dict(answers)}")
    click.echo(f"stored in {ended_s - began_s:.1f} s")
    lines = [
        [name, *(f"{figure:.2f}" for figure in (one.p50_ms, one.p95_ms, one.max_ms, delay_ms))]
        for name, one, delay_ms in zip(("calm", "beside"), latency, delays_ms, strict=True)
    ]
    click.echo(
        "\n".join(table([["syncs", "p50 ms", "p95 ms", "max ms", "longest delay of a loop ms"], *lines]))
    )


@click.command()
@click.option("--devices", default=1000, show_default=True, help="Devices that come back.")
@click.option("--rate", default=300.0, show_default=True, help="Syncs a second of other devices.")
@click.option("--duration", default=120.0, show_default=True, help="Seconds of syncs.")
def main(devices: int, rate: float, duration: float) -> None:
    """Print latencies of syncs and the longest delay of a loop, calm and beside telemetry."""
    with fresh(read_settings(None, None)) as environment:
        asyncio.run(_measure(devices, rate, duration, environment))


if __name__ == "__main__":
    main()
