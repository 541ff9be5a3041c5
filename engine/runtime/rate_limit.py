"""Who may send how much, and what is refused when more comes than can be stored. Time is an argument."""

from __future__ import annotations

import math
from typing import Final

import msgspec

#: From here on a message counts for more than one; those of ordinary devices stay far below.
LABORIOUS_S: Final = 0.01
#: So many bytes of a message count for one message more: 1 KB that inflates to 1 MiB counts for 17.
COUNTED_BYTES: Final = 1 << 16
_MINUTE_S: Final = 60.0
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


class TokenBucket(msgspec.Struct):
    """``tokens`` as of ``at_s``; a full bucket holds one minute's worth.

    ``taken`` counts what a device sent in its tenant's ``minute`` (``TenantRates``).
    """

    tokens: float
    at_s: float
    minute: int = -1
    taken: int = 0

    def take(self, per_minute: int, now_s: float, most: float | None = None) -> int:
        """Take one token of ``most``; return 0, or the milliseconds until there is one."""
        if most is None:
            most = per_minute
        tokens = self.tokens + (now_s - self.at_s) * per_minute / 60.0
        self.at_s = now_s
        if tokens > most:
            tokens = float(most)
        if tokens >= 1.0:
            self.tokens = tokens - 1.0
            return 0
        self.tokens = tokens
        return max(1, math.ceil((1.0 - tokens) * 60_000 / per_minute))

    def weigh(self, size_bytes: int) -> None:
        """Take a further token for each ``COUNTED_BYTES`` of a message, as they are once inflated."""
        self.tokens -= size_bytes // COUNTED_BYTES

    def charge(self, spent_s: float) -> None:
        """Take a token for each millisecond that a laborious message kept everybody waiting."""
        if spent_s > LABORIOUS_S:
            self.tokens -= spent_s * 1000


class _TenantRate(msgspec.Struct):
    """A tenant's bucket, and how many devices spoke in its minute, which has a number, and in the last."""

    bucket: TokenBucket
    ends_s: float
    minute: int = 0
    devices: int = 0
    devices_before: int = 0


class TenantRates:
    """A bucket for each tenant, for all of its devices on this process together.

    An empty bucket refuses no device that sent less than its equal part in this minute, so that one device
    takes nothing from the others. So a tenant may get twice its rate while its devices change places.
    """

    def __init__(self, messages_per_minute: int) -> None:
        self._per_minute = messages_per_minute
        self._tenants: dict[int, _TenantRate] = {}

    def take(self, tenant_id: int, device: TokenBucket, now_s: float) -> int:
        """Take one token for a device; return 0, or the milliseconds until there is one."""
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            bucket = TokenBucket(float(self._per_minute), now_s)
            tenant = self._tenants[tenant_id] = _TenantRate(bucket, now_s + _MINUTE_S)
        if now_s >= tenant.ends_s:
            tenant.ends_s = now_s + _MINUTE_S
            tenant.minute += 1
            tenant.devices_before, tenant.devices = tenant.devices, 0
        if device.minute != tenant.minute:
            device.minute, device.taken = tenant.minute, 0
            tenant.devices += 1
        wait_ms = tenant.bucket.take(self._per_minute, now_s)
        if wait_ms and (device.taken + 1) * max(tenant.devices, tenant.devices_before) > self._per_minute:
            return wait_ms
        device.taken += 1
        return 0


class Overload:
    """Tells a burst from a queue that stands, after CoDel: by how long what is stored had to wait.

    A burst may queue up. A wait above ``target_s``, twice what a batch takes, for all of an interval is no
    burst: from then on the queue is held at the target, until it was well below for as long. CoDel drops
    what waits; here nothing accepted is ever dropped, so arrivals are refused: ``most_bytes`` may wait,
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

    def stored(self, size_bytes: int, batch_s: float, since_last_s: float) -> None:
        """Learn from a batch that was full; small ones say little of what the store can do.

        ``batch_s`` is how long it took, ``since_last_s`` since the store was done with the one before it.
        """
        self._batch_s += _LATEST * (batch_s - self._batch_s)
        self._s_per_byte += _LATEST * (max(since_last_s, 0.001) / size_bytes - self._s_per_byte)
        self._bound()

    def waited(self, longest_s: float, now_s: float, *, all_taken: bool) -> None:
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
        self.most_bytes = int(burst_s / self._s_per_byte)
