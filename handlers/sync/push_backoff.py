"""Order of refused pushes: after one was refused, those behind it are refused, too, for a while.

The later changes of a device build on its earlier ones, so a push must not overtake one that was refused.
Time is an argument.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from engine.commit.admission import RateLimited
from engine.commit.lane import unavailable
from engine.commit.overload import overloaded
from engine.wire.errors import SyncError

#: A push that found the database away, and may come again, goes before all others for this long.
FIRST_FOR_S: Final = 2.0

BackoffCode = Literal["overloaded", "rate_limited", "unavailable"]


class PushBackoff:
    """The back-off of one connection.

    Attributes:
        until_s: Pushes are refused until then, on the monotonic clock.
        first_key: The key of the first push that found the database away and has not come again.
    """

    __slots__ = ("_code", "first_key", "until_s")

    def __init__(self) -> None:
        self._code: BackoffCode = "overloaded"
        self.until_s = 0.0
        self.first_key: str | None = None

    def begin(self, now_s: float, wait_ms: int, code: BackoffCode) -> int:
        """Refuse pushes for ``wait_ms``, unless they are refused already. Returns the milliseconds left."""
        if now_s >= self.until_s:
            self._code = code
            self.until_s = now_s + wait_ms / 1000
        return self._left_ms(now_s)

    def extend(self, now_s: float, wait_ms: int, code: BackoffCode) -> int:
        """Refuse pushes for ``wait_ms`` at least. Returns the milliseconds left."""
        self.begin(now_s, wait_ms, code)
        self.until_s = max(self.until_s, now_s + wait_ms / 1000)
        return self._left_ms(now_s)

    def refusal(self, now_s: float) -> SyncError:
        """Return the error of a push that comes during the back-off."""
        return _REFUSALS[self._code](self._left_ms(now_s))

    def put_off(self, error: SyncError, key: str | None, now_s: float) -> None:
        """Begin a back-off if an accepted push found the database away.

        Args:
            error: The outcome of the push.
            key: Its key, so that it comes again first; None for a resolution.
            now_s: The monotonic clock.
        """
        if error.code == "unavailable":
            if self.first_key is None:
                self.first_key = key
            wait_ms = error.details.get("retry_after_ms")
            if isinstance(wait_ms, int):
                self.begin(now_s, wait_ms, "unavailable")

    def check_turn(self, key: str, now_s: float) -> None:
        """Let the push that was refused first come first, for ``FIRST_FOR_S`` after the back-off.

        Raises:
            SyncError: ``unavailable``, for any other key.
        """
        left_s = self.until_s + FIRST_FOR_S - now_s
        if key != self.first_key and left_s > 0:
            raise unavailable(math.ceil(left_s * 1000))
        self.first_key = None

    def _left_ms(self, now_s: float) -> int:
        return math.ceil(round((self.until_s - now_s) * 1000, 3))  # 400 ms are not 400.0000001


def _rate_limited(wait_ms: int) -> SyncError:
    return RateLimited(wait_ms).error()


_REFUSALS: Final = {"overloaded": overloaded, "rate_limited": _rate_limited, "unavailable": unavailable}
