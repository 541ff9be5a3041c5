"""Sound that is a row of frames without a file around them: MPEG audio and AAC in ADTS.

Such a frame begins with a dozen bits that are set, which any bytes may have; two in a row are believed.
"""

from __future__ import annotations

from typing import Final

_ID3_HEADER_BYTES: Final = 10
_ADTS_HEADER_BYTES: Final = 7
#: By the bits of version (2.5, none, 2, 1), in Hz; each of the next two bits halves or so.
_SAMPLE_RATES: Final = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
#: In kbit/s, by the four bits of the header less one: of layer III in version 1 and in the later ones …
_KBITS_III: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_LATER: Final = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
#: … and of layer II in version 1; in the later ones it has those of layer III.
_KBITS_II: Final = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)


def without_id3(head: bytes) -> bytes:
    """Cut an ID3v2 tag off. What is left is empty where the tag goes on behind ``head``."""
    if head[:3] != b"ID3" or len(head) < _ID3_HEADER_BYTES or max(head[6:10]) > 0x7F:
        return head
    size_bytes = 0
    for seven_bits in head[6:10]:
        size_bytes = size_bytes << 7 | seven_bits
    return head[_ID3_HEADER_BYTES + size_bytes :]


def is_mpeg_audio(head: bytes) -> bool:
    """Say whether a frame of layer II or III begins, and where it ends another one."""
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
    """Say whether a frame of AAC begins, and where it ends another one."""
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
