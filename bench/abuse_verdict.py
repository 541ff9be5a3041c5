"""What must hold while one client takes all that it can get, as bars of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.report import Abuse, Bar, Latency, Report

#: The longest for which any message may hold a worker's loop.
STRETCH_MS: Final = 60.0
P50_RATIO: Final = 2.0
#: By how much the p99 of others may be above theirs at rest.
P99_ABOVE_MS: Final = 80.0
GROWN_MIB: Final = 64.0

_KINDS: Final = ("heartbeat", "sync", "pull")


def judge(report: Report) -> None:
    """Add the bars of each attack that was measured: its worst phase, and the worst kind of message."""
    for attack in dict.fromkeys(abuse.attack for abuse in report.abuses):
        phases = {abuse.phase: abuse for abuse in report.abuses if abuse.attack == attack}
        under = [phases[phase] for phase in ("one device", "ten devices") if phase in phases]
        if "at rest" in phases and under:
            report.bars += _bars(attack, phases["at rest"], under)


def _bars(attack: str, rest: Abuse, under: list[Abuse]) -> Iterator[Bar]:
    pairs = [(_felt(abuse, kind), _felt(rest, kind)) for abuse in under for kind in _KINDS]
    ratio = max(now.p50_ms / calm.p50_ms if calm.p50_ms else 0.0 for now, calm in pairs)
    above_ms = max(now.p99_ms - calm.p99_ms for now, calm in pairs)
    refused = sum(sum(abuse.others.refused.values()) for abuse in under)
    yield Bar(f"{attack}: others' p50 over that at rest", ratio, "at most", P50_RATIO, "")
    yield Bar(f"{attack}: others' p99 above that at rest", above_ms, "at most", P99_ABOVE_MS, "ms")
    yield Bar(f"{attack}: messages of others refused or not answered", refused, "at most", 0, "")
    stretches_ms = [abuse.stretch_ms for abuse in under if abuse.stretch_ms is not None]
    if stretches_ms:
        longest_ms = max(stretches_ms)
        yield Bar(f"{attack}: the longest stretch of the loop", longest_ms, "at most", STRETCH_MS, "ms")
    grown_mib = [abuse.grown_mib for abuse in under if abuse.grown_mib is not None]
    if grown_mib:
        yield Bar(f"{attack}: memory above calm", max(grown_mib), "at most", GROWN_MIB, "MiB")


def _felt(abuse: Abuse, kind: str) -> Latency:
    latency: Latency = getattr(abuse.others, kind)
    return latency
