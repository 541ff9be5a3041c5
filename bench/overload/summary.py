"""Sums up what happened in a run of ``overload``: rates, latencies, and when all was as before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bench.overload.plan import CODES, Happened, LoadPlan
from bench.report.results import Load, Window
from bench.report.statistics import latency_of, percentile

_UNANSWERED, _STORED = (CODES.index(name) for name in ("unanswered", "synced"))
_MIB: Final = 1 << 20

WINDOW_US: Final = 100_000
#: So many windows in a row make it normal again: one alone may be luck.
WINDOWS: Final = 3
#: What is normal: within so many times, or so much above, what it was before.
NORMAL_TIMES, NORMAL_MORE_MS = 1.5, 5.0


class Used(msgspec.Struct, frozen=True):
    """What one step used: milliseconds of CPU by process tree and of the whole machine, the server's peak."""

    cpu_ms: Mapping[str, float]
    machine_cpu_ms: float
    rss_peak_bytes: int


def load_of(times: float | None, plan: LoadPlan, place: int, happened: Happened, used: Used | None) -> Load:
    """Sum up one step of a run, given by its place; of a closed loop, too, which wants what it gets."""
    step, (begin_us, end_us) = plan.steps[place], plan.bounds_us[place]
    latencies: dict[bool, list[int]] = {True: [], False: []}
    late_us: list[int] = []
    rates: Counter[int] = Counter()
    due = sent = waiting = 0
    for due_us, sent_us, done_us, code in zip(
        happened.due_us, happened.sent_us, happened.done_us, happened.code, strict=True
    ):
        if begin_us <= sent_us < end_us:
            sent += 1
        if begin_us <= done_us < end_us:
            rates[code] += 1
        if 0 <= sent_us < end_us and not 0 <= done_us < end_us:
            waiting += 1
        if not begin_us <= due_us < end_us:
            continue
        due += 1
        if sent_us >= 0:
            late_us.append(sent_us - due_us)
            if code != _UNANSWERED:
                latencies[code == _STORED].append(done_us - due_us)
    late_us.sort()
    lag_us = sorted(happened.lag_us)
    seconds = step.duration_s
    cpus = {tree: spent_ms / 1000 / seconds for tree, spent_ms in used.cpu_ms.items()} if used else {}
    others = None if used is None else max(0.0, used.machine_cpu_ms / 1000 / seconds - sum(cpus.values()))
    return Load(
        name=step.name,
        times=times,
        wanted_per_s=due / seconds,
        offered_per_s=sent / seconds,
        stored_per_s=rates[_STORED] / seconds,
        refused_per_s=(rates.total() - rates[_STORED]) / seconds,
        refused={happened.codes[code]: count for code, count in rates.items() if code != _STORED},
        stored=latency_of(latencies[True]),
        refusal=latency_of(latencies[False]),
        waiting=waiting,
        late_p99_ms=percentile(late_us, 99) / 1000,
        lag_p99_ms=percentile(lag_us, 99) / 1000,
        frame_us=cpus.get("generator", 0.0) * seconds * 1e6 / sent if sent else 0.0,
        cpus=cpus,
        other_cpus=others,
        rss_peak_mib=None if used is None else used.rss_peak_bytes / _MIB,
    )


def windows_of(happened: Happened) -> list[Window]:
    """Cut a run into tenths of a second, by when its syncs were due. Where none was there is no window."""
    cut: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for due_us, sent_us, done_us, code in zip(
        happened.due_us, happened.sent_us, happened.done_us, happened.code, strict=True
    ):
        if sent_us >= 0:
            cut[due_us // WINDOW_US].append((code, done_us - due_us))
    return [_window(index, cut[index]) for index in sorted(cut)]


def _window(index: int, syncs: list[tuple[int, int]]) -> Window:
    stored_us = sorted(latency_us for code, latency_us in syncs if code == _STORED)
    unanswered = sum(code == _UNANSWERED for code, _ in syncs)
    return Window(
        at_s=index * WINDOW_US / 1e6,
        stored=len(stored_us),
        refused=len(syncs) - len(stored_us) - unanswered,
        unanswered=unanswered,
        p95_ms=percentile(stored_us, 95) / 1000 if stored_us else None,
    )


def back_to_normal_s(windows: Sequence[Window], over_s: float, before_p95_ms: float) -> float | None:
    """Give how long after ``over_s`` the first of some windows in a row ends that are all as before.

    In such a window every sync is stored, with a p95 that is normal. None where there are none.
    """
    limit_ms = max(NORMAL_TIMES * before_p95_ms, before_p95_ms + NORMAL_MORE_MS)
    after = [window for window in windows if window.at_s >= over_s]
    in_a_row = 0
    for place, window in enumerate(after):
        normal = not window.refused + window.unanswered and (window.p95_ms or 0.0) <= limit_ms
        in_a_row = in_a_row + 1 if normal else 0
        if in_a_row == WINDOWS:
            return after[place - WINDOWS + 1].at_s + WINDOW_US / 1e6 - over_s
    return None
