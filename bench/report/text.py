"""A report as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.results import Abuse, Report, Row
from bench.report.statistics import counts
from bench.report.tables import ABUSES, ROWS, TRANSFERS, compared, lines, number, table


def text_of(report: Report) -> str:
    """Write the whole report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    machine = report.machine
    yield f"{report.scenario}: {report.work}"
    yield f"{machine.cpus} CPUs, {machine.cpu}, {machine.system}, Python {machine.python}"
    yield ""
    for rows, columns in ((report.rows, ROWS), (report.transfers, TRANSFERS), (report.abuses, ABUSES)):
        if rows:
            yield from lines(rows, columns)
    yield from filter(None, map(_counted, report.abuses))
    yield from compared(report.abuses)
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
