"""The tables of the scenario ``abuse``: its phases one by one, and this version beside the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.report.results import Abuse, Latency, Phase
from bench.report.tables import counts, table

_HEADING: Final = (
    "attack",
    "phase",
    "heartbeat p50/p99 ms",
    "sync p50/p99 ms",
    "pull p50/p99 ms",
    "refused",
    "held ms",
    "memory MiB",
    "worker",
    "loop",
    "charged",
    "queued",
    "attackers",
    "sent KB",
    "disk KB",
    "rows",
    "connections",
    "busy after s",
    "load",
)
KINDS: Final = ("heartbeat", "sync", "pull")

_COMPARED: Final = (
    "attack",
    "devices",
    *(f"{kind} p50/p99 ms before, after (sink)" for kind in KINDS),
    "held ms",
    "memory MiB",
    "disk KB",
    "rows",
)
_SINKS: Final[dict[Phase, Phase]] = {"one device": "sink of one", "ten devices": "sink of ten"}


def lines(abuses: list[Abuse]) -> Iterator[str]:
    """Write the tables, and the counts that have no room in them."""
    yield from table([_HEADING, *map(_cells, abuses)])
    yield from filter(None, map(_counts, abuses))
    compared = list(_compared(abuses))
    if compared:
        yield ""
        yield from table([_COMPARED, *compared])


def brief(abuse: Abuse) -> str:
    """Say in a line what others felt in a phase."""
    felt_ms = ", ".join(f"{kind} {_p50_p99(felt(abuse, kind))}" for kind in KINDS)
    refused = sum(abuse.others.refused.values())
    held_ms, load = _whole(abuse.stretch_ms), f"{abuse.load:.1f}"
    told = f"refused {refused}, held {held_ms} ms, queued {_part(abuse.queued)}, load {load}"
    return f"{abuse.phase}: {felt_ms} ms, {told}"


def _cells(abuse: Abuse) -> tuple[str, ...]:
    others = abuse.others
    return (
        abuse.attack,
        abuse.phase + ", before" * abuse.before,
        *(_p50_p99(felt(abuse, kind)) for kind in KINDS),
        str(sum(others.refused.values())),
        _whole(abuse.stretch_ms),
        "-" if abuse.grown_mib is None else f"{abuse.grown_mib:+.1f}",
        *map(_part, (abuse.share, abuse.loop, abuse.charged, abuse.queued, abuse.generator)),
        f"{abuse.sent_bytes / 1000:,.0f}",
        f"{abuse.disk_bytes / 1000:+,.0f}",
        f"{abuse.rows:+,}",
        f"{abuse.connections:,}",
        f"{abuse.after_s:.1f}{', restarted' if abuse.renewed else ''}",
        f"{abuse.load:.1f}",
    )


def _compared(abuses: list[Abuse]) -> Iterator[tuple[str, ...]]:
    """Write what was measured on both versions, a line for each attack and count of devices."""
    found = {(abuse.attack, abuse.phase, abuse.before): abuse for abuse in abuses}
    for attack in dict.fromkeys(abuse.attack for abuse in abuses):
        for phase in _SINKS:
            before, after = (found.get((attack, phase, which)) for which in (True, False))
            if before is None or after is None:
                continue
            sink = found.get((attack, _SINKS[phase], False))
            yield (
                attack,
                phase.partition(" ")[0],
                *(
                    f"{_p50_p99(felt(before, kind))}, {_p50_p99(felt(after, kind))}"
                    f" ({'-' if sink is None else _p50_p99(felt(sink, kind))})"
                    for kind in KINDS
                ),
                f"{_held(before)}, {_held(after)}",
                f"{_whole(before.grown_mib)}, {_whole(after.grown_mib)}",
                f"{before.disk_bytes / 1000:,.0f}, {after.disk_bytes / 1000:,.0f}",
                f"{before.rows:,}, {after.rows:,}",
            )


def _p50_p99(latency: Latency) -> str:
    return f"{latency.p50_ms:.1f}/{latency.p99_ms:.1f}"


def _held(abuse: Abuse) -> str:
    """Write the longest stretch of the loop, or the slowest heartbeat where a version does not measure it."""
    return f"~{abuse.others.heartbeat.max_ms:.0f}" if abuse.stretch_ms is None else _whole(abuse.stretch_ms)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _counts(abuse: Abuse) -> str:
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
