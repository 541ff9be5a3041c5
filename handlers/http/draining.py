"""Whether this process drains, and when devices may come back after one that does."""

from __future__ import annotations

import random
from typing import Final

from engine.wire.errors import SyncError

#: One worker handles so many handshakes a second with ease; devices that come back are spread over time.
_HANDSHAKES_PER_S: Final = 500


class Draining:
    """The state of the drain: ``begun`` is True once it has begun, and stays so."""

    def __init__(self) -> None:
        self.begun = False

    def check_staying(self) -> None:
        """Raise SyncError ``unavailable`` once a drain has begun."""
        if self.begun:
            raise SyncError(
                "unavailable",
                "this server stops: come back after retry_after_ms",
                retry_after_ms=jitter_ms(0),
            )


def jitter_ms(others: int) -> int:
    """Return when a device may come back, spread over time if ``others`` have to come back as well."""
    return random.randint(500, 1500 + others * 1000 // _HANDSHAKES_PER_S)
