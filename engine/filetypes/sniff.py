"""Detects a file's type by its first bytes: by own rules where types share a signature, else by a library."""

from __future__ import annotations

import codecs
import re
from typing import Final

import msgspec
import puremagic

from engine.filetypes.audio import is_adts, is_mpeg_audio, without_id3
from engine.filetypes.containers import ebml, iso_media, ogg, ole, riff, zipped

#: The library's signatures by their offset and first bytes. Shorter ones occur by chance, and one with a
#: backslash is a mistake of the library: an escape that was not decoded.
_KEY_BYTES: Final = 3
_SIGNATURES: Final[dict[tuple[int, bytes], list[puremagic.PureMagic]]] = {}
for _signature in puremagic.magic_header_array:
    _begins = _signature.byte_match[:_KEY_BYTES]
    if len(_begins) == _KEY_BYTES and any(_begins) and b"\\" not in _signature.byte_match:
        _SIGNATURES.setdefault((_signature.offset, _begins), []).append(_signature)
_STARTS: Final = sorted({start for start, _ in _SIGNATURES})
#: Beginnings that the own rules cover.
_COVERED: Final = (
    b"RIFF",
    b"OggS",
    b"\x1aE\xdf\xa3",
    b"PK\x03\x04",
    b"\xd0\xcf\x11\xe0",
    b"\xff",
    b"ID3",
)
_BLANK: Final = b"\xef\xbb\xbf \t\r\n\f"
_SVG = re.compile(rb"<(?:[a-z0-9]+:)?svg[\s>]", re.IGNORECASE)
_HTML = re.compile(
    rb"<(?:!doctype\s+html|html|head|title|body|script|iframe|style|meta|link|table|div|font|img|h1|br|p|a|b)"
    rb"[\s/>]|<!--|<\?php",
    re.IGNORECASE,
)
#: Bytes that no text has in UTF-8 or in another encoding that extends ASCII (code pages of Windows and DOS,
#: Shift-JIS, GB 18030, Big5, EUC). Each byte above 0x7F is part of a letter in one of them.
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
#: Ctrl-Z, which programs of DOS and CP/M write at the end of a text.
_END_OF_TEXT: Final = b"\x1a"
_TEXT: Final = ("text/plain", "text/csv")


class Found(msgspec.Struct, frozen=True):
    """The possible media types of content, the likeliest first; ``name`` is for error messages."""

    types: tuple[str, ...]
    name: str


_UNKNOWN: Final = Found((), "of no known type")


def sniff(head: bytes, *, whole: bool) -> Found:
    """Detect the type of content.

    Args:
        head: The first bytes.
        whole: True if they are all bytes of the content.
    """
    if whole and not head:
        return Found(_TEXT, "empty")
    types = _binary(head, whole=whole) or _text(head, whole=whole)
    return Found(types, types[0]) if types else _by_signature(head)


def _binary(head: bytes, *, whole: bool) -> tuple[str, ...]:
    """Detect formats for which a signature alone is not enough."""
    for look in (iso_media, riff, ogg, ebml, zipped, ole):
        types = look(head)
        if types:
            return types
    if _is_jpeg(head):
        return ("image/jpeg",)
    if head.startswith((b"#!AMR\n", b"#!AMR_MC1.0\n")):
        return ("audio/amr",)
    if head.startswith((b"#!AMR-WB\n", b"#!AMR-WB_MC1.0\n")):
        return ("audio/amr-wb", "audio/amr")
    if head.lstrip(_BLANK).startswith(b"%PDF-"):
        return ("application/pdf",)
    sound = without_id3(head)
    if is_adts(sound):
        return ("audio/aac",)
    if is_mpeg_audio(sound) or (not sound and not whole):
        return ("audio/mpeg",)
    return ()


def _is_jpeg(head: bytes) -> bool:
    """Return True if a JPEG begins here, and a second segment follows its first one."""
    if head[:3] != b"\xff\xd8\xff" or len(head) < 6:
        return False
    end = 4 + int.from_bytes(head[4:6])
    return end >= len(head) or head[end] == 0xFF


def _text(head: bytes, *, whole: bool) -> tuple[str, ...]:
    """Detect text, and tell it from code and documents that are text as well."""
    text = _in_ascii(head, whole=whole)
    if text is None:
        return ()
    begins = text.lstrip(_BLANK)
    if begins.startswith(b"<?xml") or _SVG.match(begins):
        return ("image/svg+xml",) if _SVG.search(begins) else ("application/xml", "text/xml")
    if _HTML.match(begins):
        return ("text/html",)
    if begins.startswith((b"#!/", b"#! /")):
        return ("application/x-sh",)
    if begins.startswith(b"{\\rtf"):
        return ("application/rtf",)
    if begins.startswith(b"%!PS"):
        return ("application/postscript",)
    if whole:
        text = text.rstrip(_END_OF_TEXT)
    return () if _NO_TEXT.search(text) else _TEXT


def _in_ascii(head: bytes, *, whole: bool) -> bytes | None:
    """Return UTF-16 as UTF-8, None if it is invalid, and all else unchanged, since it extends ASCII.

    Excel's "Unicode text" is UTF-16. Without a byte order mark, UTF-16 cannot be detected.
    """
    if not head.startswith(_UTF_16):
        return head
    try:
        return codecs.getincrementaldecoder("utf-16")().decode(head, final=whole).encode()
    except UnicodeDecodeError:
        return None


def _by_signature(head: bytes) -> Found:
    """Return the types of the library's longest matching signature."""
    if head.startswith(_COVERED) or head[4:8] == b"ftyp":
        return _UNKNOWN
    if head.startswith(b"MZ"):
        return Found((), "an executable of Windows")
    known = [
        signature
        for start in _STARTS
        for signature in _SIGNATURES.get((start, head[start : start + _KEY_BYTES]), ())
        if head.startswith(signature.byte_match, start)
    ]
    if not known:
        return _UNKNOWN
    longest = max(len(signature.byte_match) for signature in known)
    best = [signature for signature in known if len(signature.byte_match) == longest]
    types = tuple(dict.fromkeys(signature.mime_type.lower() for signature in best if signature.mime_type))
    return Found(types, types[0] if types else best[0].name)
