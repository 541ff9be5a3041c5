"""A report as one page of HTML with its charts inside: nothing is loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pygal

from bench.report import Report, Row
from bench.text import text_of

_STYLE = "body{font:15px sans-serif;margin:2em;max-width:75em}pre{overflow-x:auto}svg{width:100%}"
_MARKS = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)


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
    rows = [row for row in report.rows if row.answered]
    if rows:
        yield _percentiles(rows)
    for row in rows:
        if row.loop == "open":
            yield _timeline(row)


def _percentiles(rows: list[Row]) -> Any:
    """Draw latency over percentile, the axis stretched so that each further nine takes the same room."""
    chart = _chart(pygal.XY, "Latency by percentile", y_title="ms")
    chart.x_labels = [{"value": _stretched(mark), "label": f"{mark:g} %"} for mark in _MARKS]
    for row in rows:
        chart.add(
            row.name, [(_stretched(percentile), ms) for percentile, ms in row.curve if percentile < 100]
        )
    return chart


def _stretched(percentile: float) -> float:
    return -math.log10(1 - percentile / 100)


def _timeline(row: Row) -> Any:
    chart = _chart(pygal.Line, f"{row.name}: over time", x_title="s", y_title="ms")
    chart.x_labels = [str(second) for second in range(len(row.seconds))]
    chart.x_labels_major_every = 10
    chart.show_minor_x_labels = False
    chart.add("p50", [second.p50_ms for second in row.seconds])
    chart.add("p99", [second.p99_ms for second in row.seconds])
    chart.add("answered/s", [second.answered for second in row.seconds], secondary=True)
    return chart


def _chart(kind: Any, title: str, **options: str) -> Any:
    return kind(js=[], title=title, dots_size=1, height=420, legend_at_bottom=True, **options)
