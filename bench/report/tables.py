"""Tables as text: the columns of each kind of row, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bench.report.results import Abuse, Phase, Row, Transfer
from bench.report.statistics import Latency, counts

NONE: Final = "-"
Columns = Sequence[tuple[str, Callable[[Any], str]]]
KINDS: Final = ("heartbeat", "sync", "pull")
_SINKS: Final[dict[Phase, Phase]] = {"one device": "sink of one", "ten devices": "sink of ten"}


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out columns to the left, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def lines(rows: Sequence[Any], columns: Columns) -> Iterator[str]:
    """Write rows under their headings, without the columns that say nothing of any of them."""
    cells = [[cell(row) for row in rows] for _, cell in columns]
    used = [
        [heading, *column]
        for (heading, _), column in zip(columns, cells, strict=True)
        if any(cell != NONE for cell in column)
    ]
    yield from table(list(zip(*used, strict=True)))


def number(value: float) -> str:
    """Write a figure with three digits, or without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _some(value: float | None, form: str = ".0f") -> str:
    return NONE if value is None else format(value, form)


def _ms(latency: Latency) -> str:
    return f"{latency.p50_ms:.2f}/{latency.p95_ms:.2f}/{latency.p99_ms:.2f}/{latency.max_ms:.1f}"


def _cpu(row: Row) -> str:
    parts = " + ".join(f"{spent:.4f}" for spent in row.cpu_ms.values())
    workers = f" (workers {', '.join(f'{spent:.4f}' for spent in row.worker_cpu_ms)})"
    return (parts or NONE) + (workers if row.worker_cpu_ms else "")


ROWS: Final[Columns] = (
    ("run", lambda row: row.name),
    ("connected", lambda row: f"{row.connected}/{row.asked} in {row.connect_s:.1f} s"),
    ("wanted/s", lambda row: f"{row.wanted_per_s:,.0f}" if row.loop == "open" else NONE),
    ("offered/s", lambda row: f"{row.offered_per_s:,.0f}{'' if row.offered else ' (not measured)'}"),
    ("stored/s", lambda row: f"{row.stored_per_s:,.0f}"),
    ("p50/p95/p99/max ms", lambda row: _ms(row.latency) if row.latency.max_ms else NONE),
    ("refused/s", lambda row: f"{row.refused_per_s:,.0f}" if row.refused else NONE),
    ("p50/p99 ms", lambda row: _p50_p99(row.refusal) if row.refusal.max_ms else NONE),
    ("by code", lambda row: counts(row.refused) if row.refused else NONE),
    ("waiting", lambda row: f"{row.waiting:,}"),
    ("late p50/p99 ms", lambda row: f"{row.late_p50_ms:.2f}/{row.late_p99_ms:.2f}"),
    ("lag p99 ms", lambda row: f"{row.lag_p99_ms:.1f}"),
    ("errors", lambda row: str(row.lost)),
    ("CPU ms/sync gen+server+postgres", _cpu),
    ("CPUs", lambda row: " + ".join(f"{busy:.2f}" for busy in row.cpus.values()) or NONE),
    ("other CPUs", lambda row: _some(row.other_cpus, ".2f")),
    ("RSS MiB", lambda row: _some(row.rss_peak_mib)),
    ("audit", lambda row: NONE if row.audit is None else audited(row)),
)

TRANSFERS: Final[Columns] = (
    ("uploads", lambda one: one.name),
    ("whole", lambda one: f"{one.whole:,}/{one.begun:,}"),
    ("in s", lambda one: f"{one.elapsed_s:.1f}"),
    ("MB/s", lambda one: f"{one.mb_per_s:.1f}"),
    ("chunk p50/p95/p99 ms", lambda one: "/".join(f"{ms:.0f}" for ms in _three(one))),
    ("retries", lambda one: str(sum(one.retries.values()))),
    ("downloads MB/s", lambda one: f"{one.download_mb_per_s:.0f}"),
    ("CPUs client+server+postgres", lambda one: " + ".join(f"{busy:.2f}" for busy in one.cpus.values())),
    ("other CPUs", lambda one: _some(one.other_cpus, ".2f")),
    ("RSS MiB", lambda one: f"{one.rss_peak_mib:.0f}"),
)

