"""Whether this process goes away, and how long those who must come back are told to wait."""

from __future__ import annotations

import random
from typing import Final

from engine.wire.errors import SyncError

#: Handshakes that one worker takes easily in a second; those who must come back are spread over time.
_HANDSHAKES_PER_S: Final = 500


class Draining:
    """``begun`` once a drain has begun; nothing ends it."""

    def __init__(self) -> None:
        self.begun = False

    def check_staying(self) -> None:
        """Raise SyncError ``unavailable`` once a drain has begun."""
        if self.begun:
            raise SyncError("unavailable", "this server is going away", retry_after_ms=jitter_ms(0))


def jitter_ms(others: int) -> int:
    """Return after how long to come back, so that ``others`` who have to as well do not come at once."""
    return random.randint(500, 1500 + others * 1000 // _HANDSHAKES_PER_S)
