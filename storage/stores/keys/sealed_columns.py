"""The columns of sealed values: one table for the stores that write them and the job that re-seals them."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

#: How a column holds a sealed value beside plain ones: as a json string, as text, as bytes, or as a list of
#: json objects whose ``data`` are sealed one by one. A keyed hash is never opened; it is made of a plain one.
Form = Literal["json", "text", "bytes", "json_list", "hash"]


class SealedColumn(NamedTuple):
    """One column of sealed values, and what a value is bound to (its associated data).

    Attributes:
        table: The table. Its primary key leads with ``tenant_id``.
        column: The column.
        key: The rest of the primary key, in its order, by which the job walks the table.
        domain: SQL of the row's domain; None for values that are sealed as soon as any domain is.
        id: SQL of the ``id`` in the associated data, as text.
        version: SQL of the ``version`` in the associated data, as a number.
        form: How the column holds it.
    """

    table: str
    column: str
    key: tuple[str, ...]
    domain: str | None
    id: str
    version: str
    form: Form = "json"


#: Every column that holds sealed values.
SEALED_COLUMNS: Final[tuple[SealedColumn, ...]] = ()
