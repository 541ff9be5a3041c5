"""How many requests over HTTP a device and a tenant may have open, and how much of their bodies may wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from engine.runtime.metrics import Metric, Value
from engine.runtime.rate_limit import retry_soon_ms
from engine.wire.errors import SyncError


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one worker. Bodies of files are not counted: they are written as they come."""

    device_requests: int
    device_bytes: int
    tenant_requests: int
    tenant_bytes: int


class Ticket(msgspec.Struct, frozen=True):
    """A request that is open; ``body_bytes`` is the most that its body may take in memory."""

    tenant_id: int
    device_id: str
    body_bytes: int


class OpenRequests:
    """Counts what is open. Those of a device whose last request ended are forgotten."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits: Final = limits
        self._requests: Counter[object] = Counter()
        self._bytes: Counter[object] = Counter()
        self._refused = {"device": 0, "tenant": 0}

    def metrics(self) -> Iterator[Metric]:
        """Yield what was refused."""
        text = "Requests refused because the device or its tenant has too much open"
        yield Value("counter", "tidemark_requests_refused", text, self._refused, "bound")

    def __len__(self) -> int:
        """How many devices and tenants have something open."""
        return len(self._requests) + len(self._bytes)

    def enter(self, ticket: Ticket) -> None:
        """Count a request until ``leave``.

        Raises:
            SyncError: ``rate_limited``; the device or its tenant has too much open.
        """
        limits = self._limits
        device, tenant = (ticket.tenant_id, ticket.device_id), ticket.tenant_id
        for who, key, most, most_bytes in (
            ("device", device, limits.device_requests, limits.device_bytes),
            ("tenant", tenant, limits.tenant_requests, limits.tenant_bytes),
        ):
            waiting_bytes = self._bytes[key]
            # One body always fits, whatever the settings say.
            if self._requests[key] >= most or (
                waiting_bytes and ticket.body_bytes and waiting_bytes + ticket.body_bytes > most_bytes
            ):
                self._refused[who] += 1
                raise SyncError(
                    "rate_limited", f"too many open requests of this {who}", retry_after_ms=retry_soon_ms()
                )
        for key in (device, tenant):
            self._requests[key] += 1
            if ticket.body_bytes:
                self._bytes[key] += ticket.body_bytes

    def leave(self, ticket: Ticket) -> None:
        """Count a request no more."""
        for key in ((ticket.tenant_id, ticket.device_id), ticket.tenant_id):
            _less(self._requests, key, 1)
            _less(self._bytes, key, ticket.body_bytes)


def _less(counts: Counter[object], key: object, by: int) -> None:
    left = counts[key] - by
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)
