"""The client's address: that of the connection, or the one that a trusted proxy names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import structlog
from aiohttp import web

from engine.runtime.rate_limit import TokenBucket
from engine.wire.errors import SyncError
from handlers.http.headers import elements

Networks = tuple[IPv4Network | IPv6Network, ...]

#: A client that tries a thousand times a second must not fill the log: the next line tells how often it
#: tried.
_LINES_PER_MINUTE: Final = 60

#: A path of one segment or more (RFC 3986); two slashes at its front would name a host.
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)+")
_DOTS: Final = re.compile(r"/\.{1,2}(?:/|\Z)")
#: The answer to an upload of a hundred parts has the path a hundred times, and proxies bound the size of
#: heads.
_MOST_PREFIX_CHARS: Final = 64
#: Some proxies write the port after an address.
_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
#: As nginx writes ``$request_time``.
REQUEST_SECONDS: Final = "X-Tidemark-Request-Seconds"
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")

_log = structlog.get_logger()


def networks(texts: Iterable[str]) -> Networks:
    """Read addresses and networks (``10.0.0.0/8``). Raises ValueError."""
    return tuple(ip_network(text) for text in texts)


def client_address(peer: str | None, forwarded_for: Iterable[str], trusted: Networks) -> str | None:
    """Return the client's address.

    Only trusted proxies are believed. Of the chain of addresses that ends with the peer, the client is the
    rightmost one that is not a trusted proxy, or the leftmost one that can be parsed.

    Args:
        peer: The address of the connection; None if it is unknown.
        forwarded_for: The values of ``X-Forwarded-For``, in their order.
        trusted: The proxies that are believed.

    Returns:
        The address; None if the peer is unknown.
    """
    address = address_of(peer or "")
    if address is None:
        return None
    chain = ",".join(forwarded_for).split(",")
    while chain and is_trusted(address, trusted):
        before = address_of(chain.pop().strip())
        if before is None:
            break
        address = before
    return str(address)


def stripped_prefix(peer: str | None, forwarded_prefix: Iterable[str], trusted: Networks) -> str:
    """Return the prefix that proxies removed from the path, from the values of ``X-Forwarded-Prefix``.

    Only trusted proxies are believed. Each of several proxies removed its part, the first one the leftmost.
    """
    named = elements(",".join(forwarded_prefix))
    if not named:
        return ""
    address = address_of(peer or "")
    if address is None or not is_trusted(address, trusted):
        return ""
    prefix = "".join([part.rstrip("/") for part in named])
    is_path = _PREFIX.fullmatch(prefix) and len(prefix) <= _MOST_PREFIX_CHARS
    return prefix if is_path and not _DOTS.search(prefix) else ""


def request_seconds(peer: str | None, said: Sequence[str], trusted: Networks) -> float:
    """Return how long a request took to reach the proxy that passed it on; 0 without a trusted proxy.

    Args:
        peer: The address of the connection.
        said: The values of ``X-Tidemark-Request-Seconds``.
        trusted: The proxies that are believed.
    """
    address = address_of(peer or "")
    if len(said) != 1 or address is None or not is_trusted(address, trusted):
        return 0.0
    return float(said[0]) if _SECONDS.fullmatch(said[0]) else 0.0


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address, with or without a port. Returns None for any other text."""
    with_port = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address(text if with_port is None else with_port[1] or with_port[2])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_trusted(address: IPv4Address | IPv6Address, trusted: Networks) -> bool:
    """Return whether an address belongs to a trusted proxy."""
    return any(address in network for network in trusted)


class RefusedHandshakeLog:
    """Logs refused handshakes, one line a second at most in the long run."""

    def __init__(self, trusted: Networks) -> None:
        self._trusted = trusted
        self._lines = TokenBucket(float(_LINES_PER_MINUTE), 0.0)
        self._unlogged = 0

    def log(self, request: web.Request, error: SyncError, now_s: float) -> None:
        """Log a refusal.

        Args:
            request: The handshake.
            error: The answer.
            now_s: The monotonic clock.
        """
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
