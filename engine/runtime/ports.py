"""What the engine needs from outside. The docstrings state the duties of an implementation."""

from __future__ import annotations

from typing import Protocol


class StoreError(Exception):
    """The store failed. The subclass tells what is certain."""

    @property
    def detail(self) -> str | None:
        """What may be logged besides the class; None, since the sentence may have data of a device."""
        return None


class StoreRetryError(StoreError):
    """Nothing was written (deadlock, lock timeout, connection lost before COMMIT). A retry may succeed."""


class StoreUnknownError(StoreError):
    """COMMIT was sent and its outcome is unknown. The batch must run again under its locks."""


class StorePoisonError(StoreError):
    """PostgreSQL refused a value. Nothing was written, and the same batch never succeeds."""


class StoreFullError(StoreError):
    """The database's disk is full. Nothing was written, and a retry fails until a person makes room."""


class StoreUnavailableError(StoreError):
    """No writable database can be reached now. Nothing was written."""


class StoreUnreadableError(StoreError):
    """Sealed data cannot be opened: a retry fails until a person restores a key or a value. Others go on.

    Nothing was written. The sentence names the key or the value, and has no data.
    """

    @property
    def detail(self) -> str:
        """The sentence."""
        return str(self)


class Clock(Protocol):
    """The time, as an argument."""

    def now_us(self) -> int:
        """Return the microseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Return seconds that never go backwards, for durations."""


class WorkClock(Clock, Protocol):
    """The time, and the work of this thread."""

    def cpu_s(self) -> float:
        """Return the seconds that the processor worked for this thread: none while the host stands still."""
