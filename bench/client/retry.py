"""When to come back: what a close code asks for, and how long to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

#: again: connect again, the later the more often it failed · token: ask for a fresh token first · wait: be
#: quiet for a minute first · stop: nothing that a device can do by itself helps.
Remedy = Literal["again", "token", "wait", "stop"]

#: What a goodbye asks for where the close frame behind it was lost.
_BY_REASON: Final[dict[str, Remedy]] = {"replaced": "stop", "revoked": "stop", "expired": "token"}
_BY_CODE: Final[dict[int, Remedy]] = {4401: "token", 4408: "again", 4429: "wait"}

#: After it the whole of a minute's worth of messages may be sent again.
QUIET_S: Final = 60.0


def remedy(code: int | None, reason: str | None = None) -> Remedy:
    """Return what to do after a close with ``code``, None if it was cut, and the ``reason`` of a goodbye.

    4408 is put right by sending heartbeats, which this client does: that it came nevertheless says that the
    device slept. Two devices that share an id would replace each other (4409) for ever.
    """
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if code is None or not 4400 <= code < 4500:
        return "again"
    return _BY_CODE.get(code, "stop")


class Backoff:
    """Exponential, with full jitter: devices that were cut off together do not come back together."""

    FIRST_S: Final = 0.5
    LONGEST_S: Final = 60.0
    _MOST_DOUBLINGS: Final = 16

    def __init__(self, unit: Callable[[], float]) -> None:
        self._unit = unit
        self._failures = 0

    def failed(self, retry_after_ms: int = 0) -> float:
        """Count a failure and give the seconds to wait: at least what the server asked for."""
        most_s: float = min(self.LONGEST_S, self.FIRST_S * 2**self._failures)
        self._failures = min(self._failures + 1, self._MOST_DOUBLINGS)
        return retry_after_ms / 1000 + self._unit() * most_s

    def worked(self) -> None:
        """Start anew."""
        self._failures = 0
