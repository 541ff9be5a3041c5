"""Close codes of a WebSocket, with their meaning and when a device connects again by itself.

The one table of them: the server closes with no other code, and the table in ``docs/protocol.md`` is held
equal to this one by a test.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal, Self

GoodbyeReason = Literal["drain", "restart", "replaced", "revoked", "expired", "idle"]
#: ``once``: as ``no`` if it comes again within ten minutes. ``no``: only when a person asks for it, after the
#: cause was removed.
Again = Literal["yes", "with a fresh token", "after a minute", "once", "no"]


class CloseCode(IntEnum):
    """A close code.

    Attributes:
        meaning: One clause, as in the documentation.
        again: Whether a device connects again by itself, and after what.
    """

    meaning: str
    again: Again

    def __new__(cls, code: int, meaning: str, again: Again) -> Self:
        """Make a row of the table."""
        row = int.__new__(cls, code)
        row._value_ = code
        row.meaning = meaning
        row.again = again
        return row

    NORMAL = 1000, "the answer to a client's own close", "yes"
    PROTOCOL_ERROR = 1002, "not a WebSocket frame, or one that is not masked", "yes"
    NOT_UTF8 = 1007, "a text frame that is not UTF-8", "yes"
    TOO_LARGE = 1009, "a message over `frame_bytes`", "yes"
    RESTARTING = (
        1012,
        "the server goes away or starts again; come back after `retry_after_ms`",
        "yes",
    )
    BAD_FRAMES = (
        4400,
        "a frame of the wrong kind for the subprotocol, or ten malformed messages in a row",
        "no",
    )
    EXPIRED = 4401, "the token has expired", "with a fresh token"
    FORBIDDEN = 4403, "the device or its token was revoked, or its tenant removed", "no"
    IDLE = (
        4408,
        "no message of the device for too long, pings do not count; or no frame before its next connection",
        "yes",
    )
    REPLACED = 4409, "a newer connection of the same device, on which it sent a frame", "once"
    RATE_IGNORED = (
        4429,
        "more than 100 messages in a row came in spite of `rate_limited`, or pings above the rate",
        "after a minute",
    )
    UNAVAILABLE = (
        4503,
        "the server cannot serve now; or the tenant has too many messages waiting; an `error` precedes it",
        "yes",
    )


#: Codes that no close frame may carry (RFC 6455, 7.4.1), of those that the library takes.
_RESERVED: Final = frozenset((1004, 1005, 1006, 1015))


def confirming(code: int) -> int:
    """Return the code that confirms a client's close: its own, 1002 if no close frame may carry that.

    Args:
        code: 0 if the client sent none.
    """
    if code in _RESERVED or code >= 5000:
        return CloseCode.PROTOCOL_ERROR
    return code or CloseCode.NORMAL


#: The close code that follows each reason of a ``goodbye``.
GOODBYES: Final[dict[GoodbyeReason, CloseCode]] = {
    "drain": CloseCode.RESTARTING,
    "restart": CloseCode.RESTARTING,
    "replaced": CloseCode.REPLACED,
    "revoked": CloseCode.FORBIDDEN,
    "expired": CloseCode.EXPIRED,
    "idle": CloseCode.IDLE,
}
