"""Bounds of unauthenticated connections: their number by address, and the bytes of incomplete heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from aiohttp import web

from engine.model.audit import EventName
from engine.runtime.metrics import Metric, counter, gauge
from engine.runtime.open_requests import OpenRequests
from engine.runtime.rate_limit import retry_soon_ms
from engine.runtime.unauthenticated_scheduler import UnauthenticatedScheduler
from engine.wire.errors import SyncError
from handlers.http.client_address import Networks, address_of, is_trusted
from handlers.http.read_buffers import Buffers

#: A head up to this size is never refused because of other heads, and its connection stays open after the
#: answer. The heads of devices have about 1 KB.
SMALL_HEAD_BYTES: Final = 4096


class UnauthenticatedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a connection that has shown no valid token.

    Args:
        head_s: The headers of a request have to come within this time.
        head_bytes: The largest size of all headers of one request and its first line.
        address_connections: Unauthenticated connections of one address.
        write_patience_s: A client that reads nothing of an answer for this long is cut off.
        trusted: Proxies. Their connections are not counted, since they belong to many clients.
        heads_bytes: Bytes of incomplete heads, and of requests that wait behind another, of all connections
        of
            the process. Past it only small heads are read on. Memory use is twice as high.
        address_heads_bytes: The same for the unauthenticated connections of one address.
    """

    head_s: float
    head_bytes: int
    address_connections: int
    write_patience_s: float
    trusted: Networks
    heads_bytes: int = 8 << 20
    address_heads_bytes: int = 4 << 20


class UnauthenticatedConnections:
    """Counts unauthenticated connections by address, and the bytes of incomplete heads.

    Args:
        limits: The bounds.
        device_connections: Counts authenticated connections over HTTP by device and tenant, also between two
        requests.
        clock_s: A monotonic clock.
        on_refused: Is told the event, the address and the cause of what is refused.
    """

    def __init__(
        self,
        limits: UnauthenticatedLimits,
        device_connections: OpenRequests | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        on_refused: Callable[[EventName, str | None, str], None] | None = None,
    ) -> None:
        self._on_refused = on_refused
        self.clock_s = clock_s
        self.scheduler = UnauthenticatedScheduler(clock_s)
        self.limits = limits
        self.device_connections = device_connections
        self.buffers = Buffers()
        self.refused = 0
        self.late = 0
        self.unread = 0
        self.heads_refused = 0
        self.heads_bytes = 0
        self._by_address: dict[str, int] = {}
        self._heads_bytes: dict[str, int] = {}

    @property
    def count(self) -> int:
        """The connections without a valid token, without those of proxies."""
        return sum(self._by_address.values())

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            gauge(
                "tidemark_unauthenticated_connections",
                "Connections that have shown no valid token",
                self.count,
            ),
            counter(
                "tidemark_unauthenticated_refused",
                "Connections refused, of addresses with too many",
                self.refused,
            ),
            counter("tidemark_heads_late", "Connections closed before a request's headers came", self.late),
            counter(
                "tidemark_heads_refused",
                "Connections refused for the headers of a request",
                self.heads_refused,
            ),
            counter("tidemark_answers_unread", "Connections cut for not reading an answer", self.unread),
            counter(
                "tidemark_unauthenticated_seconds",
                "Loop time that came to no valid token",
                self.scheduler.charged_s,
            ),
        )

    def enter(self, peer: str | None) -> str | None:
        """Count a connection.

        Returns:
            What ``leave`` is due for, or None for what is not counted.

        Raises:
            SyncError: ``overloaded``; the address has too many.
        """
        address = address_of(peer or "")
        if address is None or is_trusted(address, self.limits.trusted):
            return None
        name = str(address)
        count = self._by_address.get(name, 0)
        if count >= self.limits.address_connections:
            self.refused += 1
            if self._on_refused is not None:
                self._on_refused("connections_refused", name, "")
            raise SyncError(
                "overloaded", "too many connections of this address wait", retry_after_ms=retry_soon_ms()
            )
        self._by_address[name] = count + 1
        return name

    def refuse_head(self, name: str | None, error: SyncError) -> None:
        """Count a connection of an address that is refused for the bytes of its head."""
        self.heads_refused += 1
        if self._on_refused is not None:
            self._on_refused("heads_refused", name, error.code)

    def note_late_head(self, name: str | None) -> None:
        """Tell of a connection of an address that is closed while some of a head has come."""
        if self._on_refused is not None:
            self._on_refused("headers_late", name, "")

    def leave(self, name: str) -> None:
        """Count a connection no more: it is gone, or has shown a valid token."""
        left = self._by_address[name] - 1
        if left:
            self._by_address[name] = left
        else:
            del self._by_address[name]

    def wait(self, name: str | None, more_bytes: int) -> bool:
        """Count bytes of heads that wait, or with a negative number count them no more.

        Returns:
            True if all that waits is within its bounds, of the process and of the address ``name``.
        """
        self.heads_bytes += more_bytes
        of_address = 0
        if name is not None:
            of_address = self._heads_bytes.get(name, 0) + more_bytes
            if of_address:
                self._heads_bytes[name] = of_address
            else:
                self._heads_bytes.pop(name, None)
        limits = self.limits
        return self.heads_bytes <= limits.heads_bytes and of_address <= limits.address_heads_bytes


def head_bytes(request: web.BaseRequest) -> int:
    """Return about how large the head of a request is."""
    return len(request.path_qs) + sum(len(name) + len(value) for name, value in request.raw_headers)
