"""Columns as array literals: PostgreSQL takes hundreds of rows apart fastest as one ``unnest``.

Measured for 200 records against ``json_to_recordset``: a fifth less time in the server.
"""

from __future__ import annotations

from collections.abc import Iterable


def numbers(values: Iterable[int]) -> str:
    """Write an array of integers."""
    return "{" + ",".join(map(str, values)) + "}"


def numbers_or_null(values: Iterable[int | None]) -> str:
    """Write an array of integers, some of them null."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def plain(values: Iterable[str]) -> str:
    """Write an array of texts that need no escape: hex digits, names of ours."""
    return '{"' + '","'.join(values) + '"}' if (values := list(values)) else "{}"


def texts(values: Iterable[str]) -> str:
    """Write an array of any texts."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def texts_or_null(values: Iterable[str | None]) -> str:
    """Write an array of any texts, some of them null."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
