"""``run.py analytics``: the figures of a tenant by hour or day."""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import click

from engine.operate.analytics import UNITS_US, Analytics, Figures, Unit
from engine.operate.analytics import analytics as read_analytics
from engine.wire.timestamps import to_us
from handlers.commands.deployment import Deployment, as_json, table, with_deployment
from handlers.commands.times import Instant, Since
from handlers.operate.printing import say

#: Without --from, so many periods up to now are shown.
_PERIODS: Final[dict[Unit, int]] = {"hour": 24, "day": 30}
_HEADING: Final = ("SYNCS", "FAILED", "REFUSED", "AVG", "P95", "ITEMS", "CONFLICTS", "HELD", "SENT", "SAVED")
_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_LEAST_BAR_CHARS: Final = 8


@click.command(
    "analytics",
    short_help="Show a tenant's syncs, durations, items and conflicts by hour or day.",
    epilog="Example: run.py analytics --tenant acme --from 2026-01-01 --to 2026-02-01 --by day",
)
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@click.option(
    "--from", "since", type=Since(), metavar="TIME", help="The beginning, such as 2026-01-31 or 7d."
)
@click.option("--to", "until", type=Instant(), metavar="TIME", help="The end.  [default: now]")
@click.option("--by", type=click.Choice(["hour", "day"]), default="hour", show_default=True)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV: one line for each hour or day.")
@with_deployment()
async def analytics(
    deployment: Deployment,
    *,
    tenant: str,
    since: datetime | None,
    until: datetime | None,
    by: Unit,
    json_: bool,
    csv_: bool,
) -> None:
    """Show what a tenant's devices synced, hour by hour or day by day, in UTC.

    Syncs, items, conflicts and bytes are counted where they are committed, and are exact. Durations, failures
    and refusals are counted by the server's processes: one that is killed loses ten seconds of them. The
    present hour is shown as it is so far. Without --from it shows 24 hours or 30 days.
    """
    if json_ and csv_:
        raise click.UsageError("--json and --csv: choose one of them.")
    until_us = time.time_ns() // 1000 if until is None else to_us(until)
    since_us = until_us - (_PERIODS[by] - 1) * UNITS_US[by] if since is None else to_us(since)
    if since_us >= until_us:
        raise click.UsageError("--from has to be before --to: nothing is between them.")
    async with deployment.analytics() as store:
        found = await read_analytics(store, tenant, since_us, until_us, by)
    if json_:
        as_json(found)
    elif csv_:
        _write_csv(found)
    else:
        _show(found)


def _write_csv(found: Analytics) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [name for name in Figures.__struct_fields__ if name != "domains"]
    writer.writerow(names)
    for period in found.periods:
        writer.writerow(["" if (value := getattr(period, name)) is None else value for name in names])


def _show(found: Analytics) -> None:
    """Print a row for each period, with a bar of its syncs, then all of them, then the items by domain."""
    if not found.periods:
        say(f"{found.tenant} has no syncs from {found.since} to {found.until}")
        return
    chars = 16 if found.by == "hour" else 10
    rows: list[tuple[str, ...]] = [
        ((period.start or "")[:chars].replace("T", " "), *_cells(period)) for period in found.periods
    ]
    rows.append(("all", *_cells(found.total)))
    heading: tuple[str, ...] = (found.by.upper(), *_HEADING)
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    room = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths)
    if room >= _LEAST_BAR_CHARS:
        most = max(period.sync_requests for period in found.periods)
        bars = [_bar(period.sync_requests, most, room) for period in found.periods]
        rows = [(*row, bar) for row, bar in zip(rows, [*bars, ""], strict=True)]
        heading = (*heading, "")
    table(rows, heading)
    if found.total.without_duration:
        say(f"without a duration, since their process was killed: {found.total.without_duration} syncs")
    domains = found.total.domains
    if domains:
        say()
        statuses = list(next(iter(domains.values())))
        table(
            [(domain, *(str(counts[status]) for status in statuses)) for domain, counts in domains.items()],
            ("ITEMS OF", *map(str.upper, statuses)),
        )


def _cells(one: Figures) -> Sequence[str]:
    return (
        str(one.sync_requests),
        str(one.failed),
        str(one.refused),
        _duration(one.avg_duration_ms),
        _duration(one.p95_duration_ms),
        str(one.items),
        str(one.conflicts_total),
        str(one.conflicts_manual),
        _size(one.bytes_synced),
        _size(one.bytes_saved_patch),
    )


def _duration(duration_ms: float | None) -> str:
    return "" if duration_ms is None else f"{duration_ms:.1f} ms"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _bar(number: int, most: int, chars: int) -> str:
    """Return a bar of eighths of characters; ``most`` fills all."""
    eighths = round(number / most * chars * 8) if most else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
