"""``run.py analytics``: the figures of a tenant by hour or day."""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from engine.model.commit_counts import UNITS_US, Unit
from engine.operate.figures.analytics import Analytics, Figures
from engine.operate.figures.analytics import analytics as read_analytics
from engine.operate.figures.telemetry import TelemetryAnalytics, TelemetryFigures, telemetry_analytics
from engine.operate.figures.voice import VoiceAnalytics, VoiceFigures, voice_analytics
from engine.wire.timestamps import to_us
from handlers.commands.deployment import Deployment, DeploymentError, as_json, opened, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from handlers.commands.terminal.times import Instant, Since
from handlers.commands.terminal.units import duration, period, size
from handlers.operate.printing import say

#: Without --from, so many periods up to now are shown.
_PERIODS: Final[dict[Unit, int]] = {"hour": 24, "day": 30}
#: The most periods of a page: 31 days of hours. More would be narrower than a pixel.
MOST_DRAWN: Final = 744
_OR_DAYS: Final[dict[Unit, str]] = {"hour": ", or --by day", "day": ""}
_HEADING: Final = (
    "SYNCS",
    "FAILED",
    "REFUSED",
    "AVG",
    "P95",
    "ITEMS",
    "CONFLICTS",
    "HELD",
    "SENT",
    "SAVED",
    "DEVICES",
)
#: Columns that a narrow terminal leaves out, the first one first.
_SPARE: Final = ("SAVED", "HELD", "DEVICES", "REFUSED", "AVG", "SENT", "CONFLICTS", "FAILED")
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
@click.option(
    "--by", type=click.Choice(["hour", "day"]), help="[default: hour; day with --voice or --devices]"
)
@click.option("--voice", "kind", flag_value="voice", help="Show voice verifications by device instead.")
@click.option(
    "--devices", "kind", flag_value="devices", help="Show what the devices counted themselves instead."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV: one line for each hour or day.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with charts, which loads nothing from elsewhere.",
)
@with_deployment()
async def analytics(
    deployment: Deployment,
    *,
    tenant: str,
    since: datetime | None,
    until: datetime | None,
    by: Unit | None,
    kind: Literal["voice", "devices"] | None,
    json_: bool,
    csv_: bool,
    html_file: Path | None,
) -> None:
    """Show what a tenant's devices synced, hour by hour or day by day, in UTC.

    Syncs, items, conflicts and bytes are counted where they are committed, and are exact. Durations, failures
    and refusals are counted by the server's processes: one that is killed loses ten seconds of them. The
    present hour is shown as it is so far. Without --from it shows 24 hours or 30 days.

    --voice shows how voice verifications went, by device and the time when they happened. They are logged
    within an hour or two of their sync.

    --devices shows the counters and durations that the devices counted themselves, offline too, by the hours
    of their own clocks: counters are summed, percentiles come from all their values together.
    """
    by = by or ("hour" if kind is None else "day")
    if json_ + csv_ + (html_file is not None) > 1:
        raise click.UsageError("--json, --csv and --html: choose one of them.")
    if kind == "devices" and html_file is not None:
        raise click.UsageError("--html draws syncs, and with --voice verifications: leave --devices out.")
    until_us = time.time_ns() // 1000 if until is None else to_us(until)
    since_us = until_us - (_PERIODS[by] - 1) * UNITS_US[by] if since is None else to_us(since)
    if since_us >= until_us:
        raise click.UsageError("--from has to be before --to: nothing is between them.")
    if html_file is not None and (until_us - since_us) / UNITS_US[by] > MOST_DRAWN:
        raise click.UsageError(
            f"--html draws {MOST_DRAWN} {by}s at most: choose a shorter span{_OR_DAYS[by]}."
        )
    found: Analytics | VoiceAnalytics | TelemetryAnalytics
    async with opened("reading", deployment.analytics()) as (store, log, telemetry):
        if kind == "voice":
            found = await voice_analytics(log, tenant, since_us, until_us, by)
        elif kind == "devices":
            found = await telemetry_analytics(telemetry, tenant, since_us, until_us, by)
        else:
            found = await read_analytics(store, tenant, since_us, until_us, by)
    if html_file is not None:
        assert not isinstance(found, TelemetryAnalytics)
        _write_page(html_file, found)
    elif json_:
        as_json(found)
    else:
        _write(found, csv_=csv_)


