"""What the engine needs from outside. The docstrings state the duty of whoever fulfils them."""

from __future__ import annotations

from typing import Protocol


class StoreError(Exception):
    """The store could not do what was asked; the subclass says what is certain."""


class StoreRetryError(StoreError):
    """Nothing was written (deadlock, lock timeout, lost before COMMIT); running again may succeed."""


class StoreUnknownError(StoreError):
    """COMMIT was sent and its outcome is not known; the batch must run again under its locks."""


class StorePoisonError(StoreError):
    """PostgreSQL refused a value; nothing was written, and the same batch never succeeds."""


class StoreFullError(StoreError):
    """The database's disk is full; nothing was written, and that lasts until a person makes room."""


class StoreUnavailableError(StoreError):
    """No connection to a writable database can be had now; nothing was written."""


class Clock(Protocol):
    """The time, as an argument."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Seconds that never go backwards, for durations."""


class WorkClock(Clock, Protocol):
    """The time, and the work of this thread."""

    def cpu_s(self) -> float:
        """Seconds that the processor worked for this thread: a host that stands still adds none."""