ABUSES: Final[Columns] = (
    ("attack", lambda one: one.attack),
    ("phase", lambda one: one.phase + ", before" * one.before),
    ("heartbeat p50/p99 ms", lambda one: _p50_p99(one.others.heartbeat)),
    ("sync p50/p99 ms", lambda one: _p50_p99(one.others.sync)),
    ("pull p50/p99 ms", lambda one: _p50_p99(one.others.pull)),
    ("refused", lambda one: str(sum(one.others.refused.values()))),
    ("held ms", lambda one: _some(one.stretch_ms)),
    ("memory MiB", lambda one: _some(one.grown_mib, "+.1f")),
    ("worker", lambda one: _some(one.share, ".0%")),
    ("loop", lambda one: _some(one.loop, ".0%")),
    ("charged", lambda one: _some(one.charged, ".0%")),
    ("queued", lambda one: _some(one.queued, ".0%")),
    ("attackers", lambda one: f"{one.generator:.0%}"),
    ("sent KB", lambda one: f"{one.sent_bytes / 1000:,.0f}"),
    ("disk KB", lambda one: f"{one.disk_bytes / 1000:+,.0f}"),
    ("rows", lambda one: f"{one.rows:+,}"),
    ("connections", lambda one: f"{one.connections:,}"),
    ("busy after s", lambda one: f"{one.after_s:.1f}{', restarted' if one.renewed else ''}"),
    ("load", lambda one: f"{one.load:.1f}"),
)


def audited(row: Row) -> str:
    """Write the result of a row's audit."""
    assert row.audit is not None
    return f"{row.audit.items:,} items, {row.audit.fault_count} faults"


def _three(one: Transfer) -> tuple[float, float, float]:
    return one.chunk.p50_ms, one.chunk.p95_ms, one.chunk.p99_ms


def _p50_p99(latency: Latency) -> str:
    return f"{latency.p50_ms:.1f}/{latency.p99_ms:.1f}"


def felt(abuse: Abuse, kind: str) -> Latency:
    """Return the latencies of others' messages of a kind."""
    latency: Latency = getattr(abuse.others, kind)
    return latency


def brief(abuse: Abuse) -> str:
    """Write in a line what others felt in a phase."""
    felt_ms = ", ".join(f"{kind} {_p50_p99(felt(abuse, kind))}" for kind in KINDS)
    refused = sum(abuse.others.refused.values())
    told = f"refused {refused}, held {_some(abuse.stretch_ms)} ms, queued {_some(abuse.queued, '.0%')}"
    return f"{abuse.phase}: {felt_ms} ms, {told}, load {abuse.load:.1f}"


def compared(abuses: Sequence[Abuse]) -> Iterator[str]:
    """Write this version beside the one before, a line for each attack and number of devices."""
    found = {(abuse.attack, abuse.phase, abuse.before): abuse for abuse in abuses}
    pairs = [
        (before, found[attack, phase, False], found.get((attack, _SINKS[phase], False)))
        for (attack, phase, was_before), before in found.items()
        if was_before and phase in _SINKS and (attack, phase, False) in found
    ]

    def both(kind: str) -> Callable[[tuple[Abuse, Abuse, Abuse | None]], str]:
        def cell(pair: tuple[Abuse, Abuse, Abuse | None]) -> str:
            before, after = (_p50_p99(felt(one, kind)) for one in pair[:2])
            return f"{before}, {after} ({NONE if pair[2] is None else _p50_p99(felt(pair[2], kind))})"

        return cell

    columns: Columns = (
        ("attack", lambda pair: pair[0].attack),
        ("devices", lambda pair: pair[0].phase.partition(" ")[0]),
        *((f"{kind} p50/p99 ms before, after (sink)", both(kind)) for kind in KINDS),
        ("held ms", lambda pair: ", ".join(map(_held, pair[:2]))),
        ("memory MiB", lambda pair: ", ".join(_some(one.grown_mib) for one in pair[:2])),
        ("disk KB", lambda pair: ", ".join(f"{one.disk_bytes / 1000:,.0f}" for one in pair[:2])),
        ("rows", lambda pair: ", ".join(f"{one.rows:,}" for one in pair[:2])),
    )
    if pairs:
        yield ""
        yield from lines(pairs, columns)


def _held(abuse: Abuse) -> str:
    """Write the longest stretch of the loop, or the slowest heartbeat where a version does not measure it."""
    return f"~{abuse.others.heartbeat.max_ms:.0f}" if abuse.stretch_ms is None else _some(abuse.stretch_ms)
