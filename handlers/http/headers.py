"""Parses header fields by RFC 9110: lists over several lines, quality values, any case, blanks. Pure.

Every pattern runs in linear time, whatever a client sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import unquote

from aiohttp import web

from engine.wire.codec import JSON, MSGPACK
from engine.wire.errors import SyncError

#: A quoted string (RFC 9110, 5.6.4). One without an end goes to the end of the line, so that it is read once.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)'
#: An element of a list (RFC 9110, 5.6.1).
_ELEMENT: Final = re.compile(rf'(?:[^,"]++|{_QUOTED})++', re.DOTALL)
_QUOTES: Final = re.compile(_QUOTED, re.DOTALL)
#: RFC 9110, 12.4.2.
_WEIGHT: Final = re.compile(r";[ \t]*+[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*+(?:;|\Z)")
_HAS_WEIGHT: Final = re.compile(r";[ \t]*+[qQ]=")
#: Tags are compared weakly.
_ENTITY_TAG: Final = re.compile(r'(?:W/)?("[^"]*")', re.ASCII)
#: Names of one coding (RFC 9110, 8.4.1.3).
_GZIP: Final = ("gzip", "x-gzip")
_MOST_CHARS: Final = 255
_MOST_NAME_CHARS: Final = 4096
_PARAMETER: Final = re.compile(
    r';[ \t]*+(?P<key>[^\s;="]++)[ \t]*+=[ \t]*+'
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>[^\s;"]++))[ \t]*+'
)
_ESCAPED: Final = re.compile(r"\\(.)")
_EXTENDED: Final = re.compile(r"utf-8'[^']*+'(.+)", re.IGNORECASE)


class Headers(Protocol):
    """The headers of a request."""

    def getall(self, key: str, default: tuple[str, ...], /) -> Sequence[str]:
        """Return the values of all lines of a name, in their order."""


def combined(headers: Headers, name: str) -> str:
    """Return all lines of a header as one: a list may be split between its elements (RFC 9110, 5.3)."""
    lines = headers.getall(name, ())
    return lines[0] if len(lines) == 1 else ", ".join(lines)


def elements(field: str) -> list[str]:
    """Split a list. Empty elements are left out."""
    return [element for found in _ELEMENT.findall(field) if (element := found.strip(" \t"))]


def tokens(headers: Headers, name: str) -> list[str]:
    """Return a list of tokens in lower case."""
    return [element.lower() for element in elements(combined(headers, name))]


def qualities(field: str) -> dict[str, float]:
    """Return the weights, 0 to 1, of the names that a client accepts; names are in lower case.

    A name with a malformed weight is left out. Of a name that occurs twice the higher weight counts.
    """
    found: dict[str, float] = {}
    for element in elements(field):
        name, _, _ = element.partition(";")
        parameters = _QUOTES.sub("", element[len(name) :])
        weight = _WEIGHT.search(parameters)
        if weight is None and _HAS_WEIGHT.search(parameters):
            continue
        name = name.rstrip(" \t").lower()
        found[name] = max(found.get(name, 0.0), 1.0 if weight is None else float(weight[1]))
    return found


def prefers_msgpack(headers: Headers) -> bool:
    """Return whether ``Accept`` names MessagePack and does not prefer JSON."""
    taken = qualities(combined(headers, "Accept"))
    named = taken.get(MSGPACK.content_type, 0.0)
    json = taken.get(JSON.content_type, taken.get("application/*", taken.get("*/*", 0.0)))
    return 0.0 < named >= json


def is_known(if_none_match: str, entity_tag: str) -> bool:
    """Return whether ``If-None-Match`` says that the client has the content (RFC 9110, 13.1.2)."""
    return if_none_match.strip(" \t") == "*" or entity_tag in _ENTITY_TAG.findall(if_none_match)


def takes_gzip(headers: Headers) -> bool:
    """Return whether ``Accept-Encoding`` accepts gzip and does not prefer the body uncompressed."""
    taken = qualities(combined(headers, "Accept-Encoding"))
    named = [taken[name] for name in _GZIP if name in taken]
    gzip = max(named) if named else taken.get("*", 0.0)
    return 0.0 < gzip >= taken.get("identity", 0.0)


def content_coding(headers: Headers) -> str:
    """Return the coding of a body: ``gzip``, ``deflate``, another name, or an empty text without one."""
    codings = [coding for coding in tokens(headers, "Content-Encoding") if coding != "identity"]
    return "gzip" if len(codings) == 1 and codings[0] in _GZIP else ", ".join(codings)


def media_type(request: web.Request) -> str:
    """Return ``Content-Type`` in lower case without parameters; empty if it is missing.

    The library's own ``content_type`` is never used: it has a parser of mail, which hostile input keeps busy
    for seconds.

    Raises:
        SyncError: ``malformed``, if the header is too long.
    """
    header = request.headers.get("Content-Type", "")
    if len(header) > _MOST_CHARS:
        raise SyncError("malformed", f"Content-Type: {_MOST_CHARS} characters at most")
    return header.partition(";")[0].strip(" \t").lower()


def file_name(header: str) -> str | None:
    """Return the file name of ``Content-Disposition``; of two, the extended one (RFC 6266, 4.3).

    Returns:
        The name; None without one, and for a header that is too long or malformed.
    """
    if len(header) > _MOST_NAME_CHARS:
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
