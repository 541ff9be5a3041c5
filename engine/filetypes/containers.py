"""Detects the media type inside container formats.

Each function takes the first bytes of a file and returns media types: none if it is not this container,
several if the first bytes do not tell which.
"""

from __future__ import annotations

import re
from typing import Final

_DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_PPTX: Final = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
_HEIC: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_AVIF: Final = {b"avif", b"avis"}
_HEIF: Final = {b"mif1", b"msf1"}
_M4A: Final = {b"M4A ", b"M4B ", b"M4P "}
_MP4: Final = {b"mp41", b"mp42", b"mp71", b"isom", b"avc1", b"dash", b"MSNV", b"M4V ", b"f4v ", b"F4V "}
_MP4_VIDEO = re.compile(rb"hdlr.{8}vide", re.DOTALL)
_WEBM = re.compile(rb"\x42\x82[\x84\x04]webm")
_WEBM_VIDEO = re.compile(rb"\x86[\x80-\xff]V_")
_ENTRY = re.compile(rb"PK\x03\x04.{22}(..)(..)", re.DOTALL)
_OFFICE: Final = ((b"word/", _DOCX), (b"xl/", _XLSX), (b"ppt/", _PPTX))
_OFFICE_BEGINS: Final = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"xl/", b"ppt/")
_OLE_SECTOR_BYTES: Final = 512


def iso_media(head: bytes) -> tuple[str, ...]:
    """Detect MP4 and its relatives (HEIC, M4A, 3GPP, QuickTime) by their brands."""
    if head[4:8] != b"ftyp":
        return ()
    end = min(int.from_bytes(head[:4]), len(head))
    major = head[8:12]
    brands = {head[at : at + 4] for at in (8, *range(16, end - 3, 4))}
    if brands & _AVIF:
        return ("image/avif",)
    if brands & _HEIC:
        return ("image/heic", "image/heif")
    if major in _HEIF:
        return ("image/heif",)
    if major == b"qt  ":
        return ("video/quicktime",)
    if brands & _M4A:
        return ("audio/mp4",)
    if _MP4_VIDEO.search(head):
        return ("video/mp4", "video/3gpp")
    if major.startswith((b"3gp", b"3g2")):
        return ("audio/3gpp", "audio/mp4", "video/3gpp", "video/mp4")
    if brands & _MP4 or major.startswith(b"iso"):
        return ("audio/mp4", "video/mp4", "audio/3gpp", "video/3gpp")
    return ("application/mp4",)


def riff(head: bytes) -> tuple[str, ...]:
    """Detect WebP, WAV and AVI."""
    if head[:4] != b"RIFF":
        return ()
    if head[8:15] == b"WEBPVP8":
        return ("image/webp",)
    return {b"WAVE": ("audio/wav",), b"AVI ": ("video/x-msvideo",)}.get(head[8:12], ())


def ogg(head: bytes) -> tuple[str, ...]:
    """Detect Ogg by the first packet of its first stream."""
    if head[:4] != b"OggS" or len(head) < 28:
        return ()
    packet = head[27 + head[26] :]
    if packet.startswith(b"OpusHead"):
        return ("audio/ogg", "audio/opus")
    if packet.startswith((b"\x01vorbis", b"Speex   ", b"\x7fFLAC")):
        return ("audio/ogg",)
    if packet.startswith(b"\x80theora"):
        return ("video/ogg",)
    return ()


def ebml(head: bytes) -> tuple[str, ...]:
    """Detect WebM and Matroska by the name in their header."""
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return ()
    if _WEBM.search(head, 0, 64):
        return ("video/webm",) if _WEBM_VIDEO.search(head) else ("audio/webm", "video/webm")
    return ("video/x-matroska", "audio/x-matroska")


def zipped(head: bytes) -> tuple[str, ...]:
    """Detect Office documents and other ZIP files by the names of the first files in them."""
    if head[:4] != b"PK\x03\x04":
        return ()
    names: list[bytes] = []
    for entry in _ENTRY.finditer(head):
        name_bytes = int.from_bytes(entry[1], "little")
        names.append(head[entry.end() : entry.end() + name_bytes])
    if not names:
        return ("application/zip",)
    if names[0] == b"mimetype":
        said = re.match(rb"application/[a-z0-9.+-]{1,80}", head[38:])
        return (said[0].decode(),) if said else ("application/zip",)
    # An archive may contain an unpacked document; only the first name tells what the archive itself is.
    if names[0].startswith(_OFFICE_BEGINS):
        for name in names:
            for folder, media_type in _OFFICE:
                if name.startswith(folder):
                    return (media_type,)
        return (_DOCX, _XLSX, _PPTX)
    return ("application/zip",)


def ole(head: bytes) -> tuple[str, ...]:
    """Detect Word and Excel files of before 2007 by their first sector or the names of their streams."""
    if head[:8] != b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        return ()
    first = head[_OLE_SECTOR_BYTES : _OLE_SECTOR_BYTES + 4]
    if first[:2] == b"\xec\xa5" or "WordDocument".encode("utf-16-le") in head:
        return ("application/msword",)
    if first == b"\x09\x08\x10\x00" or any(
        name.encode("utf-16-le") + b"\0\0" in head for name in ("Workbook", "Book")
    ):
        return ("application/vnd.ms-excel",)
    return ("application/msword", "application/vnd.ms-excel")
