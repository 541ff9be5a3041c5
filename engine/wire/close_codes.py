"""Close codes of a WebSocket, with their meaning and whether a device connects again by itself.

The one table of them: the server closes with no other code, and the table in ``docs/protocol.md`` is held
equal to this one by a test.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal, Self

GoodbyeReason = Literal["drain", "restart", "replaced", "revoked", "expired", "idle"]


class CloseCode(IntEnum):
    """A close code.

    Attributes:
        meaning: One clause, as in the documentation.
        reconnects: True if a device connects again by itself; False if the cause has to be removed first.
    """

    meaning: str
    reconnects: bool

    def __new__(cls, code: int, meaning: str, reconnects: Literal["reconnects", "stays away"]) -> Self:
        """Make a row of the table."""
        row = int.__new__(cls, code)
        row._value_ = code
        row.meaning = meaning
        row.reconnects = reconnects == "reconnects"
        return row

    NORMAL = 1000, "the answer to a client's own close", "reconnects"
    PROTOCOL_ERROR = 1002, "not a WebSocket frame, or one that is not masked", "reconnects"
    NOT_UTF8 = 1007, "a text frame that is not UTF-8", "reconnects"
    TOO_LARGE = 1009, "a message over `frame_bytes`", "reconnects"
    RESTARTING = (
        1012,
        "the server goes away or starts again; come back after `retry_after_ms`",
        "reconnects",
    )
    BAD_FRAMES = (
        4400,
        "a frame of the wrong kind for the subprotocol, or ten malformed messages in a row",
        "stays away",
    )
    EXPIRED = 4401, "the token has expired", "stays away"
    FORBIDDEN = 4403, "the device or its token was revoked, or its tenant removed", "stays away"
    IDLE = 4408, "the device said nothing for too long", "stays away"
    REPLACED = 4409, "a newer connection of the same device", "stays away"
    RATE_IGNORED = 4429, "the rate limit was ignored", "stays away"
    UNAVAILABLE = (
        4503,
        "the server cannot serve now; or the tenant has too many messages waiting; an `error` precedes it",
        "reconnects",
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
