"""What must hold while one client takes all that it can get, as bars of a report."""

from __future__ import annotations

from typing import Final

from bench.report.results import Abuse, Bar, Phase, Report
from bench.report.text import KINDS, felt
from engine.runtime.loop_share import DEVICE_BURST_S, DEVICE_PART, TENANT_BURST_S, TENANT_PART

ATTACKED: Final[tuple[Phase, ...]] = ("one device", "ten devices")
_SINKS: Final[tuple[Phase, ...]] = ("sink of one", "sink of ten")

#: The most that each figure may be, its unit, and how the sink's is written beside it where it tells.
_BARS: Final[dict[str, tuple[float, str, str]]] = {
    "others' p50 over that at rest": (2.0, "", "{:.3g}"),
    "others' p99 above that at rest": (80.0, "ms", "{:.0f} ms"),
    "messages of others refused or not answered": (0.0, "", ""),
    # The longest for which any message may hold a worker's loop.
    "the longest stretch of the loop": (60.0, "ms", "{:.0f} ms"),
    "memory above calm": (64.0, "MiB", ""),
    "the loop's time that one device took": (100 * DEVICE_PART, "%", ""),
    "the loop's time that ten devices took": (100 * TENANT_PART, "%", ""),
    "the fullest of the tenant's bounds": (100.0, "%", ""),
    # How much longer it may wait for its record.
    "another's photo, above that at rest": (2.0, "s", ""),
}
#: The seconds of the loop that may come at once.
_BURSTS_S: Final = {"one device": DEVICE_BURST_S, "ten devices": TENANT_BURST_S}


def judge(report: Report) -> None:
    """Add the bars of each attack that was measured: its worst phase, and the worst kind of message."""
    now = [abuse for abuse in report.abuses if not abuse.before]
    for attack in dict.fromkeys(abuse.attack for abuse in now):
        phases = {abuse.phase: abuse for abuse in now if abuse.attack == attack}
        rest = phases.get("at rest")
        if rest is None:
            continue
        under = [_figures(phases[phase], rest) for phase in ATTACKED if phase in phases]
        sunk = [_figures(phases[phase], rest) for phase in _SINKS if phase in phases]
        for name, (limit, unit, sink) in _BARS.items():
            found, beside = ([each[name] for each in part if name in each] for part in (under, sunk))
            said = f"into a sink {sink.format(max(beside))}" if sink and beside else ""
            if found:
                report.bars.append(Bar(f"{attack}: {name}", max(found), "at most", limit, unit, said))
    if any(abuse.grown_mib is None for abuse in now):
        report.remarks.append("the worker is no process that can be looked at here: no memory and no CPU")


def _figures(now: Abuse, rest: Abuse) -> dict[str, float]:
    """Return the figures of a phase beside the one at rest, without those that could not be read."""
    kinds = [(felt(now, kind), felt(rest, kind)) for kind in KINDS]
    found = {
        "others' p50 over that at rest": max(
            under.p50_ms / calm.p50_ms if calm.p50_ms else 0.0 for under, calm in kinds
        ),
        "others' p99 above that at rest": max(under.p99_ms - calm.p99_ms for under, calm in kinds),
        "messages of others refused or not answered": sum(now.others.refused.values()),
        "the longest stretch of the loop": now.stretch_ms,
        "memory above calm": now.grown_mib,
        "the fullest of the tenant's bounds": None if now.fullest is None else 100 * now.fullest,
    }
    if now.loop is not None and rest.loop is not None and now.phase in _BURSTS_S:
        # Of the time for which the loop had a core; others' work costs as much under attack as at rest.
        taken = (now.loop - rest.loop) / max(1.0 - (now.queued or 0.0), 0.01)
        beyond = max(0.0, taken - _BURSTS_S[now.phase] / now.window_s)
        found[f"the loop's time that {now.phase} took"] = 100 * beyond
    if now.photo_s is not None and rest.photo_s is not None:
        found["another's photo, above that at rest"] = now.photo_s - rest.photo_s
    return {name: figure for name, figure in found.items() if figure is not None}
