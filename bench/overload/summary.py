"""What became of syncs over time in the run of the highest load, and when all was as before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from bench.load.plan import Outcome
from bench.report.results import Window
from bench.report.statistics import percentile
from bench.report.summary import STORED, UNANSWERED

WINDOW_US: Final = 100_000
#: So many windows in a row make it normal again: one alone may be luck.
WINDOWS: Final = 3
#: A p95 is normal within so many times, or so much above, the one before.
NORMAL_TIMES, NORMAL_MORE_MS = 1.5, 5.0


def windows_of(outcome: Outcome) -> list[Window]:
    """Cut a run into tenths of a second, by when its syncs were due. Where none was there is no window."""
    cut: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for due_us, sent_us, done_us, code in zip(
        outcome.due_us, outcome.sent_us, outcome.done_us, outcome.code, strict=True
    ):
        if sent_us >= 0:
            cut[due_us // WINDOW_US].append((code, done_us - due_us))
    return [_window(index, cut[index]) for index in sorted(cut)]


def _window(index: int, syncs: list[tuple[int, int]]) -> Window:
    stored_us = sorted(latency_us for code, latency_us in syncs if code == STORED)
    unanswered = sum(code == UNANSWERED for code, _ in syncs)
    return Window(
        at_s=index * WINDOW_US / 1e6,
        stored=len(stored_us),
        refused=len(syncs) - len(stored_us) - unanswered,
        unanswered=unanswered,
        p95_ms=percentile(stored_us, 95) / 1000 if stored_us else None,
    )


def back_to_normal_s(windows: Sequence[Window], over_s: float, before_p95_ms: float) -> float | None:
    """Return how long after ``over_s`` the first of some normal windows in a row ends, None without these.

    In a normal window every sync is stored, with a normal p95.
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
