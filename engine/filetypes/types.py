"""The listed file types: their names, their largest sizes, and whether content is what was declared."""

from __future__ import annotations

from typing import Final

from engine.filetypes.sniff import Found, sniff
from engine.runtime.settings import Uploads
from engine.wire.errors import SyncError

#: Other names that devices, browsers and libraries use for a type, by its one name here.
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
#: The declared type of a file whose type is detected by its content. Browsers declare nothing else for HEIC,
#: and for DOCX if no office program is installed.
UNDECLARED: Final = "application/octet-stream"
_UNDECLARED_NAMES: Final = ("", UNDECLARED, "binary/octet-stream")
_TEXT: Final = ("text/plain", "text/csv")
#: Classes of files. No video type is listed by default, so content that may be a video is not clearly a voice
#: clip.
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
        """Return the name of a type as the settings list it, ``UNDECLARED`` for a type that tells nothing.

        Raises:
            SyncError: ``unsupported_type`` if it is not listed.
        """
        if media_type in self._groups:
            return media_type
        listed = self._listed.get(_one_name(media_type))
        if listed is not None:
            return listed
        if media_type in _UNDECLARED_NAMES:
            return UNDECLARED
        taken = ", ".join(self._groups)
        raise SyncError("unsupported_type", f"{media_type[:64]!r} is not supported; use one of {taken}")

    def max_bytes(self, content_type: str) -> int:
        """Return the largest size of a type in bytes. Raises SyncError ``unsupported_type``."""
        return self._max_bytes.get(self.listed(content_type), self.largest_bytes)

    def check_empty(self, content_type: str) -> None:
        """Raise SyncError ``invalid_message`` unless a file of this type may be empty: only a text may."""
        if not _may_be_empty(content_type):
            raise SyncError("invalid_message", _empty(content_type))

    def detected_type(self, declared: str, head: bytes, size_bytes: int) -> str:
        """Detect the type of a file: the declared one, or another listed type of its class.

        If no type was declared, it is the likeliest one, as long as all possible types are of one class.

        Args:
            declared: The declared type, or ``UNDECLARED``.
            head: The first bytes of the file.
            size_bytes: The size of the whole file.

        Raises:
            SyncError: ``unsupported_type`` for content of another class, of no listed type or of no clear
                class; ``too_large`` if no type was declared and the file is too large for its class.
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
            raise SyncError("unsupported_type", f"the content is {found.name}; supported are {taken}")
        if len({self._class(name) for name in names}) > 1:
            either = " or ".join(names)
            raise SyncError(
                "unsupported_type", f"the content may be {either}: declare in filetype which it is"
            )
        likeliest = listed[0]
        max_bytes = self._max_bytes[likeliest]
        if size_bytes > max_bytes:
            shown = _SHOWN[self._groups[likeliest]]
            raise SyncError("too_large", f"{size_bytes} bytes: {shown} has {max_bytes} at most")
        return likeliest

    def _class(self, name: str) -> int:
        """Return the class of a type: of its group in the settings, or by its name if it is not listed."""
        listed = self._listed.get(name)
        if listed is not None:
            return self._groups[listed]
        return _CLASSES.get(name.partition("/")[0], _DOCUMENT)


def _may_be_empty(content_type: str) -> bool:
    return _one_name(content_type) in (*_TEXT, UNDECLARED)


def _empty(content_type: str) -> str:
    return f"the file is empty: only a text may be, and {content_type} has at least one byte"


def _one_name(media_type: str) -> str:
    return _ONE_NAME.get(media_type, media_type)
