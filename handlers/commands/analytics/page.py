"""``run.py analytics --html``: the figures of a tenant as one page, those of the table, drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from html import escape
from operator import attrgetter
from typing import Any, Final, NamedTuple

from engine.model.commit_counts import STATUSES, UNITS_US, Unit
from engine.operate.figures.analytics import Analytics, Figures
from engine.operate.figures.voice import VoiceAnalytics
from engine.wire.timestamps import to_text, to_us
from handlers.commands.analytics.charts import Form, bars, lines
from handlers.commands.terminal.units import duration, period, size
from handlers.operate.printing import plain

_CSS: Final = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:1320px;
margin:2em auto;padding:0 1.5em}
h1{margin:0}h2{margin:2em 0 .5em}p{margin:.3em 0;color:#555}
.tiles{display:flex;flex-wrap:wrap;gap:.7em;margin:1.5em 0}
.tiles div{border:1px solid #ddd;border-radius:6px;padding:.6em 1em;min-width:7em;color:#555}
.tiles b{display:block;font-size:1.5em;color:#222;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30em),1fr));gap:1.2em}
figure{margin:0;border:1px solid #ddd;border-radius:6px;padding:.8em}figcaption{font-weight:600}
svg{width:100%;height:auto;display:block}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;border-bottom:1px solid #e5e5e5;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.summed tr:last-child td{font-weight:600}
"""
#: The page may load nothing and run nothing, whatever names in it contain.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"

#: Rows of voice verifications by device that the page has; ``--csv`` has all.
_DEVICE_ROWS: Final = 1000

#: A value of a period; None is one without data.
_Get = Callable[[Any], float | None]


class _Chart(NamedTuple):
    """A chart: how it is drawn, how its values are written, and its series by name."""

    draw: Callable[..., str]
    title: str
    form: Form
    series: Mapping[str, _Get]


class _Column(NamedTuple):
    """A column of a table."""

    heading: str
    form: Form
    get: _Get


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:.1%}"


def _score(value: float) -> str:
    return f"{value:.3f}"


def _saved(one: Figures) -> int:
    return one.bytes_saved_patch + one.bytes_saved_compression


def _of_status(status: str, one: Figures) -> int:
    return sum(counts[status] for counts in one.domains.values())


_SYNC_CHARTS: Final = (
    _Chart(
        bars,
        "Syncs",
        _number,
        {
            "succeeded": attrgetter("succeeded"),
            "answered again": attrgetter("replayed"),
            "failed": attrgetter("failed"),
            "refused": attrgetter("refused"),
        },
    ),
    _Chart(
        lines,
        "Duration of a sync",
        duration,
        {name: attrgetter(f"{name}_duration_ms") for name in ("p50", "p95", "p99")},
    ),
    _Chart(bars, "Items by status", _number, {one: partial(_of_status, one) for one in STATUSES}),
    _Chart(
        bars,
        "Conflicts",
        _number,
        {
            "settled by policy": attrgetter("conflicts_auto"),
            "left to a person": attrgetter("conflicts_manual"),
        },
    ),
    _Chart(
        bars,
        "Bytes",
        size,
        {
            "sent by devices": attrgetter("bytes_synced"),
            "saved by patches": attrgetter("bytes_saved_patch"),
            "saved by compression": attrgetter("bytes_saved_compression"),
        },
    ),
    _Chart(
        lines,
        "Devices and users that synced",
        _number,
        {"devices": attrgetter("unique_devices"), "users": attrgetter("unique_users")},
    ),
)
_SYNC_COLUMNS: Final = (
    _Column("syncs", _number, attrgetter("sync_requests")),
    _Column("failed", _number, attrgetter("failed")),
    _Column("refused", _number, attrgetter("refused")),
    _Column("mean", duration, attrgetter("avg_duration_ms")),
    _Column("p50", duration, attrgetter("p50_duration_ms")),
    _Column("p95", duration, attrgetter("p95_duration_ms")),
    _Column("p99", duration, attrgetter("p99_duration_ms")),
    _Column("items", _number, attrgetter("items")),
    _Column("conflicts", _number, attrgetter("conflicts_total")),
    _Column("held", _number, attrgetter("conflicts_manual")),
    _Column("sent", size, attrgetter("bytes_synced")),
    _Column("saved", size, _saved),
    _Column("devices", _number, attrgetter("unique_devices")),
    _Column("users", _number, attrgetter("unique_users")),
)
_SYNC_TILES: Final = ("syncs", "failed", "refused", "p95", "items", "conflicts", "sent", "saved")

_VOICE_CHARTS: Final = (
    _Chart(
        bars,
        "Voice verifications",
        _number,
        {"verified": attrgetter("verified"), "not verified": lambda one: one.verifications - one.verified},
    ),
    _Chart(lines, "Verified", _rate, {"verified": attrgetter("verified_rate")}),
    _Chart(
        lines,
        "Confidence and quality, as devices told them",
        _score,
        {"confidence": attrgetter("confidence_score"), "quality": attrgetter("quality_score")},
    ),
    _Chart(
        lines,
        "Processing time",
        duration,
        {"mean": attrgetter("avg_processing_ms"), "p95": attrgetter("p95_processing_ms")},
    ),
)
_VOICE_COLUMNS: Final = (
    _Column("verifications", _number, attrgetter("verifications")),
    _Column("verified", _rate, attrgetter("verified_rate")),
    _Column("confidence", _score, attrgetter("confidence_score")),
    _Column("quality", _score, attrgetter("quality_score")),
    _Column("mean", duration, attrgetter("avg_processing_ms")),
    _Column("p95", duration, attrgetter("p95_processing_ms")),
)


