"""What a file is called, as ``Content-Disposition`` says it (RFC 6266); read in linear time."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

_MOST_CHARS: Final = 4096
_PARAMETER: Final = re.compile(
    r';[ \t]*+(?P<key>[^\s;="]++)[ \t]*+=[ \t]*+'
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>[^\s;"]++))[ \t]*+'
)
_ESCAPED: Final = re.compile(r"\\(.)")
_EXTENDED: Final = re.compile(r"utf-8'[^']*+'(.+)", re.IGNORECASE)


def file_name(header: str) -> str | None:
    """Read the name; where it stands there twice, that which may have any character (RFC 6266, 4.3).

    A header that is too long or malformed is as if it named nothing, whatever of it could be read.
    """
    if len(header) > _MOST_CHARS:
        return None
    header = header.rstrip("; \t")
    at = header.find(";") if ";" in header else len(header)
    values: dict[str, str] = {}
    while at < len(header):
        found = _PARAMETER.match(header, at)
        if found is None:
            return None
        quoted, token = found["quoted"], found["token"]
        value = token if quoted is None else _ESCAPED.sub(r"\1", quoted)
        values.setdefault(found["key"].lower(), value)
        at = found.end()
    extended = _EXTENDED.fullmatch(values.get("filename*", ""))
    if extended is not None:
        try:
            return unquote(extended[1], errors="strict")
        except UnicodeDecodeError:
            pass
    return values.get("filename")
