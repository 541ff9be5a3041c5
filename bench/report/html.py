"""A report as one page of HTML with its charts inside: nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from operator import attrgetter
from typing import Any, Final

import pygal

from bench.report.results import Report
from bench.report.text import KINDS, text_of

_STYLE: Final = "body{font:15px sans-serif;margin:2em;max-width:75em}pre{overflow-x:auto}svg{width:100%}"
#: A run of fewer windows has no chart over time.
_LONG_WINDOWS: Final = 20

#: Titles of bar charts, the rows of a report that they draw, and each series with where a row has it.
_BARS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    (
        "Latency in ms",
        "rows",
        {
            "stored, p50": "latency.p50_ms",
            "stored, p99": "latency.p99_ms",
            "refused, p50": "refusal.p50_ms",
            "refused, p99": "refusal.p99_ms",
            "generator's lag, p99": "lag_p99_ms",
        },
    ),
    (
        "Syncs a second, and the server's peak of memory in MiB",
        "rows",
        {
            "wanted": "wanted_per_s",
            "offered": "offered_per_s",
            "stored": "stored_per_s",
            "refused": "refused_per_s",
            "RSS": "rss_peak_mib",
        },
    ),
    (
        "Uploads in MB/s, and the server's peak of memory in MiB",
        "transfers",
        {"uploaded": "mb_per_s", "downloaded and compared": "download_mb_per_s", "RSS": "rss_peak_mib"},
    ),
)


def html_of(reports: Sequence[Report]) -> str:
    """Write the page."""
    sections = "".join(map(_section, reports))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tidemark benchmark</title>'
        f"<style>{_STYLE}</style></head><body>{sections}</body></html>\n"
    )


def _section(report: Report) -> str:
    charts = "".join(chart.render(is_unicode=True, disable_xml_declaration=True) for chart in _charts(report))
    return f"<h1>{escape(report.scenario)}</h1><pre>{escape(text_of(report))}</pre>{charts}"


def _charts(report: Report) -> Iterator[Any]:
    for title, of, paths in _BARS:
        if rows := getattr(report, of):
            series = {name: list(map(attrgetter(path), rows)) for name, path in paths.items()}
            yield _bars(title, [row.name for row in rows], series)
    for kind in KINDS if report.abuses else ():
        yield _abused(kind, report)
    for row in report.rows:
        if row.loop == "open" and len(row.windows) >= _LONG_WINDOWS:
            names = ("stored", "refused", "unanswered", "p95_ms")
            series = {name: [(one.at_s, getattr(one, name)) for one in row.windows] for name in names}
            yield _chart(pygal.XY, f"{row.name}: syncs due in each tenth of a second", series, x_title="s")


def _abused(kind: str, report: Report) -> Any:
    """Draw what others felt in each phase, on this version and on the one before."""
    attacks = list(dict.fromkeys(one.attack for one in report.abuses))
    series: dict[str, list[float]] = {}
    for one in report.abuses:
        of_phase = series.setdefault(one.phase + ", before" * one.before, [0.0] * len(attacks))
        of_phase[attacks.index(one.attack)] = getattr(one.others, kind).p99_ms
    return _bars(f"p99 of others' {kind} in ms", attacks, series)


def _bars(title: str, labels: list[str], series: Mapping[str, Sequence[float | None]]) -> Any:
    """Draw bars on a logarithmic axis, since those of an overloaded server are far apart; it has no zero."""
    drawn = {name: [value or None for value in values] for name, values in series.items()}
    chart = _chart(pygal.Bar, title, drawn, logarithmic=True, x_label_rotation=30)
    chart.x_labels = labels
    return chart


def _chart(kind: Any, title: str, series: Mapping[str, Sequence[Any]], **options: Any) -> Any:
    chart = kind(js=[], title=title, dots_size=1, height=420, legend_at_bottom=True, **options)
    for name, values in series.items():
        chart.add(name, values)
    return chart
