"""A report as text, for a terminal: the columns of each kind of row, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bench.report.results import Abuse, Report, Row
from bench.report.statistics import Latency, counts, number
from bench.report.targets import Target

NONE: Final = "-"
Columns = Sequence[tuple[str, Callable[[Any], str]]]
KINDS: Final = ("heartbeat", "sync", "pull")


def _some(value: float | None, form: str = ".0f") -> str:
    return NONE if value is None else format(value, form)


def _p50_p99(latency: Latency) -> str:
    return f"{latency.p50_ms:.1f}/{latency.p99_ms:.1f}"


def _latency(one: Latency) -> str:
    return f"{one.p50_ms:.2f}/{one.p95_ms:.2f}/{one.p99_ms:.2f}/{one.max_ms:.1f}"


def _cpu(row: Row) -> str:
    parts = " + ".join(f"{spent:.4f}" for spent in row.cpu_ms.values())
    workers = f" (workers {', '.join(f'{spent:.4f}' for spent in row.worker_cpu_ms)})"
    return (parts or NONE) + (workers if row.worker_cpu_ms else "")


def _cpus(one: Any) -> str:
    return " + ".join(f"{busy:.2f}" for busy in one.cpus.values()) or NONE


_ROWS: Final[Columns] = (
    ("run", lambda row: row.name),
    ("connected", lambda row: f"{row.connected}/{row.asked} in {row.connect_s:.1f} s"),
    ("wanted/s", lambda row: f"{row.wanted_per_s:,.0f}" if row.loop == "open" else NONE),
    ("offered/s", lambda row: f"{row.offered_per_s:,.0f}{'' if row.offered else ' (not measured)'}"),
    ("stored/s", lambda row: f"{row.stored_per_s:,.0f}"),
    ("p50/p95/p99/max ms", lambda row: _latency(row.latency) if row.latency.max_ms else NONE),
    ("refused/s", lambda row: f"{row.refused_per_s:,.0f}" if row.refused else NONE),
    ("p50/p99 ms", lambda row: _p50_p99(row.refusal) if row.refusal.max_ms else NONE),
    ("by code", lambda row: counts(row.refused) if row.refused else NONE),
    ("waiting", lambda row: f"{row.waiting:,}"),
    ("late p50/p99 ms", lambda row: f"{row.late_p50_ms:.2f}/{row.late_p99_ms:.2f}"),
    ("lag p99 ms", lambda row: f"{row.lag_p99_ms:.1f}"),
    ("errors", lambda row: str(row.lost)),
    ("CPU ms/sync gen+server+postgres", _cpu),
    ("CPUs", _cpus),
    ("other CPUs", lambda row: _some(row.other_cpus, ".2f")),
    ("RSS MiB", lambda row: _some(row.rss_peak_mib)),
    (
        "audit",
        lambda row: f"{row.audit.items:,} items, {row.audit.fault_count} faults" if row.audit else NONE,
    ),
)

_TRANSFERS: Final[Columns] = (
    ("uploads", lambda one: one.name),
    ("whole", lambda one: f"{one.whole:,}/{one.begun:,}"),
    ("in s", lambda one: f"{one.elapsed_s:.1f}"),
    ("MB/s", lambda one: f"{one.mb_per_s:.1f}"),
    (
        "chunk p50/p95/p99 ms",
        lambda one: f"{one.chunk.p50_ms:.0f}/{one.chunk.p95_ms:.0f}/{one.chunk.p99_ms:.0f}",
    ),
    ("retries", lambda one: str(sum(one.retries.values()))),
    ("downloads MB/s", lambda one: f"{one.download_mb_per_s:.0f}"),
    ("CPUs client+server+postgres", _cpus),
    ("other CPUs", lambda one: _some(one.other_cpus, ".2f")),
    ("RSS MiB", lambda one: f"{one.rss_peak_mib:.0f}"),
)

_ABUSES: Final[Columns] = (
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


def text_of(report: Report) -> str:
    """Write the whole report."""
    return "\n".join(_report(report)) + "\n"


def _report(report: Report) -> Iterator[str]:
    machine = report.machine
    yield f"{report.scenario}: {report.work}"
    yield f"{machine.cpus} CPUs, {machine.cpu}, {machine.system}, Python {machine.python}"
    yield ""
    # An attack's phases on two versions beside each other, in the order of this version's.
    phases = list(dict.fromkeys((one.attack, one.phase) for one in report.abuses))
    abuses = sorted(report.abuses, key=lambda one: phases.index((one.attack, one.phase)))
    for rows, columns in ((report.rows, _ROWS), (report.transfers, _TRANSFERS), (abuses, _ABUSES)):
        if rows:
            yield from lines(rows, columns)
    yield from filter(None, map(_counted, report.abuses))
    for row in report.rows:
        yield from _faults(row)
    for transfer in report.transfers:
        if transfer.retries:
            yield f"{transfer.name}: sent again: {counts(transfer.retries)}"
        yield from (f"{transfer.name}: {fault}" for fault in transfer.faults)
    if report.audit is not None:
        yield f"audit: {report.audit.items:,} items acknowledged, {report.audit.fault_count} faults"
        yield from (f"audit: {fault}" for fault in report.audit.faults)
    if report.logged:
        yield f"the server logged: {counts(report.logged)}"
    figures = [(one.name, f"{number(one.value)} {one.unit}", one.beside) for one in report.figures]
    bars = [
        (
            *("met" if bar.met else "MISSED", bar.name, f"{number(bar.value)} {bar.unit}"),
            *(f"{bar.bound} {bar.limit:g} {bar.unit}", bar.beside),
        )
        for bar in report.bars
    ]
    for found in (figures, bars):
        if found:
            yield ""
            yield from table(found)
    for note in report.notes:
        yield f"Note: {note}"


def text_of_targets(targets: Sequence[Target]) -> str:
    """Write the targets of the field's system, and what was measured of each."""
    rows = [
        (
            one.verdict if one.met else one.verdict.upper(),
            f"{one.scenario}: {one.name}",
            one.told,
            one.wanted,
            one.beside,
        )
        for one in targets
    ]
    met = sum(one.met for one in targets)
    return "\n".join(["", f"Targets: {met} of {len(targets)} are met", *table(rows)]) + "\n"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out columns to the left, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def lines(rows: Sequence[Any], columns: Columns) -> Iterator[str]:
    """Write rows under their headings, without the columns that say nothing of any of them."""
    cells = [[heading, *map(cell, rows)] for heading, cell in columns]
    used = [column for column in cells if {*column[1:]} != {NONE}]
    yield from table(list(zip(*used, strict=True)))


