"""When more comes than can be stored: a burst is told from a queue that stands; the refusal."""

from __future__ import annotations

from typing import Final

from engine.wire.errors import SyncError

#: Until a queue has stood, a worker is taken to store this much in a second.
_FIRST_BYTES_PER_S: Final = 32e6
#: Bounds of the wait that may stand: below it nobody notices, above it devices give up waiting.
_SHORTEST_TARGET_S: Final = 0.05
_LONGEST_TARGET_S: Final = 0.5
#: How many targets a burst may take to go by, before what stands is taken for overload.
_INTERVAL_TARGETS: Final = 10
_LONGEST_INTERVAL_S: Final = 2.0
#: The wait that a burst may cause.
_BURST_S: Final = 0.15
#: Weight of the latest batch in what is remembered of batches.
_LATEST: Final = 0.2


class Overload:
    """Tells a burst from a queue that stands, after CoDel: by how long what is stored had to wait.

    A burst may queue up. A wait above ``target_s``, twice what a batch takes, for all of an interval is no
    burst: from then on the queue is held at the target, until it was well below for as long. CoDel drops
    what waits; here nothing accepted is ever dropped, so arrivals are refused: ``admit_bytes`` may wait,
    ``target_bytes`` may stand.
    """

    def __init__(self) -> None:
        self.shedding = False
        self._batch_s = 0.0
        self._s_per_byte = 1 / _FIRST_BYTES_PER_S
        self._since_s: float | None = None
        self._bound()

    @property
    def interval_s(self) -> float:
        """How long a wait has to last to be taken for what it is."""
        return min(_INTERVAL_TARGETS * self.target_s, _LONGEST_INTERVAL_S)

    def wait_s(self, waiting_bytes: int) -> float:
        """Return how long it takes to store so much."""
        return waiting_bytes * self._s_per_byte

    def record_batch(self, size_bytes: int, batch_s: float, since_last_s: float) -> None:
        """Learn from a batch that was full; small ones say little of what the store can do.

        ``batch_s`` is how long it took, ``since_last_s`` since the store was done with the one before it.
        """
        self._batch_s += _LATEST * (batch_s - self._batch_s)
        self._s_per_byte += _LATEST * (max(since_last_s, 0.001) / size_bytes - self._s_per_byte)
        self._bound()

    def record_wait(self, longest_s: float, now_s: float, *, all_taken: bool) -> None:
        """Take in how long the oldest of a batch had waited when it was taken.

        That it was not for long says nothing of the others, unless all that waited was taken.
        """
        short = longest_s * 2 < self.target_s if self.shedding else longest_s <= self.target_s
        if short and not all_taken:
            return
        if short is not self.shedding:
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
    """Make the refusal of what is too much."""
    return SyncError("overloaded", "too much is waiting to be stored", retry_after_ms=retry_after_ms)
