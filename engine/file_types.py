"""Which types of file are taken, how large they may be, and whether a file is what it was said to be."""

from __future__ import annotations

from typing import Final

from engine.errors import SyncError
from engine.file_content import recognised
from engine.settings import Uploads

#: Names that devices, browsers and libraries use, by the one that stands for all of them here.
_OTHER_NAMES: Final = {
    "application/msword": ("application/x-msword", "application/doc"),
    "application/pdf": ("application/x-pdf",),
    "application/vnd.ms-excel": ("application/excel", "application/x-excel", "application/x-msexcel"),
    "audio/3gpp": ("audio/3gp",),
    "audio/aac": ("audio/aacp", "audio/x-aac", "audio/vnd.dlna.adts"),
    "audio/amr": ("audio/amr-nb", "audio/x-amr"),
    "audio/flac": ("audio/x-flac",),
    "audio/mp4": ("audio/m4a", "audio/x-m4a", "audio/x-mp4", "audio/mp4a-latm"),
    "audio/mpeg": ("audio/mp3", "audio/mpeg3", "audio/x-mp3", "audio/x-mpeg"),
    "audio/ogg": ("audio/x-ogg",),
    "audio/wav": ("audio/wave", "audio/x-wav", "audio/vnd.wave"),
    "image/bmp": ("image/x-bmp", "image/x-ms-bmp"),
    "image/jpeg": ("image/jpg", "image/pjpeg"),
    "image/png": ("image/x-png",),
    "text/csv": ("application/csv", "text/x-csv", "text/comma-separated-values"),
}
_ONE_NAME: Final = {other: name for name, others in _OTHER_NAMES.items() for other in others}


class FileTypes:
    """The types that the settings list: images, documents and voice clips."""

    def __init__(self, settings: Uploads) -> None:
        groups = (
            (settings.image_types, settings.image_bytes),
            (settings.document_types, settings.document_bytes),
            (settings.voice_types, settings.voice_bytes),
        )
        self._groups = {listed: group for group, (types, _) in enumerate(groups) for listed in types}
        self._most_bytes = {listed: most_bytes for types, most_bytes in groups for listed in types}
        self._listed = {_one_name(listed): listed for listed in reversed(self._groups)}
        self.largest_bytes = max(self._most_bytes.values(), default=0)

    def listed(self, media_type: str) -> str:
        """Give a type as the settings spell it. Raises SyncError ``unsupported_type``."""
        if media_type in self._groups:
            return media_type
        listed = self._listed.get(_one_name(media_type))
        if listed is None:
            taken = ", ".join(self._groups)
            raise SyncError("unsupported_type", f"{media_type[:64]!r} is not taken; taken are {taken}")
        return listed

    def most_bytes(self, content_type: str) -> int:
        """Say how large a file of a type may be. Raises SyncError ``unsupported_type``."""
        return self._most_bytes[self.listed(content_type)]

    def judged(self, declared: str, head: bytes, size_bytes: int) -> str:
        """Give the type that a file is by its first bytes: the declared one, or another of its group.

        Raises SyncError ``unsupported_type`` for what is of another group, of no type listed, or empty.
        """
        declared = self.listed(declared)
        if size_bytes == 0:
            raise SyncError("unsupported_type", "the file is empty")
        found = recognised(head, whole=len(head) == size_bytes)
        names = [_one_name(media_type) for media_type in found.types]
        if _one_name(declared) in names:
            return declared
        for name in names:
            listed = self._listed.get(name)
            if listed is not None and self._groups[listed] == self._groups[declared]:
                return listed
        raise SyncError("unsupported_type", f"the content is {found.name}, not {declared}")


def _one_name(media_type: str) -> str:
    return _ONE_NAME.get(media_type, media_type)