def _faults(row: Row) -> Iterator[str]:
    if row.refusals:
        yield f"{row.name}: handshakes refused: {counts(row.refusals)}"
    if row.lost and row.times is None:
        yield f"{row.name}: errors: {counts(row.errors)}, unanswered: {row.unanswered}"
    for fault in row.audit.faults if row.audit is not None else ():
        yield f"{row.name}: audit: {fault}"


def _counted(abuse: Abuse) -> str:
    found = {
        "others refused": abuse.others.refused,
        "attackers' connections": abuse.ended,
        "not prepared": abuse.unprepared,
    }
    said = [f"{name}: {counts(each)}" for name, each in found.items() if each]
    if abuse.photo_s is not None:
        said.append(f"a photo was attached after {abuse.photo_s:.2f} s")
    return "; ".join(said) and f"{abuse.attack}, {abuse.phase + ', before' * abuse.before}: {'; '.join(said)}"


def felt(abuse: Abuse, kind: str) -> Latency:
    """Return the latencies of others' messages of a kind."""
    latency: Latency = getattr(abuse.others, kind)
    return latency


def brief(abuse: Abuse) -> str:
    """Write in a line what others felt in a phase, and what it took of the worker."""
    return ", ".join(f"{heading} {cell(abuse)}" for heading, cell in _ABUSES[1:8])
