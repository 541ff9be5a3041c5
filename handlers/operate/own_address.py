"""The address at which this machine reaches a server of its own."""

from __future__ import annotations

from typing import Final

#: What listens on every address of IPv6 takes no connection of IPv4.
_LOOPBACK: Final = {
    **dict.fromkeys(("", "0.0.0.0", "*"), "127.0.0.1"),  # noqa: S104  # reached, not bound
    "::": "::1",
}


def in_brackets(host: str) -> str:
    """Return a host as URLs have it: an address of IPv6 stands in brackets."""
    return f"[{host}]" if ":" in host else host


def own_host(host: str) -> str:
    """Return the host, as URLs have it, at which this machine reaches a server that listens on ``host``."""
    return in_brackets(_LOOPBACK.get(host, host))
