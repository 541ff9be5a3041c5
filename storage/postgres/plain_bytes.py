"""The bytes of values in SQL: limits of tenants count the plain form, sealed or not."""

from __future__ import annotations

from typing import Final

from engine.seal.sealer import LENGTH_BYTES, OVERHEAD_BYTES

#: The first character of a sealed value in a text column: a separator, which JSON texts and names lack.
TEXT_MARK: Final = "\x1e"
#: The same in SQL.
TEXT_MARK_SQL: Final = f"E'\\x{ord(TEXT_MARK):02x}'"
#: What a change that a conflict holds has as its data, in SQL.
CHANGE_DATA: Final = "(change->'data')::text"


def plain_bytes(text: str) -> str:
    """Return the SQL of the bytes of a stored value.

    Of a sealed one it is the padded length, at most 63 bytes more than the plain one: only its key tells the
    exact length.

    Args:
        text: The SQL of the value as text: JSON, or of a text column.
    """
    return (
        f"(CASE WHEN left({text}, 1) IN ('\"', {TEXT_MARK_SQL})"
        f" THEN (octet_length(rtrim({text}, '=\"')) - 1) * 3 / 4 - {OVERHEAD_BYTES + LENGTH_BYTES}"
        f" ELSE octet_length({text}) END)"
    )
