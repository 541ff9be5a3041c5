"""A report as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.abuse_tables import lines as abuse_lines
from bench.report.results import Load, Report, Row, Transfer
from bench.report.tables import counts, table

_HEADING = (
    "run",
    "connected",
    "syncs/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "max ms",
    "late p50/p99 ms",
    "errors",
    "CPU ms/sync gen+server+postgres",
    "other CPUs",
    "RSS MiB",
    "audit",
)

_LOAD_HEADING = (
    "load",
    "wanted/s",
    "offered/s",
    "stored/s",
    "p50/p95/p99 ms",
    "refused/s",
    "p50/p99 ms",
    "by code",
    "waiting",
    "late/lag p99 ms",
    "CPUs gen+server+postgres",
    "other CPUs",
    "RSS MiB",
)

_TRANSFER_HEADING = (
    "uploads",
    "whole",
    "in s",
    "MB/s",
    "chunk p50/p95/p99 ms",
    "retries",
    "downloads MB/s",
    "CPUs client+server+postgres",
    "other CPUs",
    "RSS MiB",
)


def text_of(report: Report) -> str:
    """Write the whole report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    machine = report.machine
    yield f"{report.scenario}: {report.work}"
    yield f"{machine.cpus} CPUs, {machine.cpu}, {machine.system}, Python {machine.python}"
    yield ""
    if report.rows:
        yield from table([_HEADING, *map(_cells, report.rows)])
    if report.loads:
        yield from table([_LOAD_HEADING, *map(_load_cells, report.loads)])
    if report.transfers:
        yield from table([_TRANSFER_HEADING, *map(_transfer_cells, report.transfers)])
    if report.abuses:
        yield from abuse_lines(report.abuses)
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
    if report.figures:
        yield ""
        yield from table(
            [
                (figure.name, f"{_number(figure.value)} {figure.unit}", figure.beside)
                for figure in report.figures
            ]
        )
    if report.bars:
        yield ""
        yield from table(
            [
                (
                    "met" if bar.met else "MISSED",
                    bar.name,
                    f"{_number(bar.value)} {bar.unit}",
                    f"{bar.bound} {bar.limit:g} {bar.unit}",
                    bar.beside,
                )
                for bar in report.bars
            ]
        )
    for note in report.notes:
        yield f"Note: {note}"


def _cells(row: Row) -> tuple[str, ...]:
    latency = row.latency
    return (
        row.name,
        f"{row.connected}/{row.asked} in {row.connect_s:.1f} s",
        f"{row.syncs_per_s:,.0f}",
        f"{latency.p50_ms:.2f}",
        f"{latency.p95_ms:.2f}",
        f"{latency.p99_ms:.2f}",
        f"{latency.max_ms:.1f}",
        f"{row.late_p50_ms:.2f}/{row.late_p99_ms:.2f}",
        str(sum(row.errors.values()) + row.unanswered),
        _cpu(row),
        "-" if row.other_cpus is None else f"{row.other_cpus:.2f}",
        "-" if row.rss_peak_mib is None else f"{row.rss_peak_mib:.0f}",
        "-" if row.audit is None else f"{row.audit.items:,} items, {row.audit.fault_count} faults",
    )


def _cpu(row: Row) -> str:
    parts = [f"{spent:.4f}" for spent in row.cpu_ms.values()]
    workers = f" (workers {', '.join(f'{spent:.4f}' for spent in row.worker_cpu_ms)})"
    return (" + ".join(parts) or "-") + (workers if row.worker_cpu_ms else "")


def _load_cells(load: Load) -> tuple[str, ...]:
    stored, refusal = load.stored, load.refusal
    return (
        load.name,
        f"{load.wanted_per_s:,.0f}",
        f"{load.offered_per_s:,.0f}{'' if load.offered else ' (not measured)'}",
        f"{load.stored_per_s:,.0f}",
        f"{stored.p50_ms:.1f}/{stored.p95_ms:.1f}/{stored.p99_ms:.1f}" if stored.max_ms else "-",
        f"{load.refused_per_s:,.0f}",
        f"{refusal.p50_ms:.1f}/{refusal.p99_ms:.1f}" if refusal.max_ms else "-",
        counts(load.refused) if load.refused else "-",
        f"{load.waiting:,}",
        f"{load.late_p99_ms:.1f}/{load.lag_p99_ms:.1f}",
        " + ".join(f"{busy:.2f}" for busy in load.cpus.values()) or "-",
        "-" if load.other_cpus is None else f"{load.other_cpus:.2f}",
        "-" if load.rss_peak_mib is None else f"{load.rss_peak_mib:.0f}",
    )


def _transfer_cells(transfer: Transfer) -> tuple[str, ...]:
    chunk = transfer.chunk
    return (
        transfer.name,
        f"{transfer.whole:,}/{transfer.begun:,}",
        f"{transfer.elapsed_s:.1f}",
        f"{transfer.mb_per_s:.1f}",
        f"{chunk.p50_ms:.0f}/{chunk.p95_ms:.0f}/{chunk.p99_ms:.0f}",
        str(sum(transfer.retries.values())),
        f"{transfer.download_mb_per_s:.0f}",
        " + ".join(f"{busy:.2f}" for busy in transfer.cpus.values()),
        "-" if transfer.other_cpus is None else f"{transfer.other_cpus:.2f}",
        f"{transfer.rss_peak_mib:.0f}",
    )


def _faults(row: Row) -> Iterator[str]:
    if row.refusals:
        yield f"{row.name}: handshakes refused: {counts(row.refusals)}"
    if row.errors or row.unanswered:
        yield f"{row.name}: errors: {counts(row.errors)}, unanswered: {row.unanswered}"
    for fault in row.audit.faults if row.audit is not None else ():
        yield f"{row.name}: audit: {fault}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
