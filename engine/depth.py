"""How deep a message nests, told from its bytes, before anything recurses into it.

Both checks take time in proportion to the frame, whatever it holds. What is no message at all may pass:
the decoder refuses it.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 32

#: Possessive, and an unterminated string matches too: each byte is looked at once.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")


def json_too_deep(frame: bytes) -> bool:
    """Whether JSON nests deeper than ``MAX_DEPTH``, or its brackets do not match."""
    if frame.count(b"{") + frame.count(b"[") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", frame).translate(_TO_SQUARE, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # the innermost pairs: one round a level
    return bool(brackets)


_CONTAINERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])

#: Bytes of a whole value by its first byte; 0 where its length follows or it is a container.
_WHOLE = bytearray([1]) * 256
_WHOLE[0x80:0xA0] = bytes(32)
_WHOLE[0xA0:0xC0] = range(1, 33)
_WHOLE[0xC4:0xCA] = bytes(6)
_WHOLE[0xCA:0xD9] = (5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18)
_WHOLE[0xD9:0xE0] = bytes(7)
#: Bytes of the length that follows the first byte.
_LENGTH = {
    **dict(zip(range(0xC4, 0xCA), (1, 2, 4, 1, 2, 4), strict=True)),  # bin, ext
    **dict(zip(range(0xD9, 0xE0), (1, 2, 4, 2, 4, 2, 4), strict=True)),  # str, array, map
}
_EXT = frozenset(range(0xC7, 0xCA))


def msgpack_too_deep(frame: bytes) -> bool:
    """Whether MessagePack nests deeper than ``MAX_DEPTH``."""
    if len(frame) - len(frame.translate(None, _CONTAINERS)) <= MAX_DEPTH:
        return False
    whole, end = _WHOLE, len(frame)
    around: list[int] = []  # of each open container, how many values follow the inner one
    left, at = 1, 0
    while at < end:
        first = frame[at]
        left -= 1
        if size_bytes := whole[first]:
            at += size_bytes
        elif first < 0xA0 or first >= 0xDC:
            if len(around) == MAX_DEPTH:
                return True
            count, at = (first & 0x0F, at + 1) if first < 0xA0 else _length(frame, at)
            around.append(left)
            left = count * 2 if first < 0x90 or first >= 0xDE else count
        else:
            size_bytes, at = _length(frame, at)
            at += size_bytes + (first in _EXT)
        while not left:
            if not around:
                return False
            left = around.pop()
    return False


def _length(frame: bytes, at: int) -> tuple[int, int]:
    """Read the length behind the first byte, and where what it counts begins."""
    begin = at + 1 + _LENGTH[frame[at]]
    return int.from_bytes(frame[at + 1 : begin]), begin
