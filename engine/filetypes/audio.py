"""Detects audio that is a sequence of frames without a container: MPEG audio and AAC in ADTS.

A frame begins with a dozen set bits, which any bytes may have by chance, so two frames in a row are required.
"""

from __future__ import annotations

from typing import Final

_ID3_HEADER_BYTES: Final = 10
_ADTS_HEADER_BYTES: Final = 7
#: Rates in Hz by the bits of the version: 0 is MPEG 2.5, 2 is MPEG 2, 3 is MPEG 1; 1 is reserved.
_SAMPLE_RATES: Final = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
#: Bit rates in kbit/s by the four bits of the header, minus one: layer III of MPEG 1, then of MPEG 2 and 2.5,
_KBITS_III: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_LATER: Final = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
#: then layer II of MPEG 1. Layer II of MPEG 2 and 2.5 has the rates of layer III.
_KBITS_II: Final = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)


def without_id3(head: bytes) -> bytes:
    """Return the head without its ID3v2 tag; empty if the tag is longer than ``head``."""
    if head[:3] != b"ID3" or len(head) < _ID3_HEADER_BYTES or max(head[6:10]) > 0x7F:
        return head
    size_bytes = 0
    for seven_bits in head[6:10]:
        size_bytes = size_bytes << 7 | seven_bits
    return head[_ID3_HEADER_BYTES + size_bytes :]


def is_mpeg_audio(head: bytes) -> bool:
    """Return True if a frame of layer II or III begins here, and another one where it ends."""
    size_bytes = _frame_bytes(head)
    if size_bytes is None:
        return False
    return len(head) < size_bytes + 4 or _frame_bytes(head[size_bytes : size_bytes + 4]) is not None


def _frame_bytes(header: bytes) -> int | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version not in _SAMPLE_RATES or layer not in (1, 2) or bits in (0, 15) or rate == 3:
        return None
    kbits = _KBITS_LATER if version != 3 else _KBITS_III if layer == 1 else _KBITS_II
    samples = 576 if version != 3 and layer == 1 else 1152
    return samples * 125 * kbits[bits - 1] // _SAMPLE_RATES[version][rate] + padding


def is_adts(head: bytes) -> bool:
    """Return True if an AAC frame begins here, and another one where it ends."""
    size_bytes = _adts_bytes(head)
    if size_bytes is None:
        return False
    behind = head[size_bytes : size_bytes + _ADTS_HEADER_BYTES]
    return len(behind) < _ADTS_HEADER_BYTES or _adts_bytes(behind) is not None


def _adts_bytes(header: bytes) -> int | None:
    if len(header) < _ADTS_HEADER_BYTES or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    size_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return size_bytes if header[2] >> 2 & 15 < 13 and size_bytes > _ADTS_HEADER_BYTES else None
