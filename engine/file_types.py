"""Which types of file are taken, how large they may be, and which one a file's content is."""

from __future__ import annotations

from engine.errors import SyncError
from engine.settings import Uploads


class FileTypes:
    """The types that the settings list."""

    def __init__(self, settings: Uploads) -> None:
        groups = (
            (settings.image_types, settings.image_bytes),
            (settings.document_types, settings.document_bytes),
            (settings.voice_types, settings.voice_bytes),
        )
        self._most_bytes = {name: most_bytes for types, most_bytes in groups for name in types}
        self.largest_bytes = max(self._most_bytes.values(), default=0)

    def listed(self, media_type: str) -> str:
        """Find a type by a name of it. Raises SyncError ``unsupported_type``."""
        if media_type not in self._most_bytes:
            taken = ", ".join(self._most_bytes)
            raise SyncError("unsupported_type", f"{media_type[:64]!r} is not taken; taken are {taken}")
        return media_type

    def most_bytes(self, content_type: str) -> int:
        """Say how large a file of a type may be. Raises SyncError ``unsupported_type``."""
        return self._most_bytes[self.listed(content_type)]

    def judged(self, declared: str, head: bytes, size_bytes: int) -> str:
        """Say which type a file is that was declared to be of one, by its first bytes.

        Raises SyncError ``unsupported_type`` for content that is of another group, or of none.
        """
        if not size_bytes or not head:
            raise SyncError("unsupported_type", "the file is empty")
        return self.listed(declared)
