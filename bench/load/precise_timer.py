"""A timer to the tenth of a millisecond, since uvloop's have a grain of a whole one.

Half a millisecond of lateness is a quarter of the latency that is to be measured.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Final

_MONOTONIC: Final = 1  # the clock of perf_counter
_ABSOLUTE: Final = 1
#: Elsewhere than on Linux a shorter wait would turn into spinning.
_GRAIN_S: Final = 0.001


class PreciseTimer:
    """Calls ``on_due`` once at the time that was last set."""

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._timer = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.add_reader(self._timer, self._expired)

    def set(self, at_s: float) -> None:
        """Go off at a time of ``perf_counter``, at once if it has passed."""
        if self._timer < 0:
            self._loop.call_later(max(at_s - perf_counter(), _GRAIN_S), self._on_due)
            return
        # An interval of 0: once. A time of 0 would stop the timer.
        when = struct.pack("4l", 0, 0, int(at_s), int(at_s % 1 * 1e9) or 1)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, when, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _expired(self) -> None:
        os.read(self._timer, 8)
        self._on_due()

    def close(self) -> None:
        """Never go off again."""
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
