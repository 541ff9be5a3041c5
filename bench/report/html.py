"""A report as one page of HTML with its charts inside: nothing is loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pygal

from bench.report.results import Abuse, Report, Row, Transfer, Window
from bench.report.text import text_of

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
    ladder = [row for row in report.rows if row.times is not None]
    rows = [row for row in report.rows if row.answered and row.times is None]
    if ladder:
        yield _rates(ladder)
        yield _latencies("Latency over load", ladder)
        yield _memory(ladder)
    elif rows:
        yield _percentiles(rows)
        yield from (_timeline(row) for row in rows if row.loop == "open")
    if report.windows:
        yield _windows(report.windows, report.over_s)
    if report.transfers:
        yield _transfers(report.transfers)
    if report.abuses:
        for kind in ("heartbeat", "sync", "pull"):
            yield _abused(kind, report.abuses)
            if any(abuse.before for abuse in report.abuses):
                yield _compared(kind, report.abuses)
    if ladder and rows:
        yield _latencies("Latency of the other runs", rows)


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


def _rates(ladder: list[Row]) -> Any:
    chart = _chart(pygal.Line, "Syncs a second over load", x_title="times capacity", y_title="1/s")
    chart.x_labels = [_label(load) for load in ladder]
    chart.add("wanted", [load.wanted_per_s for load in ladder])
    chart.add("offered", [load.offered_per_s for load in ladder])
    chart.add("stored", [load.stored_per_s for load in ladder])
    chart.add("refused", [load.refused_per_s for load in ladder])
    return chart


def _latencies(title: str, loads: list[Row]) -> Any:
    """Draw bars on a logarithmic axis: an overloaded server's are far apart."""
    chart = _chart(pygal.Bar, title, y_title="ms", logarithmic=True, x_label_rotation=30)
    chart.x_labels = [load.name if load.times is None else _label(load) for load in loads]
    chart.add("stored, p50", [load.latency.p50_ms or None for load in loads])
    chart.add("stored, p99", [load.latency.p99_ms or None for load in loads])
    chart.add("refused, p50", [load.refusal.p50_ms or None for load in loads])
    chart.add("refused, p99", [load.refusal.p99_ms or None for load in loads])
    chart.add("generator's lag, p99", [load.lag_p99_ms or None for load in loads])
    return chart


def _memory(ladder: list[Row]) -> Any:
    chart = _chart(pygal.Bar, "Server's peak of memory over load", x_title="times capacity", y_title="MiB")
    chart.x_labels = [_label(load) for load in ladder]
    chart.add("RSS", [load.rss_peak_mib for load in ladder])
    return chart


def _label(load: Row) -> str:
    return f"{load.times:g}" if load.offered else f"{load.times:g} (not measured)"


def _windows(windows: list[Window], over_s: float) -> Any:
    """Draw the run of the highest load, by when syncs were due."""
    title = f"The highest load, over at {over_s:.1f} s: what became of syncs by when they were due"
    chart = _chart(pygal.XY, title, x_title="s", y_title="in a tenth of a second", show_dots=False)
    chart.add("stored", [(window.at_s, window.stored) for window in windows])
    chart.add("refused", [(window.at_s, window.refused) for window in windows])
    chart.add("unanswered", [(window.at_s, window.unanswered) for window in windows])
    chart.add("p95 of stored, ms", [(window.at_s, window.p95_ms) for window in windows], secondary=True)
    return chart


def _transfers(transfers: list[Transfer]) -> Any:
    chart = _chart(pygal.Bar, "Uploads", y_title="MB/s", x_label_rotation=30)
    chart.x_labels = [transfer.name for transfer in transfers]
    chart.add("uploaded", [transfer.mb_per_s for transfer in transfers])
    chart.add("downloaded and compared", [transfer.download_mb_per_s for transfer in transfers])
    chart.add("server's RSS, MiB", [transfer.rss_peak_mib for transfer in transfers], secondary=True)
    return chart


def _abused(kind: str, abuses: list[Abuse]) -> Any:
    """Draw bars on a logarithmic axis: before a bound, seconds stand beside milliseconds."""
    chart = _chart(pygal.Bar, f"p99 of others' {kind}", y_title="ms", logarithmic=True, x_label_rotation=30)
    now = [abuse for abuse in abuses if not abuse.before]
    attacks = list(dict.fromkeys(abuse.attack for abuse in now))
    chart.x_labels = attacks
    for phase in dict.fromkeys(abuse.phase for abuse in now):
        by_attack = {one.attack: getattr(one.others, kind).p99_ms for one in now if one.phase == phase}
        chart.add(phase, [by_attack.get(attack) or None for attack in attacks])
    return chart


def _compared(kind: str, abuses: list[Abuse]) -> Any:
    """Draw p50 and p99 of the worse of one and ten devices, on the version before and on this one."""
    title = f"others' {kind} under attack, before and after"
    chart = _chart(pygal.Bar, title, y_title="ms", logarithmic=True, x_label_rotation=30)
    attacks = list(dict.fromkeys(abuse.attack for abuse in abuses if abuse.before))
    chart.x_labels = attacks
    for percent in ("p50", "p99"):
        for before in (True, False):
            worst_ms = dict.fromkeys(attacks, 0.0)
            for one in abuses:
                attacked = one.phase in ("one device", "ten devices")
                if one.before is before and one.attack in worst_ms and attacked:
                    took_ms = getattr(getattr(one.others, kind), f"{percent}_ms")
                    worst_ms[one.attack] = max(worst_ms[one.attack], took_ms)
            name = f"{percent}, {'before' if before else 'after'}"
            chart.add(name, [worst_ms[attack] or None for attack in attacks])
    return chart


def _chart(kind: Any, title: str, **options: str | bool | int) -> Any:
    return kind(js=[], title=title, dots_size=1, height=420, legend_at_bottom=True, **options)
