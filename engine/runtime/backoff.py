"""Pauses between the tries of a call that may be repeated."""

from __future__ import annotations

import asyncio
import random
from typing import Final

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.25


class Backoff:
    """Pauses that double up to 0.25 s, each with jitter of half its length, so that tries do not coincide."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S

    async def pause(self) -> None:
        """Wait before the next try."""
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.5))
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
