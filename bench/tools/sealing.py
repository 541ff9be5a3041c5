"""What sealing costs a device that reads or is alone: ``python -m bench.tools.sealing``.

Two servers hold the same records, one plain and one sealed, each behind row-level security as installed. By
turns a new device pulls them all from the beginning, and one device syncs by itself, one item at a time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Final

import click
import msgspec

from bench.harness import sealed
from bench.harness.environment import fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.progress import progress
from bench.harness.stage import Options, product_stage
from bench.load.simple_device import SimpleDevice
from bench.load.websocket_client import Socket, connect
from bench.load.workload import DOMAIN, data_of
from bench.report.own_metrics import longest_delay_ms
from bench.report.statistics import CONFIDENCE, latency_of, ratio_of
from bench.report.text import table

_ITEMS: Final = 100
_PAGE_ROWS: Final = 500
_LONE_SYNCS: Final = 500
_WARM_SYNCS: Final = 100


class _Page(msgspec.Struct):
    """A page of changes. Its rows are counted, not read: that would cost more than to send them."""

    type: str
    changes: list[msgspec.Raw] = []
    cursor: str = ""
    more: bool = False


class _Side(msgspec.Struct):
    """The measures of one of the servers, by round."""

    rows_per_s: list[float] = []
    lone_us: list[list[int]] = []
    delay_ms: list[float] = []


async def _fill(target: Target, records: int) -> None:
    device = SimpleDevice(answer_s=60)
    tenant = target.tenants[0]
    await device.open(target.host, target.port, target.token(tenant, "filler"))
    for first in range(0, records, _ITEMS):
        made = [_item(number) for number in range(first, min(records, first + _ITEMS))]
        await device.sync(secrets.token_hex(16), *made)
    device.close()


def _item(number: int) -> dict[str, object]:
    return {
        "domain": DOMAIN,
        "id": f"{secrets.token_hex(4)}-{number}",
        "op": "put",
        "base": None,
        "at": "2026-03-01T08:00:00Z",
        "data": msgspec.Raw(data_of(number, 0)),
    }


async def _pull_all(target: Target, records: int) -> float:
    """Pull from the beginning as a new device; return rows a second. Raises ValueError if some miss."""
    pages: asyncio.Queue[_Page] = asyncio.Queue()
    decode = msgspec.json.Decoder(_Page).decode

    def lost(code: int) -> None:
        pages.put_nowait(_Page(f"closed with {code}"))

    def ask(socket: Socket, cursor: str | None) -> None:
        asked = {"type": "pull", "id": "1", "cursor": cursor, "limit": _PAGE_ROWS}
        socket.send(msgspec.json.encode(asked))

    token = target.token(target.tenants[0], secrets.token_hex(8))
    socket = await connect(target.host, target.port, token, lambda text: pages.put_nowait(decode(text)), lost)
    await pages.get()  # the welcome
    rows, page, began_s = 0, _Page("changes", more=True), perf_counter()
    while page.more:
        ask(socket, page.cursor or None)
        page = await pages.get()
        rows += len(page.changes)
    took_s = perf_counter() - began_s
    socket.close()
    if page.type != "changes" or rows < records:
        raise ValueError(f"{rows} of {records} rows, then {page.type}")
    return rows / took_s


async def _alone(target: Target) -> list[int]:
    """Sync one item at a time as the only device. Returns the latencies in µs."""
    device, took_us = SimpleDevice(), []
    await device.open(target.host, target.port, target.token(target.tenants[1], "alone"))
    for number in range(_WARM_SYNCS + _LONE_SYNCS):
        began_s = perf_counter()
        await device.sync(secrets.token_hex(16), _item(number))
        took_us.append(round(1e6 * (perf_counter() - began_s)))
    device.close()
    return took_us[_WARM_SYNCS:]


async def _round(target: Target, side: _Side, records: int) -> None:
    await longest_delay_ms(target)
    side.rows_per_s.append(await _pull_all(target, records))
    side.delay_ms.append(await longest_delay_ms(target))
    side.lone_us.append(await _alone(target))


async def _measure(records: int, rounds: int, options: Options) -> tuple[_Side, _Side]:
    plain, hidden = _Side(), _Side()
    with fresh(options.settings) as environment:
        async with product_stage(environment, options, "plain", {}) as before:
            await _fill(before, records)
            sealed.seal_from_now()
            async with product_stage(environment, options, "sealed", {}) as now:
                await _fill(now, records)
                for number in range(rounds):
                    progress(f"round {number + 1} of {rounds}")
                    turn = [(before, plain), (now, hidden)]
                    for target, side in turn if number % 2 else turn[::-1]:
                        await _round(target, side, records)
    return plain, hidden


def _row(name: str, side: _Side) -> list[str]:
    latency = latency_of([one for some in side.lone_us for one in some])
    figures = f"{median(side.rows_per_s):,.0f}", f"{median(side.delay_ms):.1f}", f"{max(side.delay_ms):.1f}"
    return [name, *figures, f"{latency.p50_ms:.2f}", f"{latency.p95_ms:.2f}"]


def _told(name: str, before: Sequence[float], now: Sequence[float]) -> str:
    ratio = ratio_of(before, now, rate=False, paired=True)  # of rates themselves, too, as the bar is
    interval = f"{CONFIDENCE:.0%} of resamples from {ratio.low:.3f} to {ratio.high:.3f}"
    return f"{name}, sealed over plain: {ratio.value:.3f}, {interval}"


@click.command()
@click.option("--records", default=50_000, show_default=True, help="Records of about 200 bytes.")
@click.option("--rounds", default=7, show_default=True, help="Rounds, each with both servers by turns.")
def main(records: int, rounds: int) -> None:
    """Print rows a second of a first pull and the latency of a lone sync, plain and sealed.

    Example: python -m bench.tools.sealing --records 100000 --rounds 9
    """
    options = Options(
        settings=read_settings(None, None),
        config=None,
        connections=1,
        rate_per_s=1,
        duration_s=None,
        tenants=2,
        rounds=rounds,
        saturate=False,
        fill_records=0,
        url=None,
    )
    plain, hidden = asyncio.run(_measure(records, rounds, options))
    head = ["", "rows/s", "longest delay of the loop, median ms", "at most ms", "lone p50 ms", "p95 ms"]
    click.echo("\n".join(table([head, _row("plain", plain), _row("sealed", hidden)])))
    click.echo(_told("first pull, rows/s", plain.rows_per_s, hidden.rows_per_s))
    lone = [[float(median(one)) for one in side.lone_us] for side in (plain, hidden)]
    click.echo(_told("lone sync, p50", *lone))


if __name__ == "__main__":
    main()
