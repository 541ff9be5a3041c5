"""What is found in bytes as they pass: their SHA-256, and how they begin."""

from __future__ import annotations

import hashlib
from typing import Final

from engine.uploads.blobs import Content

_HEAD_BYTES: Final = 8192


class ContentReader:
    """Sees block after block."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._head = b""

    def take(self, block: bytes) -> None:
        """See the next block, which costs time in proportion to it."""
        self._whole.update(block)
        self._head += block[: _HEAD_BYTES - len(self._head)]

    def content(self) -> Content:
        """Say what was found."""
        return Content(self._whole.hexdigest(), self._head)
