"""The SHA-256 and the first bytes of a stream of blocks."""

from __future__ import annotations

import hashlib
from typing import Final

from engine.uploads.blobs import Content

_HEAD_BYTES: Final = 8192


class ContentReader:
    """Collects the hash and the head of blocks."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._head = b""

    def take(self, block: bytes) -> None:
        """Add the next block. It costs the time of hashing it."""
        self._sha256.update(block)
        self._head += block[: _HEAD_BYTES - len(self._head)]

    def content(self) -> Content:
        """Return the hash and head of all blocks so far."""
        return Content(self._sha256.hexdigest(), self._head)
