"""Which types of file are taken, how large they may be, and whether a file is what it was said to be."""

from __future__ import annotations

from typing import Final

from engine.filetypes.sniff import Found, sniff
from engine.runtime.settings import Uploads
from engine.wire.errors import SyncError

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
#: The type of a file whose content alone is to tell it. Browsers name no other for HEIC, nor for DOCX if no
#: office program is installed.
UNDECLARED: Final = "application/octet-stream"
_UNDECLARED_NAMES: Final = ("", UNDECLARED, "binary/octet-stream")
_TEXT: Final = ("text/plain", "text/csv")
#: Classes of files. A video is of none that is listed by default: what may be one is no voice clip for sure.
_IMAGE, _DOCUMENT, _VOICE, _VIDEO = range(4)
_CLASSES: Final = {"image": _IMAGE, "audio": _VOICE, "video": _VIDEO}
_SHOWN: Final = ("an image", "a document", "a voice clip")


class FileTypes:
    """The types that the settings list: images, documents and voice clips."""

    def __init__(self, settings: Uploads) -> None:
        groups = (
            (settings.image_types, settings.image_bytes),
            (settings.document_types, settings.document_bytes),
            (settings.voice_types, settings.voice_bytes),
        )
        self._groups = {listed: group for group, (types, _) in enumerate(groups) for listed in types}
        self._max_bytes = {listed: max_bytes for types, max_bytes in groups for listed in types}
        self._listed = {_one_name(listed): listed for listed in reversed(self._groups)}
        self.largest_bytes = max(self._max_bytes.values(), default=0)

    def listed(self, media_type: str) -> str:
        """Return a type as the settings spell it, ``UNDECLARED`` for one that says nothing.

        Raises SyncError ``unsupported_type``.
        """
        if media_type in self._groups:
            return media_type
        listed = self._listed.get(_one_name(media_type))
        if listed is not None:
            return listed
        if media_type in _UNDECLARED_NAMES:
            return UNDECLARED
        taken = ", ".join(self._groups)
        raise SyncError("unsupported_type", f"{media_type[:64]!r} is not taken; taken are {taken}")

    def max_bytes(self, content_type: str) -> int:
        """Return how large a file of a type may be. Raises SyncError ``unsupported_type``."""
        return self._max_bytes.get(self.listed(content_type), self.largest_bytes)

    def check_empty(self, content_type: str) -> None:
        """Raise SyncError ``invalid_message`` for a type of which no file is empty."""
        if not _may_be_empty(content_type):
            raise SyncError("invalid_message", _empty(content_type))

    def detected_type(self, declared: str, head: bytes, size_bytes: int) -> str:
        """Return the type that a file is by its first bytes: the declared one, or another of its class.

        If no type was declared, it is the likeliest one, provided that the content can be of one class only.

        Raises SyncError ``unsupported_type`` for content of another class, of no listed type or of no clear
        class, ``too_large`` where the class that was not declared takes no file of that size.
        """
        declared = self.listed(declared)
        if size_bytes == 0 and not _may_be_empty(declared):
            raise SyncError("unsupported_type", _empty(declared))
        found = sniff(head, whole=len(head) == size_bytes)
        if declared not in self._groups:
            return self._undeclared(found, size_bytes)
        names = [_one_name(media_type) for media_type in found.types]
        if _one_name(declared) in names:
            return declared
        for name in names:
            listed = self._listed.get(name)
            if listed is not None and self._groups[listed] == self._groups[declared]:
                return listed
        raise SyncError("unsupported_type", f"the content is {found.name}, not {declared}")

    def _undeclared(self, found: Found, size_bytes: int) -> str:
        names = [_one_name(media_type) for media_type in found.types]
        listed = [self._listed[name] for name in names if name in self._listed]
        if not listed:
            taken = ", ".join(self._groups)
            raise SyncError("unsupported_type", f"the content is {found.name}; taken are {taken}")
        if len({self._class(name) for name in names}) > 1:
            either = " or ".join(names)
            raise SyncError("unsupported_type", f"the content may be {either}: say in filetype which it is")
        likeliest = listed[0]
        max_bytes = self._max_bytes[likeliest]
        if size_bytes > max_bytes:
            shown = _SHOWN[self._groups[likeliest]]
            raise SyncError("too_large", f"{size_bytes} bytes: {shown} has {max_bytes} at most")
        return likeliest

    def _class(self, name: str) -> int:
        """Return the class of a type: that of the settings, by its name where they do not list it."""
        listed = self._listed.get(name)
        if listed is not None:
            return self._groups[listed]
        return _CLASSES.get(name.partition("/")[0], _DOCUMENT)


def _may_be_empty(content_type: str) -> bool:
    return _one_name(content_type) in (*_TEXT, UNDECLARED)


def _empty(content_type: str) -> str:
    return f"the file is empty, which only a text can be: {content_type} has one byte at least"


def _one_name(media_type: str) -> str:
    return _ONE_NAME.get(media_type, media_type)
