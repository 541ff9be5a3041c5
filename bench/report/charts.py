"""The charts of a run: each is drawn where its scenario was run, with the limit that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Final

from bench.report.drawing import Chart, Limit, bars, lines
from bench.report.own_metrics import STAGES
from bench.report.results import IDLE_KIB, PROFILED, Report, Row, named
from bench.report.statistics import merged
from bench.report.targets import WANTED
from bench.report.text import KINDS

#: Points of a line over time, at most.
_POINTS: Final = 60
#: A run of fewer windows has no line over time.
_LEAST_WINDOWS: Final = 20
_PERCENTILES: Final = (0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999)


def charts(reports: Sequence[Report]) -> Iterator[Chart]:
    """Draw what tells of a whole run."""
    found = {report.scenario: report for report in reports}
    for scenario, draw in _OF_SCENARIO:
        if scenario in found:
            yield from filter(None, [draw(found[scenario])])
    yield from filter(None, [_memory(found)])


def charts_of(report: Report) -> Iterator[Chart]:
    """Draw the details of one scenario: what others felt under each attack."""
    for kind in KINDS if report.abuses else ():
        yield _abused(kind, report)


# -- of scenarios ------------------------------------------------------------------------------


def _open(report: Report) -> list[Row]:
    return [row for row in report.rows if row.loop == "open" and row.name != PROFILED]


def _limit(scenario: str, figure: str, name: str) -> Limit:
    """Return a target's limit; ``name`` says to what it belongs."""
    wanted = next(one.limit for one in WANTED if (one.scenario, one.name) == (scenario, figure))
    return Limit(f"target: {name}", wanted)


