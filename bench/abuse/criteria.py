"""What must hold while one client takes all that it can get, as bars of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.report.results import Abuse, Bar, Report
from bench.report.tables import KINDS, felt
from engine.runtime.loop_share import DEVICE_BURST_S, DEVICE_PART, TENANT_BURST_S, TENANT_PART

#: The longest for which any message may hold a worker's loop.
STRETCH_MS: Final = 60.0
P50_RATIO: Final = 2.0
#: By how much the p99 of others may be above theirs at rest.
P99_ABOVE_MS: Final = 80.0
GROWN_MIB: Final = 64.0
#: By how much longer another's photo may wait for its record than at rest.
PHOTO_ABOVE_S: Final = 2.0

#: What one device and ten may take of the loop in the long run, and the seconds that may come at once.
_PARTS: Final = {
    "one device": (DEVICE_PART, DEVICE_BURST_S),
    "ten devices": (TENANT_PART, TENANT_BURST_S),
}


def judge(report: Report) -> None:
    """Add the bars of each attack that was measured: its worst phase, and the worst kind of message."""
    now = [abuse for abuse in report.abuses if not abuse.before]
    for attack in dict.fromkeys(abuse.attack for abuse in now):
        phases = {abuse.phase: abuse for abuse in now if abuse.attack == attack}
        under = [phases[phase] for phase in ("one device", "ten devices") if phase in phases]
        sinks = [phases[phase] for phase in ("sink of one", "sink of ten") if phase in phases]
        if "at rest" in phases and under:
            report.bars += _bars(attack, phases["at rest"], under, sinks)
    if any(abuse.grown_mib is None for abuse in now):
        report.remarks.append("the worker is no process that can be looked at here: no memory and no CPU")


def _bars(attack: str, rest: Abuse, under: list[Abuse], sinks: list[Abuse]) -> Iterator[Bar]:
    refused = sum(sum(abuse.others.refused.values()) for abuse in under)
    ratio, above_ms = _ratio(under, rest), _above_ms(under, rest)
    beside_ratio = f"into a sink {_ratio(sinks, rest):.3g}" if sinks else ""
    beside_ms = f"into a sink {_above_ms(sinks, rest):.0f} ms" if sinks else ""
    yield Bar(f"{attack}: others' p50 over that at rest", ratio, "at most", P50_RATIO, "", beside_ratio)
    yield Bar(f"{attack}: others' p99 above that at rest", above_ms, "at most", P99_ABOVE_MS, "ms", beside_ms)
    yield Bar(f"{attack}: messages of others refused or not answered", refused, "at most", 0, "")
    yield from _of_the_worker(attack, rest, under, sinks)
    fullest = [abuse.fullest for abuse in under if abuse.fullest is not None]
    if fullest:
        yield Bar(f"{attack}: the fullest of the tenant's bounds", 100 * max(fullest), "at most", 100, "%")
    photos_s = [abuse.photo_s for abuse in under if abuse.photo_s is not None]
    if photos_s and rest.photo_s is not None:
        above_s = max(photos_s) - rest.photo_s
        yield Bar(f"{attack}: another's photo, above that at rest", above_s, "at most", PHOTO_ABOVE_S, "s")


def _of_the_worker(attack: str, rest: Abuse, under: list[Abuse], sinks: list[Abuse]) -> Iterator[Bar]:
    stretches_ms = [abuse.stretch_ms for abuse in under if abuse.stretch_ms is not None]
    if stretches_ms:
        held_ms = [abuse.stretch_ms or 0.0 for abuse in sinks]
        beside = f"into a sink {max(held_ms):.0f} ms" if held_ms else ""
        name, longest_ms = f"{attack}: the longest stretch of the loop", max(stretches_ms)
        yield Bar(name, longest_ms, "at most", STRETCH_MS, "ms", beside)
    grown_mib = [abuse.grown_mib for abuse in under if abuse.grown_mib is not None]
    if grown_mib:
        yield Bar(f"{attack}: memory above calm", max(grown_mib), "at most", GROWN_MIB, "MiB")
    for abuse in under:
        if abuse.loop is not None and rest.loop is not None:
            part, burst_s = _PARTS[abuse.phase]
            # Of the time for which the loop had a core; others' work costs as much under attack as at rest.
            had = max(1.0 - (abuse.queued or 0.0), 0.01)
            taken = max(0.0, (abuse.loop - rest.loop) / had - burst_s / abuse.window_s)
            charged = 0.0 if abuse.charged is None else abuse.charged - (rest.charged or 0.0)
            beside = f"charged {100 * charged:.0f} %, burst included"
            name = f"{attack}: the loop's time that {abuse.phase} took"
            yield Bar(name, 100 * taken, "at most", 100 * part, "%", beside)


def _ratio(abuses: list[Abuse], rest: Abuse) -> float:
    pairs = [(felt(abuse, kind), felt(rest, kind)) for abuse in abuses for kind in KINDS]
    return max(now.p50_ms / calm.p50_ms if calm.p50_ms else 0.0 for now, calm in pairs)


def _above_ms(abuses: list[Abuse], rest: Abuse) -> float:
    pairs = [(felt(abuse, kind), felt(rest, kind)) for abuse in abuses for kind in KINDS]
    return max(now.p99_ms - calm.p99_ms for now, calm in pairs)
