"""A cost: one thing that a client or a tenant can take, with its limit."""

from __future__ import annotations

from typing import Literal, NamedTuple

from engine.wire.close_codes import CloseCode

#: Whose taking is limited. ``worker`` is for all clients of one process together.
Owner = Literal["connection", "address", "device", "token", "tenant", "worker"]
#: What happens where no error is told: it waits for its turn, its connection is cut, its oldest is forgotten,
#: it is left out and counted, or it ends by itself.
Silent = Literal["waits", "cut off", "forgotten", "left out", "expires"]


class Fixed(NamedTuple):
    """A limit that no setting changes."""

    value: float
    unit: str


class Cost(NamedTuple):
    """One thing that a client can take.

    Attributes:
        taken: The thing.
        owner: Whose.
        limit: Keys of settings, or fixed numbers.
        answer: Codes of errors, close codes, or what happens silently.
        metric: A metric that shows it, with the value of its label if it has one.
    """

    taken: str
    owner: Owner
    limit: tuple[str | Fixed, ...]
    answer: tuple[str | CloseCode, ...]
    metric: str


def size(value_bytes: float) -> Fixed:
    """Make a fixed limit in bytes."""
    return Fixed(value_bytes, "bytes")
