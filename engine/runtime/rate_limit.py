"""Rates of messages, and when a refused device may come again. Time is an argument."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

#: A message that takes longer counts as several; those of ordinary devices take far less.
EXPENSIVE_S: Final = 0.01
#: Each time this many bytes of a message count as one more: 1 KB that inflates to 1 MiB counts as 17.
COUNTED_BYTES: Final = 1 << 16
_MINUTE_S: Final = 60.0


class TokenBucket(msgspec.Struct):
    """``tokens`` as of ``at_s``. A full bucket holds those of one minute.

    ``taken`` counts the messages of a device in its tenant's ``minute`` (``TenantRates``).
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
        """Take one more token for each ``COUNTED_BYTES`` of a message, counted after inflating."""
        self.tokens -= size_bytes // COUNTED_BYTES

    def charge(self, spent_s: float) -> None:
        """Take a token for each millisecond of an expensive message, which blocked the event loop."""
        if spent_s > EXPENSIVE_S:
            self.tokens -= spent_s * 1000


class _TenantRate(msgspec.Struct):
    """A tenant's bucket, the number of its minute, and how many devices sent in this minute and the last."""

    bucket: TokenBucket
    ends_s: float
    minute: int = 0
    devices: int = 0
    devices_before: int = 0


class TenantRates:
    """One bucket per tenant, for all of its devices on this process.

    An empty bucket refuses no device that sent less than its equal share in this minute, so that one device
    takes nothing from the others. A tenant whose devices take turns at sending may so get up to twice its
    rate.
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


def retry_soon_ms() -> int:
    """Return the wait after a short problem: 0.5 to 1.5 s at random, so that devices come apart."""
    return random.randint(500, 1500)


def retry_later_ms() -> int:
    """Return the wait after a problem that a person has to solve, such as a full disk: 45 to 90 s at random.

    Each try costs the device a chunk of its connection, and a disk does not empty itself in a second.
    """
    return random.randint(45_000, 90_000)
