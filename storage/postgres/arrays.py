"""Columns as arrays: PostgreSQL takes hundreds of rows apart fastest as one ``unnest``.

Measured for 200 records against ``json_to_recordset``: a fifth less time in the server. Texts that hold
no control characters travel joined by one, which saves both sides every escape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_BETWEEN: Final = "\x01"
_NULL: Final = "\x02"


def int_array(values: Iterable[int]) -> str:
    """Write an array of integers."""
    return "{" + ",".join(map(str, values)) + "}"


def int_array_or_null(values: Iterable[int | None]) -> str:
    """Write an array of integers, some of them null."""
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def hex_array(values: Iterable[str]) -> str:
    """Write an array of texts that need no escape: hex digits, names of ours."""
    return '{"' + '","'.join(values) + '"}' if (values := list(values)) else "{}"


def split_sql(name: str, kind: str) -> str:
    """Write the SQL that takes the value ``name`` apart again, as an array of ``kind``."""
    return f"string_to_array(%({name})s, E'\\x01', E'\\x02')::{kind}[]"


def control_joined(values: Iterable[str]) -> str:
    """Join texts without control characters: compact JSON, ids that were checked. One at least."""
    return _BETWEEN.join(values)


def control_joined_or_null(values: Iterable[bytes | None]) -> str:
    """Join JSON, some of it null. One at least."""
    return _BETWEEN.join([_NULL if value is None else value.decode() for value in values])


def control_joined_texts_or_null(values: Iterable[str | None]) -> str:
    """Join texts without control characters, some of them null. One at least."""
    return _BETWEEN.join([_NULL if value is None else value for value in values])


def text_array(values: Iterable[str]) -> str:
    """Write an array of any texts."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def text_array_or_null(values: Iterable[str | None]) -> str:
    """Write an array of any texts, some of them null."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
