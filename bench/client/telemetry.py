"""What a device counts itself, by the hour of its own clock, until the server has stored it."""

from __future__ import annotations

import sqlite3
import uuid
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from engine.model.commit_counts import HOUR_US
from engine.model.minutes import DURATION_BOUNDS_US
from engine.model.telemetry import MAX_AGE_US
from engine.wire.timestamps import to_text

Execute = Callable[..., sqlite3.Cursor]


class Told(NamedTuple):
    """An hour's counts: the same under the same key, as often as it is sent."""

    key: str
    hour: str
    counters: dict[str, int]
    histograms: dict[str, list[tuple[int, int]]]


def count(run: Execute, clock_us: int, name: str, duration_us: int | None = None) -> None:
    """Count one more, of a histogram if there is a duration. ``run`` is of a transaction."""
    bucket = -1 if duration_us is None else bisect_left(DURATION_BOUNDS_US, duration_us)
    values = clock_us // HOUR_US, name, bucket
    run("INSERT INTO telemetry VALUES (?, '', ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1", values)


def next_hour(run: Execute, clock_us: int) -> Told | None:
    """Return the oldest hour that is over, None if there is none. It gets its key when it is first sent.

    What is counted in it later, because the clock was set back, goes under another key.
    """
    run("DELETE FROM telemetry WHERE hour < ?", ((clock_us - MAX_AGE_US) // HOUR_US,))
    oldest = "SELECT hour, key FROM telemetry WHERE hour < ? ORDER BY hour, key DESC LIMIT 1"
    found = run(oldest, (clock_us // HOUR_US,)).fetchone()
    if found is None:
        return None
    told = Told(found[1] or uuid.uuid4().hex, to_text(found[0] * HOUR_US), {}, {})
    run("UPDATE telemetry SET key = ? WHERE hour = ? AND key = ?", (told.key, *found))
    for name, bucket, number in run("SELECT name, bucket, count FROM telemetry WHERE key = ?", (told.key,)):
        if bucket < 0:
            told.counters[name] = number
        else:
            told.histograms.setdefault(name, []).append((bucket, number))
    return told