def _over_time(report: Report) -> Chart | None:
    """Draw the p95 of a run's tenths of seconds, some of them together."""
    rows = [row for row in _open(report) if len(row.windows) >= _LEAST_WINDOWS]
    if not rows:
        return None
    row = rows[0]
    size = max(1, len(row.windows) // _POINTS)
    groups = [row.windows[first : first + size] for first in range(0, len(row.windows), size)]
    p95s_ms = [[one.p95_ms for one in group if one.p95_ms] for group in groups]
    series = {
        "p95 (median)": [median(found) if found else None for found in p95s_ms],
        "worst 0.1 s": [max(found) if found else None for found in p95s_ms],
    }
    return lines(
        "Latency over time, ms",
        f"{row.stored_per_s:,.0f} syncs/s on {row.connected:,} connections. A point has {size / 10:g} s.",
        [f"{group[0].at_s:g} s" for group in groups],
        series,
        limit=_limit("concurrent", "p95", "p95"),
    )


def _percentiles(report: Report) -> Chart | None:
    rows = {
        "at a fixed rate": _open(report),
        "product, saturated": [row for row in report.rows if row.name.startswith("product at")],
        "simplest pipeline, saturated": [row for row in report.rows if row.name.startswith("c at")],
    }
    found = {name: merged(row.histogram for row in some) for name, some in rows.items() if some}
    series = {
        name: [durations.percentile_ms(part) for part in _PERCENTILES]
        for name, durations in found.items()
        if durations.count
    }
    if not series:
        return None
    return lines(
        "Percentiles of latency, ms",
        "So many of all syncs had their answer within so many ms, from when they were due.",
        [f"{100 * part:g} %" for part in _PERCENTILES],
        series,
        limit=_limit("concurrent", "p95", "p95"),
    )


def _offered(report: Report) -> Chart | None:
    rows = [row for row in report.rows if row.times is not None]
    if not rows:
        return None
    series = {
        "stored": [row.stored_per_s for row in rows],
        "refused at once": [row.refused_per_s for row in rows],
        "offered": [row.offered_per_s for row in rows],
    }
    names = [f"{row.times:g}x" for row in rows]
    caption = "Syncs a second of 30 items, by the load as a multiple of the capacity that was found before."
    return lines("Throughput against offered load", caption, names, series)


def _stages(report: Report) -> Chart | None:
    """Draw where the time of a sync goes: of the server's own times, each within the one before."""
    times_ms = [named(report, name) for name in STAGES.values()]
    rows = _open(report) or report.rows
    if None in times_ms or not rows:
        return None
    sync_ms, batch_ms, commit_ms = (time or 0.0 for time in times_ms)
    seen_ms = merged(row.histogram for row in rows).mean_ms() or sync_ms
    series = {
        "network, sockets, generator": [max(0.0, seen_ms - sync_ms)],
        "waiting for its batch": [max(0.0, sync_ms - batch_ms)],
        "reading and deciding": [max(0.0, batch_ms - commit_ms)],
        "writes and COMMIT": [commit_ms],
    }
    caption = f"Of {seen_ms:.2f} ms on average that a device waits. The last two are of the batch of a sync."
    return bars("Where the time of a sync goes, ms", caption, ["a sync"], series, stacked=True)


def _cpu(report: Report) -> Chart | None:
    rows = [row for row in report.rows if row.cpu_ms and row.stored_per_s]
    if not rows:
        return None
    trees = ("server", "postgres", "generator")
    series = {tree: [1000 * row.cpu_ms.get(tree, 0.0) for row in rows] for tree in trees}
    return bars("CPU of a sync, µs", "", [row.name for row in rows], series, stacked=True)


def _saturated(report: Report) -> Chart | None:
    rates = {row.name: row.stored_per_s for row in report.rows if row.loop == "closed"}
    return (
        bars("Throughput, syncs/s", "Closed loops.", list(rates), {"": list(rates.values())})
        if rates
        else None
    )


def _equal(report: Report) -> Chart | None:
    p95s_ms = {row.name: row.latency.p95_ms for row in _open(report)}
    caption = "Open loops: both sides of a pair have the same load."
    return bars("p95, ms", caption, list(p95s_ms), {"": list(p95s_ms.values())}) if p95s_ms else None


def _scaling(report: Report) -> Chart | None:
    found = {
        one.name: one.value for one in report.figures if one.unit == "syncs/s" and "bound" not in one.name
    }
    if not found:
        return None
    caption = "All processes share the cores of this machine, the generator too."
    return bars("Throughput by workers, syncs/s", caption, list(found), {"syncs/s": list(found.values())})


def _uploads(report: Report) -> Chart | None:
    if not report.transfers:
        return None
    names = [one.name for one in report.transfers]
    caption = "a: plain aiohttp; b: @tus/server, which does not wait for the disk." if len(names) > 1 else ""
    series = {"MB/s": [one.mb_per_s for one in report.transfers]}
    limit = _limit("uploads", "product, every chunk with its checksum", "the product")
    return bars("Uploads, MB/s", caption, names, series, limit=limit)


def _conflicts(report: Report) -> Chart | None:
    end = ": p50 of the time to settled"
    found = {one.name.removesuffix(end): one.value for one in report.figures if one.name.endswith(end)}
    limit = _limit("conflicts", "average time to settled", "average")
    caption = "Medians, by policy and number of conflicts; manual: by hand."
    series = {"p50": list(found.values())}
    return bars("Conflicts: time to settled, ms", caption, list(found), series, limit=limit)


def _recovery(report: Report) -> Chart | None:
    found = {one.name: one.value for one in report.figures if one.unit == "s until all was acknowledged"}
    if not found:
        return None
    kinds: dict[str, list[float]] = {}
    for name, value in found.items():
        kinds.setdefault(name.partition(": ")[2], []).append(value)
    series = {"longest": [max(values) for values in kinds.values()]}
    return bars("After a fault: until all was acknowledged, s", "", list(kinds), series)


def _soak(report: Report, title: str, value: Callable[[Row], float | None]) -> Chart:
    """Draw a value over the segments."""
    names = [str(place) for place in range(1, len(report.rows) + 1)]
    return lines(title, report.work, names, {"": [value(row) for row in report.rows]}, logarithmic=False)


def _memory(found: Mapping[str, Report]) -> Chart | None:
    """Draw what idle connections hold, as two scenarios measured it."""
    values = {
        "plain": ("limits", "idle subscribed connection without compression"),
        "compressed": ("limits", "idle subscribed connection with compression"),
        "15,000, two workers": ("connections", "an idle subscribed connection once open"),
    }
    known = {
        name: named(found[scenario], figure)
        for name, (scenario, figure) in values.items()
        if scenario in found
    }
    if not any(known.values()):
        return None
    caption = "The growth of the server's memory, divided by its idle, subscribed connections."
    series, limit = {"KiB": list(known.values())}, Limit("limit", IDLE_KIB)
    return bars("Memory of a connection, KiB", caption, list(known), series, limit=limit)


_OF_SCENARIO: Final[Sequence[tuple[str, Callable[[Report], Chart | None]]]] = (
    ("concurrent", _over_time),
    ("concurrent", _percentiles),
    ("concurrent", _stages),
    ("concurrent", _cpu),
    ("limits", _saturated),
    ("peers", _saturated),
    ("peers", _equal),
    ("peers", _cpu),
    ("overload", _offered),
    ("scaling", _scaling),
    ("uploads", _uploads),
    ("conflicts", _conflicts),
    ("faults", _recovery),
    ("soak", lambda report: _soak(report, "p95 by segment, ms", lambda row: row.latency.p95_ms)),
    ("soak", lambda report: _soak(report, "Memory by segment, MiB", lambda row: row.rss_end_mib)),
)


def _abused(kind: str, report: Report) -> Chart:
    """Draw what others felt in each phase, on this version and on the one before."""
    attacks = list(dict.fromkeys(one.attack for one in report.abuses))
    series: dict[str, list[float]] = {}
    for one in report.abuses:
        of_phase = series.setdefault(one.phase + ", before" * one.before, [0.0] * len(attacks))
        of_phase[attacks.index(one.attack)] = getattr(one.others, kind).p99_ms
    return bars(f"p99 of others' {kind}, ms", "", attacks, series, logarithmic=True)
