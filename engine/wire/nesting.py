"""How deep a message nests and how many objects and arrays it has, before anything recurses into it.

Both checks take time in proportion to the frame's length, whatever its content. A frame that is no message
may pass: the decoder refuses it.

For MessagePack that decodes, the depth is taken from its decoded values: this is five times as fast as
reading its bytes value by value. msgspec itself refuses more than about 1,000 levels. If one value does not
decode, only its item is at fault, so then the bytes are read.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Generator
from itertools import accumulate, chain
from typing import Any, Final

import msgspec

from engine.wire.steps import run_steps

MAX_DEPTH: Final = 32
#: Each array and object costs 0.3 µs until it is stored, even an empty one, which is one byte of MessagePack.
#: So each counts as some bytes of the message. The densest that devices send are pairs of small integers,
#: three bytes of MessagePack, and objects of one member, four bytes.
ARRAY_BYTES: Final = 3
OBJECT_BYTES: Final = 4
#: The counted bytes may exceed the message's length by this much.
FREE_BYTES: Final = 3000

#: Possessive, and an unterminated string matches, too: so each byte is read once.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_NOT_MARKS = _NOT_BRACKETS.replace(b'"', b"")
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
#: One up or one down, as signed bytes.
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
#: Frames up to this size nearly always have few brackets.
_SMALL_BYTES: Final = 4096
#: Levels that are removed together: ten times as fast as counting, for messages that are not deep.
_ROUNDS = 6


TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH}"
TOO_DENSE: Final = (
    f"too many objects and arrays: {OBJECT_BYTES} bytes for each object and {ARRAY_BYTES} for each array may"
    f" pass the message's bytes by {FREE_BYTES}"
)


def _too_dense(containers_bytes: int, frame: bytes) -> bool:
    return containers_bytes > len(frame) + FREE_BYTES


def _brackets(frame: bytes) -> int:
    """Count opening brackets by removing them: half the cost of counting if there are few."""
    return len(frame) - len(frame.replace(b"{", b"").replace(b"[", b""))


def json_nesting_fault(frame: bytes) -> str | None:
    """Return the fault of JSON that nests too deep or has too many objects and arrays, None if it is fine."""
    if len(frame) <= _SMALL_BYTES and _brackets(frame) <= MAX_DEPTH:
        return None
    objects, arrays = frame.count(b"{"), frame.count(b"[")
    if objects + arrays <= MAX_DEPTH:
        return None
    if b"\\" in frame:
        brackets = _STRING.sub(b"", frame).translate(None, _NOT_BRACKETS)
    else:  # removing two quotes in a row leaves the inside of texts inside; hardly any text is left then
        brackets = frame.translate(None, _NOT_MARKS).replace(b'""', b"")
        if b'"' in brackets:
            brackets = _STRING.sub(b"", brackets)
    if _too_dense(objects * OBJECT_BYTES + arrays * ARRAY_BYTES, frame):  # some may be inside texts
        objects, arrays = brackets.count(b"{"), brackets.count(b"[")
        if _too_dense(objects * OBJECT_BYTES + arrays * ARRAY_BYTES, frame):
            return TOO_DENSE
    brackets = brackets.translate(_TO_SQUARE)
    for _ in range(_ROUNDS):
        if not brackets:
            return None
        brackets = brackets.replace(b"[]", b"")  # the innermost pairs: one round a level
    steps = array("b", brackets.translate(_STEPS))
    return None if max(accumulate(steps), default=0) <= MAX_DEPTH - _ROUNDS else TOO_DEEP


_NODES = frozenset((dict, list))
_LISTS, _DICTS = frozenset((list,)), frozenset((dict,))
_OBJECTS = bytes([*range(0x80, 0x90), 0xDE, 0xDF])
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
#: Values of one byte each that are no containers.
_SCALAR = re.compile(rb"[\x00-\x7f\xa0\xc0\xc2\xc3\xe0-\xff]++")
_SCALARS = frozenset(byte for byte in range(256) if _SCALAR.match(bytes((byte,))))
#: Rows of scalars longer than this are skipped at once; the usual records have no longer ones.
_RUN = 8

#: Values that are read in one step: 3 ms.
_AT_ONCE = 1 << 13

_decode = msgspec.msgpack.Decoder().decode


def msgpack_nesting_fault(frame: bytes) -> str | None:
    """Return the fault of MessagePack as ``json_nesting_fault`` does for JSON."""
    return run_steps(msgpack_nesting_steps(frame))


def msgpack_nesting_steps(frame: bytes) -> Generator[None, None, str | None]:
    """Do the same in steps. The longest step, decoding 1 MiB, takes 30 ms."""
    perhaps = len(frame) - len(frame.translate(None, _CONTAINERS))  # a byte of a text may look like one
    if perhaps <= MAX_DEPTH:
        return None
    objects = len(frame) - len(frame.translate(None, _OBJECTS))
    if _too_dense(objects * OBJECT_BYTES + (perhaps - objects) * ARRAY_BYTES, frame):
        return (yield from _fault_of_bytes(frame))
    try:
        value = _decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return (yield from _fault_of_bytes(frame))
    yield
    return TOO_DEEP if (yield from _value_too_deep(value)) else None


def _value_too_deep(value: Any) -> Generator[None, None, bool]:
    """Return whether a value nests too deep, level by level. Names of members are texts and do not count."""
    inner = [value]
    for _ in range(MAX_DEPTH + 1):
        kinds = {*map(type, inner)}
        if _NODES.isdisjoint(kinds):
            return False
        if kinds == _LISTS:  # as in many pairs: of these each pass counts
            inner = list(chain.from_iterable(inner))
        elif kinds == _DICTS:
            inner = list(chain.from_iterable(map(dict.values, inner)))
        else:
            level = [node for node in inner if type(node) in _NODES]
            inner = list(
                chain.from_iterable([node if type(node) is list else node.values() for node in level])
            )
        if len(inner) > _AT_ONCE:
            yield
    return True


def _fault_of_bytes(frame: bytes) -> Generator[None, None, str | None]:
    whole, end = _WHOLE, len(frame)
    around: list[int] = []  # of each open container, how many values follow the inner one
    left, at = 1, 0
    room_bytes = end + FREE_BYTES
    looked = 0
    while at < end:
        looked += 1
        if not looked % _AT_ONCE:
            yield
        first = frame[at]
        if left > _RUN and first in _SCALARS:
            run = _SCALAR.match(frame, at, at + left)
            assert run is not None
            left -= run.end() - at
            at = run.end()
        else:
            left -= 1
            if size_bytes := whole[first]:
                at += size_bytes
            elif first < 0xA0 or first >= 0xDC:
                if len(around) == MAX_DEPTH:
                    return TOO_DEEP
                count, at = (first & 0x0F, at + 1) if first < 0xA0 else _length(frame, at)
                around.append(left)
                if first < 0x90 or first >= 0xDE:
                    left, room_bytes = count * 2, room_bytes - OBJECT_BYTES
                else:
                    left, room_bytes = count, room_bytes - ARRAY_BYTES
                if room_bytes < 0:
                    return TOO_DENSE
            else:
                size_bytes, at = _length(frame, at)
                at += size_bytes + (first in _EXT)
        while not left:
            if not around:
                return None
            left = around.pop()
    return None


def _length(frame: bytes, at: int) -> tuple[int, int]:
    """Return the length after the first byte, and the position after it."""
    begin = at + 1 + _LENGTH[frame[at]]
    return int.from_bytes(frame[at + 1 : begin]), begin
