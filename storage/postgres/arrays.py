"""Columns as arrays, which PostgreSQL splits into rows by ``unnest``.

Measured for 200 records, that takes a fifth less time in the server than ``json_to_recordset``. Texts without
control characters are joined by one, so that neither side has to escape anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_BETWEEN: Final = "\x01"
_NULL: Final = "\x02"


def int_array(values: Iterable[int]) -> str:
    """Return an array of integers."""
    return "{" + ",".join(map(str, values)) + "}"


def number_array_or_null(values: Iterable[float | None]) -> str:
    """Return an array of integers or finite floats, some of them null."""
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def hex_array(values: Iterable[str]) -> str:
    """Return an array of texts that need no escape: hex digits, names of ours."""
    return '{"' + '","'.join(values) + '"}' if (values := list(values)) else "{}"


def split_sql(name: str, kind: str) -> str:
    """Return the SQL that splits the joined value ``name`` into an array of ``kind``."""
    return f"string_to_array(%({name})s, E'\\x01', E'\\x02')::{kind}[]"


def control_joined(values: Iterable[str]) -> str:
    """Join one text or more without control characters: compact JSON, or ids that were checked."""
    return _BETWEEN.join(values)


def control_joined_or_null(values: Iterable[bytes | None]) -> str:
    """Join one JSON text or more, some of them null."""
    return _BETWEEN.join([_NULL if value is None else value.decode() for value in values])


def control_joined_texts_or_null(values: Iterable[str | None]) -> str:
    """Join one text or more without control characters, some of them null."""
    return _BETWEEN.join([_NULL if value is None else value for value in values])


def text_array(values: Iterable[str]) -> str:
    """Return an array of any texts."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def text_array_or_null(values: Iterable[str | None]) -> str:
    """Return an array of any texts, some of them null."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
