"""Where a request comes from, and how: what the connection says, or what a proxy says of it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import structlog
from aiohttp import web

from engine.admission import TokenBucket
from engine.errors import SyncError

Networks = tuple[IPv4Network | IPv6Network, ...]

#: Whoever knocks a thousand times a second is not to fill the log: the next line says how often.
_LINES_PER_MINUTE: Final = 60

_log = structlog.get_logger()


def networks(texts: Iterable[str]) -> Networks:
    """Read addresses and networks (``10.0.0.0/8``). Raises ValueError."""
    return tuple(ip_network(text) for text in texts)


def client_address(peer: str | None, forwarded_for: Iterable[str], trusted: Networks) -> str | None:
    """Name the client's address; ``forwarded_for`` are the values of ``X-Forwarded-For``, in their order.

    A trusted proxy is believed about whom it was asked by, and nobody else is: of the chain that ends
    with the peer it is the rightmost address that is not trusted, or the leftmost that can be read.
    None where the peer is unknown.
    """
    address = _address(peer or "")
    if address is None:
        return None
    chain = ",".join(forwarded_for).split(",")
    while chain and _is_trusted(address, trusted):
        before = _address(chain.pop().strip())
        if before is None:
            break
        address = before
    return str(address)


def client_scheme(peer: str | None, forwarded_proto: Iterable[str], own: str, trusted: Networks) -> str:
    """Name the scheme that the client used; a trusted proxy is believed, nobody else is."""
    address = _address(peer or "")
    if address is None or not _is_trusted(address, trusted):
        return own
    first = ",".join(forwarded_proto).partition(",")[0].strip().lower()
    return first if first in ("http", "https") else own


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: IPv4Address | IPv6Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)


class Refusals:
    """Logs handshakes that are refused, a line a second in the long run."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted
        self._lines = TokenBucket(float(_LINES_PER_MINUTE), 0.0)
        self._unlogged = 0

    def refused(self, request: web.Request, error: SyncError, now_s: float) -> None:
        """Log that ``error`` was the answer; ``now_s`` is the monotonic time."""
        if self._lines.take(_LINES_PER_MINUTE, now_s):
            self._unlogged += 1
            return
        client = client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), self._trusted)
        _log.info(
            "handshake_refused",
            client=client,
            code=error.code,
            message=error.message,
            unlogged=self._unlogged,
        )
        self._unlogged = 0
