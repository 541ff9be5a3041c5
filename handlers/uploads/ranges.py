"""The part of a file that a request asks for (RFC 9110, 13 and 14). Pure.

A request for anything but one range of bytes gets the whole file: a server may ignore ranges, and few clients
ask for several at once.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from handlers.http.headers import elements

_SINGLE: Final = re.compile(r"([0-9]*)-([0-9]*)", re.ASCII)
#: 18 digits are beyond any file; longer numbers are not parsed.
_DIGITS: Final = 18


class Part(NamedTuple):
    """``count_bytes`` of a file from ``first_byte`` on."""

    first_byte: int
    count_bytes: int

    def content_range(self, size_bytes: int) -> str:
        """Format the header ``Content-Range``."""
        return f"bytes {self.first_byte}-{self.first_byte + self.count_bytes - 1}/{size_bytes}"


def wanted_part(
    wanted: str, only_if: str | None, entity_tag: str, size_bytes: int
) -> Part | Literal["whole", "unsatisfiable"]:
    """Return the part that ``Range`` and ``If-Range`` ask for.

    Args:
        wanted: The header ``Range``, empty if there is none.
        only_if: The header ``If-Range``, None if there is none.
        entity_tag: The file's.
        size_bytes: The file's.
    """
    unit, _, ranges = wanted.partition("=")
    named = elements(ranges)
    if unit.strip(" \t").lower() != "bytes" or len(named) != 1:
        return "whole"
    if only_if is not None and only_if.strip(" \t") != entity_tag:
        return "whole"
    single = _SINGLE.fullmatch(named[0])
    if single is None or not (single[1] or single[2]):
        return "whole"
    if not single[1]:
        count_bytes = min(_number(single[2]), size_bytes)
        if not _number(single[2]):
            return "unsatisfiable"
        return Part(size_bytes - count_bytes, count_bytes) if size_bytes else "whole"
    first_byte = _number(single[1])
    last_byte = _number(single[2]) if single[2] else size_bytes - 1
    if single[2] and last_byte < first_byte:
        return "whole"
    if first_byte >= size_bytes:
        return "unsatisfiable"
    return Part(first_byte, min(last_byte, size_bytes - 1) - first_byte + 1)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _DIGITS else 10**_DIGITS
