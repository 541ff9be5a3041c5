"""Overload: tells a burst from a queue that does not drain, and refuses messages."""

from __future__ import annotations

from typing import Final

from engine.wire.errors import SyncError

#: Until a batch was full, the store is assumed to take this much in a second.
_FIRST_BYTES_PER_S: Final = 32e6
#: Bounds of the target: nobody notices a shorter wait, and devices give up during a longer one.
_SHORTEST_TARGET_S: Final = 0.05
_LONGEST_TARGET_S: Final = 0.5
#: A queue above its target for this many targets is overload; a shorter time is a burst.
_INTERVAL_TARGETS: Final = 10
_LONGEST_INTERVAL_S: Final = 2.0
#: The longest wait that a burst may cause.
_BURST_S: Final = 0.15
#: Weight of the latest batch in the moving averages.
_LATEST: Final = 0.2


class Overload:
    """Tells a burst from a queue that does not drain, after CoDel: by how long work waited in the queue.

    A burst may queue up. A wait above ``target_s`` (twice the duration of a batch) during a whole interval is
    no burst: from then on the queue is held at the target, until the wait was well below it for an interval.
    CoDel drops what is queued. Here nothing that was accepted is dropped, so new messages are refused.

    ``admit_bytes`` is the size of the queue from which on messages are refused, ``target_bytes`` the size
    that takes ``target_s`` to store.
    """

    def __init__(self) -> None:
        self.shedding = False
        self._batch_s = 0.0
        self._s_per_byte = 1 / _FIRST_BYTES_PER_S
        self._since_s: float | None = None
        self._bound()

    @property
    def interval_s(self) -> float:
        """How long a wait has to last until it counts as overload, or as its end."""
        return min(_INTERVAL_TARGETS * self.target_s, _LONGEST_INTERVAL_S)

    def wait_s(self, queued_bytes: int) -> float:
        """Return the time that storing a queue of this size takes."""
        return queued_bytes * self._s_per_byte

    def record_batch(self, size_bytes: int, batch_s: float, since_last_s: float) -> None:
        """Learn from a full batch. Small batches say little about what the store can do.

        Args:
            size_bytes: The size of what was stored.
            batch_s: The duration of the batch.
            since_last_s: The time since the store ended the batch before.
        """
        self._batch_s += _LATEST * (batch_s - self._batch_s)
        self._s_per_byte += _LATEST * (max(since_last_s, 0.001) / size_bytes - self._s_per_byte)
        self._bound()

    def record_wait(self, longest_s: float, now_s: float, *, all_taken: bool) -> None:
        """Learn from the wait of the oldest message of a batch.

        Args:
            longest_s: How long that message was queued.
            now_s: When it was taken.
            all_taken: Nothing is left in the queue. Otherwise a short wait says nothing about the rest.
        """
        is_short = longest_s * 2 < self.target_s if self.shedding else longest_s <= self.target_s
        if is_short and not all_taken:
            return
        if is_short is not self.shedding:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= self.interval_s:
            self.shedding = not self.shedding
            self._since_s = None
            self._bound()

    def _bound(self) -> None:
        self.target_s = min(max(2 * self._batch_s, _SHORTEST_TARGET_S), _LONGEST_TARGET_S)
        burst_s = self.target_s if self.shedding else max(self.target_s, _BURST_S)
        self.target_bytes = int(self.target_s / self._s_per_byte)
        self.admit_bytes = int(burst_s / self._s_per_byte)


def overloaded(retry_after_ms: int) -> SyncError:
    """Return the refusal of a message because of overload."""
    return SyncError("overloaded", "too much is waiting to be stored", retry_after_ms=retry_after_ms)
