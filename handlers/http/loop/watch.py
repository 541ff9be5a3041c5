"""The watchdog of the event loop: how late it is, and the message that held it."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import structlog

from engine.runtime.metrics import DURATION_BOUNDS_MS, Histogram, Metric, gauge
from engine.runtime.ports import Clock

#: How often the delay is measured: 20 times a second cost the loop 0.02 % of its time.
_INTERVAL_S: Final = 0.05
#: Work that holds the loop for this long is logged: all other connections waited for it.
HELD_S: Final = 0.1
#: A delay without a known cause may come from the machine. It is logged from here on; metrics count from 1
#: ms.
_UNKNOWN_S: Final = 1.0

_log = structlog.get_logger()


class LoopWatch:
    """Measures the loop's delay.

    The handlers of messages measure their own time. After ``HELD_S`` they call ``log_held`` with the device
    that caused it. The timer finds all other delays, which are logged without a device.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said = False
        self.delays = [0] * (len(DURATION_BOUNDS_MS) + 1)
        self.delay_sum_s = 0.0
        self.longest_s = 0.0

    def metrics(self) -> Iterator[Metric]:
        """Yield the delays."""
        text = "By how much the event loop was late, measured 20 times a second"
        yield Histogram("tidemark_loop_delay_seconds", text, self.delays, self.delay_sum_s)
        longest_s = self.take_longest_s()
        yield gauge(
            "tidemark_loop_delay_longest_seconds",
            "The longest delay of the event loop since the last scrape",
            longest_s,
        )

    def log_held(self, spent_s: float, tenant_id: int | None, device_id: str | None, kind: str) -> None:
        """Log work that held the loop."""
        self._said = True
        _log.warning(
            "loop_held",
            tenant_id=tenant_id,
            device_id=device_id,
            kind=kind,
            held_ms=round(spent_s * 1000),
        )

    def ticked(self, delay_s: float) -> None:
        """Count by how much the timer was late."""
        delay_s = max(0.0, delay_s)
        self.delays[bisect_left(DURATION_BOUNDS_MS, delay_s * 1000)] += 1
        self.delay_sum_s += delay_s
        self.longest_s = max(self.longest_s, delay_s)
        if delay_s > _UNKNOWN_S and not self._said:
            self.log_held(delay_s, None, None, "unknown")
        self._said = False

    def take_longest_s(self) -> float:
        """Return the longest delay since this was asked last."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s

    async def run(self) -> None:
        """Measure until cancelled."""
        clock = self._clock
        while True:
            due_s = clock.monotonic_s() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self.ticked(clock.monotonic_s() - due_s)