def sync_page(found: Analytics, written: str) -> str:
    """Write the page of a tenant's syncs. ``written`` is the time of that, as text."""
    total = found.total
    notes = [_span(found)]
    if total.without_duration:
        notes.append(
            f"{total.without_duration:,} syncs have no duration: of killed processes or of commands."
        )
    of_domains = [(name, [counts[status] for status in STATUSES]) for name, counts in total.domains.items()]
    of_domains.append(("all", [_of_status(status, total) for status in STATUSES]))
    parts = (
        _tiles(total, [column for column in _SYNC_COLUMNS if column.heading in _SYNC_TILES]),
        _charts(found, found.periods, _SYNC_CHARTS),
        "<h2>Figures</h2>",
        _table(
            (found.by, *(column.heading for column in _SYNC_COLUMNS)),
            ((period(one.start, found.by), *_cells(one, _SYNC_COLUMNS)) for one in (*found.periods, total)),
        ),
        "<h2>Items by domain</h2>",
        _table(
            ("domain", *STATUSES, "all"),
            ((name, *map(_number, (*counts, sum(counts)))) for name, counts in of_domains),
        ),
    )
    return _page(f"{found.tenant}: syncs", [*notes, f"Written {written}."], parts)


def voice_page(found: VoiceAnalytics, written: str) -> str:
    """Write the page of a tenant's voice verifications. ``written`` is the time of that, as text."""
    total = found.total
    if total is None:
        return _page(f"{found.tenant}: voice verifications", [_span(found), "There are none."], ())
    headings = [column.heading for column in _VOICE_COLUMNS]
    rows = found.rows[:_DEVICE_ROWS]
    left = len(found.rows) - len(rows)
    parts = (
        _tiles(total, _VOICE_COLUMNS),
        _charts(found, found.periods, _VOICE_CHARTS),
        "<h2>Figures</h2>",
        _table(
            (found.by, *headings),
            ((period(one.start, found.by), *_cells(one, _VOICE_COLUMNS)) for one in (*found.periods, total)),
        ),
        "<h2>By device</h2>",
        f"<p>{left:,} more rows are in <code>--csv</code>.</p>" if left else "",
        _table(
            ("device", found.by, *headings),
            (
                (one.device_id or "", period(one.start, found.by), *_cells(one, _VOICE_COLUMNS))
                for one in rows
            ),
            summed=False,
        ),
    )
    return _page(f"{found.tenant}: voice verifications", [_span(found), f"Written {written}."], parts)


def periods_of(since_us: int, until_us: int, by: Unit) -> Sequence[int]:
    """Return the beginning of each hour or day that a span meets, also of those without data."""
    unit_us = UNITS_US[by]
    return range(since_us // unit_us * unit_us, until_us, unit_us)


def _charts(found: Analytics | VoiceAnalytics, periods: Sequence[Any], charts: Iterable[_Chart]) -> str:
    """Draw every period of the span. One without data counts as 0 in bars, and is a gap in lines."""
    by_start = {one.start: one for one in periods}
    since_us, until_us = (to_us(datetime.fromisoformat(at)) for at in (found.since, found.until))
    starts = [to_text(start_us) for start_us in periods_of(since_us, until_us, found.by)]
    labels = [period(start, found.by) for start in starts]
    drawn = []
    for chart in charts:
        nothing = 0 if chart.draw is bars else None
        series = {
            name: [get(by_start[start]) if start in by_start else nothing for start in starts]
            for name, get in chart.series.items()
        }
        drawn.append(chart.draw(chart.title, labels, series, chart.form))
    return f'<div class="charts">{"".join(drawn)}</div>'


def _span(found: Analytics | VoiceAnalytics) -> str:
    return f"From {period(found.since, 'hour')} to {period(found.until, 'hour')} UTC, by {found.by}."


def _cells(one: object, columns: Iterable[_Column]) -> list[str]:
    values = [(column.form, column.get(one)) for column in columns]
    return ["" if value is None else form(value) for form, value in values]


def _tiles(total: object, columns: Sequence[_Column]) -> str:
    told = zip(columns, _cells(total, columns), strict=True)
    tiles = (f"<div><b>{_text(cell) or 'none'}</b>{_text(column.heading)}</div>" for column, cell in told)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]], *, summed: bool = True) -> str:
    """Write a table; the last row of a summed one is the sum of all."""
    head = "".join(f"<th>{_text(one)}</th>" for one in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    of = ' class="summed"' if summed else ""
    return f'<div class="wide"><table{of}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _page(title: str, notes: Iterable[str], parts: Iterable[str]) -> str:
    paragraphs = "".join(f"<p>{_text(note)}</p>" for note in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_CSS}</style></head>"
        f"<body><h1>{_text(title)}</h1>{paragraphs}{''.join(parts)}</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(plain(text))
