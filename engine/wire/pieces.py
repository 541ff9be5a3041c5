"""Decodes a large JSON value in pieces, because one call of msgspec cannot be interrupted.

Numbers that are read by a hook take 37 ns a byte, so 1 MiB of them would block the event loop for 38 ms.
Arrays of small arrays take 25 ns a byte and MessagePack at most 35; both are decoded whole.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec

from engine.wire.floats import json_decoder

#: The bytes of a large message that are decoded and checked in one step, where it can be divided.
PIECE_BYTES: Final = 1 << 16
#: An array is divided into its elements if its inner arrays and objects have about this many bytes each or
#: more.
_ELEMENT_BYTES: Final = 64

_any = json_decoder().decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


def decode_in_pieces(raw: bytes) -> Generator[None, None, Any]:
    """Decode JSON that msgspec has passed over as a whole, as ``floats.json_decoder`` does.

    Commas too many are not found here, nor is a wrong value whose name comes again. Raises
    msgspec.DecodeError, UnicodeDecodeError.
    """
    if len(raw) <= PIECE_BYTES:
        return _any(raw)
    raw = raw.strip(b" \t\r\n")
    containers = raw.count(b"[") + raw.count(b"{")
    if containers * _ELEMENT_BYTES > len(raw):
        return _any(raw)
    if raw.startswith(b"{"):
        members = _members(raw)
        values = yield from _each(list(members.values()))
        return dict(zip(members, values, strict=True))
    if not raw.startswith(b"["):
        return _any(raw)
    if containers == 1 and b'"' not in raw:
        return (yield from _flat(raw))
    return (yield from _each(_elements(raw)))


def _each(raws: list[msgspec.Raw]) -> Generator[None, None, list[Any]]:
    values: list[Any] = []
    room_bytes = PIECE_BYTES
    for raw in raws:
        text = bytes(raw)
        room_bytes -= len(text)
        if room_bytes < 0:
            room_bytes = PIECE_BYTES
            yield
        values.append((yield from decode_in_pieces(text)))
    return values


def _flat(raw: bytes) -> Generator[None, None, list[Any]]:
    """Decode an array of numbers and names such as ``null``: each comma separates two of them."""
    values: list[Any] = []
    at, end = 1, len(raw) - 1
    while at < end:
        cut = raw.find(b",", at + PIECE_BYTES, end)
        if cut < 0:
            cut = end
        values += _any(b"[%b]" % raw[at:cut])
        at = cut + 1
        yield
    return values
