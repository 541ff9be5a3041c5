"""The statements of the job ``reseal``, made of the table of sealed columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from engine.operate.rows import UnreadableValue
from storage.postgres.driver import Row
from storage.postgres.plain_bytes import TEXT_MARK_SQL
from storage.postgres.transactions import transaction_settings
from storage.stores.keys.sealed_columns import SealedColumn, SealedTable

_JSON_MARK: Final = "'\"'"
#: Base64 of the head of a sealed value, and of the byte behind it.
_HEAD_CHARS: Final = 8
_HEAD_BYTES: Final = 5
#: Values that cannot be opened are listed up to so many, and those of one page more.
LISTED: Final = 100
#: How a column takes a text.
_CAST: Final = {"request_sha256": "decode(w.{}, 'hex')", "verification_id": "w.{}", "user_id": "w.{}"}


#: A plain row whose verification was logged again since it is sealed would get the key of that row.
_DROP_TWINS: Final = (
    "DELETE FROM voice_verification_log AS r USING unnest({arrays}) AS w({names})"
    " WHERE r.tenant_id = %(tenant)s::int AND r.verification_id = w.k0 AND w.k0 <> w.m0"
    " AND EXISTS (SELECT FROM voice_verification_log AS o WHERE o.tenant_id = %(tenant)s::int"
    " AND o.verification_id = w.m0); "
)


#: As batches do: the counter before any other row, so that neither waits for the other in a circle.
_LOCK: Final = "SELECT FROM tenant_counters WHERE tenant_id = %(tenant)s::int FOR UPDATE; "
#: That a pass is where the step read it. After a failover it may be behind, for its pages do not wait for a
#: standby: a position that went over the lost ones would leave their rows as they are.
HERE: Final = "(place, position::text) IS NOT DISTINCT FROM (%(from_place)s::text, %(from_position)s::text)"
MOVE: Final = (
    "UPDATE reseal_passes SET place = %(place)s, position = %(position)s::json,"
    " resealed = resealed + %(values)s::int,"
    " unreadable_values = unreadable_values + %(unreadable_values)s::int,"
    f" unreadable = CASE WHEN jsonb_array_length(unreadable) < {LISTED}"
    " THEN unreadable || %(unreadable)s::jsonb ELSE unreadable END"
    f" WHERE tenant_id = %(tenant)s::int AND {HERE}"
)
#: COMMIT does not wait for the disk: a page that a crash takes back is done again, for its position goes with
#: it. A page is read in the order of an index, whatever the planner makes of a table that grows.
PAGE_SETTINGS: Final = transaction_settings("off", enable_bitmapscan="off", enable_sort="off")


class Statements(NamedTuple):
    """The statements of one table. ``page`` begins after the key that its values ``a0``, ``a1`` … have.

    ``changed`` are the names of the arrays of ``update``: the key, xmin, values and further columns.
    """

    first_page: str
    page: str
    update: str
    changed: tuple[str, ...]


class SealedPages(NamedTuple):
    """The statements that read all sealed values of a table. ``page`` begins as that of ``Statements``."""

    first_page: str
    page: str


def sealed_pages_of(table: SealedTable) -> SealedPages:
    """Return the statements that read all sealed values of a table, as ``keys verify`` opens them."""
    return SealedPages(_page(table, "", _sealed), _page(table, _after(table), _sealed))


def statements_of(table: SealedTable) -> Statements:
    """Return the statements of a table."""
    changed = (
        *(f"k{at}" for at in range(len(table.key))),
        "x",
        *(f"c{at}" for at in range(len(table.columns))),
        *(f"m{at}" for at in range(len(table.more))),
    )
    return Statements(
        _page(table, "", partial(_due, table)),
        _page(table, _after(table), partial(_due, table)),
        _update(table, changed),
        changed,
    )


def key_of(table: SealedTable, row: Row) -> list[str]:
    """Return the key of a row of a page."""
    return list(row[2 : 2 + len(table.key)])


def own_of(table: SealedTable, row: Row) -> tuple[str | None, str, int]:
    """Return the domain, id and version of a row of a page: what its values are bound to."""
    first = 3 + len(table.key)
    domain, value_id, version = row[first : first + 3]
    return domain, value_id, version


def flags_of(table: SealedTable, row: Row) -> list[bool]:
    """Return of each column of a row of a page whether its value is asked for."""
    first = 6 + len(table.key)
    return [bool(row[first + 2 * at]) for at in range(len(table.columns))]


def stored_of(table: SealedTable, row: Row) -> list[str | None]:
    """Return the values of a row of a page as they are stored."""
    first = 7 + len(table.key)
    return [row[first + 2 * at] for at in range(len(table.columns))]


def unreadable_value(table: SealedTable, row: Row) -> UnreadableValue:
    """Return what names a row of a page that cannot be opened."""
    return UnreadableValue(table.name, *own_of(table, row)[:2])


def _after(table: SealedTable) -> str:
    after = ", ".join(f"%(a{at})s::{column.kind}" for at, column in enumerate(table.key))
    return f" AND ({_names(table)}) > ({after})"


def _page(table: SealedTable, after: str, asked: Callable[[SealedColumn], str]) -> str:
    """Return the rows of a page with values that are asked for, and its last row in any case.

    The columns: the number of rows of the page, that of the row, the key, xmin, domain, id, version, then of
    each column whether it is asked for and its value, and the further columns.
    """
    keys = [f"{column.name}::text AS k{at}" for at, column in enumerate(table.key)]
    values = [
        text
        for at, column in enumerate(table.columns)
        for text in (f"{asked(column)} AS d{at}", f"{column.name}::text AS c{at}")
    ]
    more = [f"{_read(name)} AS m{at}" for at, name in enumerate(table.more)]
    columns = ", ".join(
        [
            *keys,
            "row_xmin::text AS x",
            f"{table.domain} AS d",
            f"{table.value_id} AS i",
            f"({table.version})::bigint AS v",
            *values,
            *more,
        ]
    )
    due = " OR ".join(f"d{at}" for at in range(len(table.columns)))
    return (
        f"WITH page AS MATERIALIZED (SELECT r.*, r.xmin AS row_xmin FROM {table.name} AS r"
        f" WHERE r.tenant_id = %(tenant)s::int{after} ORDER BY {_names(table)} LIMIT %(limit)s::int),"
        f" judged AS (SELECT count(*) OVER () AS total, row_number() OVER (ORDER BY {_names(table)}) AS n,"
        f" {columns} FROM page) SELECT * FROM judged WHERE {due} OR n = total ORDER BY n"
    )


def _update(table: SealedTable, names: Sequence[str]) -> str:
    """Return the change of rows that nobody else changed since they were read, and of the position.

    The position moves only if all of them were changed. It returns how many were.
    """
    changes = [f"{column.name} = w.c{at}" for at, column in enumerate(table.columns)]
    changes += [f"{name} = {_CAST[name].format(f'm{at}')}" for at, name in enumerate(table.more)]
    where = " AND ".join(f"r.{column.name} = w.k{at}" for at, column in enumerate(table.key))
    typed = [f"w.k{at}::{column.kind} AS k{at}" for at, column in enumerate(table.key)] + ["w.x::xid AS x"]
    typed += [
        f"w.c{at}::{'text' if column.form == 'text' else 'json'} AS c{at}"
        for at, column in enumerate(table.columns)
    ]
    typed += [f"w.m{at}" for at in range(len(table.more))]
    arrays = ", ".join(f"%({name})s::text[]" for name in names)
    if table.more[:1] == ("verification_id",):
        twins = _DROP_TWINS.format(arrays=arrays, names=", ".join(names))
    else:
        twins = ""
    return (
        _LOCK
        + twins
        + (
            f"WITH w AS MATERIALIZED (SELECT {', '.join(typed)}"
            f" FROM unnest({arrays}) AS w({', '.join(names)})),"
            f" done AS (UPDATE {table.name} AS r SET {', '.join(changes)} FROM w"
            f" WHERE r.tenant_id = %(tenant)s::int AND {where} AND r.xmin = w.x RETURNING 1),"
            f" moved AS ({MOVE} AND (SELECT count(*) FROM done) = %(due)s::int) SELECT count(*) FROM done"
        )
    )


def _due(table: SealedTable, column: SealedColumn) -> str:
    """Return the condition that a value is plain and should be sealed, or the reverse, or has an old key."""
    covered = f"(%(on)s::boolean AND ({table.domain} IS NULL OR {table.domain} <> ALL(%(unsealed)s::text[])))"
    text = f"{column.name}::text"
    if column.form == "changes":
        # A damaged one may be no list any longer: it is read, and cannot be opened.
        each = _judged("(e->'data')::text", _JSON_MARK, covered, covered)
        return (
            f"CASE json_typeof({column.name}) WHEN 'array' THEN EXISTS"
            f" (SELECT FROM json_array_elements({column.name}) AS e"
            f" WHERE json_typeof(e->'data') <> 'null' AND {each}) ELSE {column.name} IS NOT NULL END"
        )
    plain = {
        "files": f"{covered} AND {text} <> '[]'",
        # Whether an answer tells of sealed domains is not known later: all from before are sealed. One whose
        # hash was made with a key (33 bytes) was written since, and tells nothing.
        "answer": f"{covered} AND octet_length(request_sha256) = 32"
        " AND created_at < to_timestamp(%(followed)s::float8)",
    }.get(column.form, covered)
    mark = TEXT_MARK_SQL if column.form == "text" else _JSON_MARK
    return f"({column.name} IS NOT NULL AND {_judged(text, mark, covered, plain)})"


def _sealed(column: SealedColumn) -> str:
    """Return the condition that a value is sealed, or that it holds sealed ones."""
    if column.form == "changes":  # or damaged, as in ``_due``
        return (
            f"CASE json_typeof({column.name}) WHEN 'array' THEN EXISTS"
            f" (SELECT FROM json_array_elements({column.name}) AS e"
            f" WHERE left((e->'data')::text, 1) = {_JSON_MARK}) ELSE {column.name} IS NOT NULL END"
        )
    mark = TEXT_MARK_SQL if column.form == "text" else _JSON_MARK
    return f"coalesce(left({column.name}::text, 1) = {mark}, false)"


def _judged(text: str, mark: str, covered: str, plain: str) -> str:
    coded = f"substr({text}, 2, {_HEAD_CHARS})"
    # decode() of anything but base64 is an error, which would end the pass.
    other = (
        f"CASE WHEN {coded} ~ '^[A-Za-z0-9+/]{{{_HEAD_CHARS}}}$' THEN"
        f" substring(decode({coded}, 'base64') FROM 1 FOR {_HEAD_BYTES}) <> decode(%(head)s, 'hex')"
        " ELSE true END"
    )
    return f"CASE WHEN left({text}, 1) = {mark} THEN NOT {covered} OR {other} ELSE {plain} END"


def _read(name: str) -> str:
    return f"encode({name}, 'hex')" if name == "request_sha256" else name


def _names(table: SealedTable) -> str:
    return ", ".join(column.name for column in table.key)
