"""Pauses between the tries of a call that may be repeated."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Pauses that double, each with jitter of half its length: so tries of many tasks do not coincide."""

    def __init__(self, first_s: float = 0.005, longest_s: float = 0.25) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._pause_s = first_s

    async def pause(self) -> None:
        """Wait before the next try."""
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
        self._pause_s = min(self._pause_s * 2, self._longest_s)

    def reset(self) -> None:
        """Begin with the first pause again: a try succeeded."""
        self._pause_s = self._first_s
