"""Minutes that nothing writes, for components under test that count in them."""

from __future__ import annotations

import time

from engine.cache.minutes import Minutes
from engine.cache.ports import MinuteRow


class _Unwritten:
    now_us = staticmethod(lambda: time.time_ns() // 1000)
    monotonic_s = staticmethod(time.monotonic)

    async def put(self, rows: list[MinuteRow]) -> None:
        """Forget them."""


def counted_minutes() -> Minutes:
    """Return minutes that stay in memory."""
    nowhere = _Unwritten()
    return Minutes(nowhere, nowhere, lambda: "0" * 32)