def _write(found: Analytics | VoiceAnalytics | TelemetryAnalytics, *, csv_: bool) -> None:
    match found:
        case Analytics():
            _write_csv(found.periods, Figures) if csv_ else _show(found)
        case VoiceAnalytics():
            _write_csv(found.rows, VoiceFigures) if csv_ else _show_voice(found)
        case TelemetryAnalytics():
            _write_csv(found.rows, TelemetryFigures) if csv_ else _show_telemetry(found)


def _write_page(file: Path, found: Analytics | VoiceAnalytics) -> None:
    """Write the page; to a file whole or not at all. Raises DeploymentError."""
    from handlers.commands.analytics.page import sync_page, voice_page  # noqa: PLC0415  # 0.1 s

    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with progress("drawing"):
        text = sync_page(found, written) if isinstance(found, Analytics) else voice_page(found, written)
    # A link or a device, such as /dev/stdout, stays what it is.
    in_place = file.is_symlink() or (file.exists() and not file.is_file())
    try:
        if in_place:
            file.write_text(text, "utf-8")
        else:
            _write_whole(file, text)
    except OSError as error:
        raise DeploymentError(f"{file}: {error.strerror}: name another file for --html") from None
    say(f"wrote {file}", err=in_place)


def _write_whole(file: Path, text: str) -> None:
    unfinished = file.with_name(f"{file.name}.part")
    try:
        unfinished.write_text(text, "utf-8")
        unfinished.replace(file)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _write_csv(rows: Sequence[msgspec.Struct], kind: type[msgspec.Struct]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = [name for name in kind.__struct_fields__ if name not in ("domains", "buckets")]
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (value := getattr(row, name)) is None else value for name in names])


def _show_voice(found: VoiceAnalytics) -> None:
    if found.total is None:
        say(f"{found.tenant} has no voice verifications from {found.since} to {found.until}")
        return
    table(
        [
            (
                period(one.start, found.by),
                one.device_id or "",
                str(one.verifications),
                f"{one.verified_rate:.1%}",
                _score(one.confidence_score),
                _score(one.quality_score),
                duration(one.avg_processing_ms),
                duration(one.p95_processing_ms),
            )
            for one in (*found.rows, found.total)
        ],
        (found.by.upper(), "DEVICE", "COUNT", "VERIFIED", "CONFIDENCE", "QUALITY", "AVG", "P95"),
    )


def _show_telemetry(found: TelemetryAnalytics) -> None:
    if not found.rows:
        say(f"the devices of {found.tenant} told nothing of their own from {found.since} to {found.until}")
        return
    table(
        [
            (
                period(one.start, found.by),
                one.name,
                str(one.devices),
                str(one.total),
                duration(one.p50_ms),
                duration(one.p95_ms),
                duration(one.p99_ms),
            )
            for one in (*found.rows, *found.total)
        ],
        (found.by.upper(), "NAME", "DEVICES", "COUNT", "P50", "P95", "P99"),
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _show(found: Analytics) -> None:
    """Print a row for each period, with a bar of its syncs, then all of them, then the items by domain."""
    if not found.periods:
        say(f"{found.tenant} has no syncs from {found.since} to {found.until}")
        return
    rows: list[tuple[str, ...]] = [
        (period(one.start, found.by), *_cells(one)) for one in (*found.periods, found.total)
    ]
    heading: tuple[str, ...] = (found.by.upper(), *_HEADING)
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    room = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths)
    if room >= _LEAST_BAR_CHARS:
        most = max(one.sync_requests for one in found.periods)
        bars = [_bar(one.sync_requests, most, room) for one in found.periods]
        rows = [(*row, bar) for row, bar in zip(rows, [*bars, ""], strict=True)]
        heading = (*heading, "")
    table(rows, heading, spare=_SPARE)
    if found.total.without_duration:
        say(f"without a duration: {found.total.without_duration} syncs, of killed processes or of commands")
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
        duration(one.avg_duration_ms),
        duration(one.p95_duration_ms),
        str(one.items),
        str(one.conflicts_total),
        str(one.conflicts_manual),
        size(one.bytes_synced),
        size(one.bytes_saved_patch + one.bytes_saved_compression),
        "" if one.unique_devices is None else str(one.unique_devices),
    )


def _bar(number: int, most: int, chars: int) -> str:
    """Return a bar of eighths of characters; ``most`` fills all."""
    eighths = round(number / most * chars * 8) if most else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
