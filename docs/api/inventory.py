"""Writes the list of routes into docs/security.md."""

from __future__ import annotations

from typing import Final

from docs.api.openapi import OPERATIONS
from docs.api.operation import Caller
from docs.parts import with_part

_CALLERS: Final[dict[Caller, str]] = {
    "device": "a device's token",
    "person": "a token of an operator or a viewer",
    "machine": "a program of this machine, or an operator's token",
    "anybody": "everybody",
}


def with_routes(text: str) -> str:
    """Return the page with its list of routes made anew."""
    rows = [
        f"| `{one.method} {one.path}` | {_CALLERS[one.caller]} |"
        for one in sorted(
            OPERATIONS, key=lambda one: (list(_CALLERS).index(one.caller), one.path, one.method)
        )
    ]
    return with_part(text, "routes", "\n".join(["| route | open to |", "|---|---|", *rows]) + "\n")
