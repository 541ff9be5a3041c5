"""The schema of the server's tables as the catalog of a database has it, and as migrations make it.

``expected.json`` holds the second. ``python -m tests.storage.expected`` writes it from a database that was
migrated just then, and a test holds it equal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from storage.postgres.roles.tables import OWNED, schema_of_tables, values

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

EXPECTED: Final = Path(__file__).with_name("expected.json")
#: PostgreSQL writes the schema before the name of a table.
_SCHEMA: Final = re.compile(r' ON (?:ONLY )?(?:"[^"]+"|\w+)\.')
#: A move of rows out of ``events_later`` makes this for itself (storage/postgres/partitions/maintenance.py).
_OF_A_MOVE: Final = "events_later_bound"
#: The tables of the server that migrations make: the one that notes them is not among them.
_MADE: Final = f"{OWNED} AND c.relname <> '_yoyo_migration'"
_TABLES: Final = (
    "SELECT c.relname::text, c.relkind = 'p', ARRAY(SELECT a.attname::text FROM pg_attribute AS a"
    " WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped ORDER BY 1)"
    f" FROM pg_class AS c WHERE {_MADE} AND NOT c.relispartition ORDER BY 1"
)
_INDEXES: Final = (
    "SELECT c.relname::text, i.relname::text, pg_get_indexdef(i.oid), x.indisvalid, c.relispartition,"
    " EXISTS (SELECT FROM pg_inherits WHERE inhrelid = i.oid), i.relkind = 'I' FROM pg_class AS c"
    " JOIN pg_index AS x ON x.indrelid = c.oid JOIN pg_class AS i ON i.oid = x.indexrelid"
    f" WHERE {_MADE} ORDER BY 1, 2"
)
_CONSTRAINTS: Final = (
    "SELECT c.relname::text, k.conname::text, pg_get_constraintdef(k.oid), k.convalidated, c.relispartition"
    " FROM pg_class AS c JOIN pg_constraint AS k ON k.conrelid = c.oid"
    f" WHERE {_MADE} AND k.contype IN ('p', 'u', 'c', 'f', 'x') AND k.conname <> '{_OF_A_MOVE}' ORDER BY 1, 2"
)
_TRIGGERS: Final = (
    "SELECT c.relname::text, g.tgname::text, pg_get_triggerdef(g.oid), g.tgenabled IN ('O', 'A')"
    f" FROM pg_class AS c JOIN pg_trigger AS g ON g.tgrelid = c.oid WHERE {OWNED} AND NOT g.tgisinternal"
    " AND NOT c.relispartition ORDER BY 1, 2"
)
#: Indexes of a table that a partition of it lacks.
_LACKING: Final = (
    "SELECT c.relname::text, parent.relname::text, i.relname::text, pg_get_indexdef(i.oid)"
    " FROM pg_class AS c JOIN pg_inherits AS h ON h.inhrelid = c.oid"
    " JOIN pg_class AS parent ON parent.oid = h.inhparent"
    " JOIN pg_index AS x ON x.indrelid = parent.oid JOIN pg_class AS i ON i.oid = x.indexrelid"
    f" WHERE {OWNED} AND c.relispartition AND NOT EXISTS (SELECT FROM pg_inherits AS ih"
    " JOIN pg_index AS own ON own.indexrelid = ih.inhrelid AND own.indrelid = c.oid"
    " WHERE ih.inhparent = i.oid) ORDER BY 1, 3"
)


class Table(msgspec.Struct, frozen=True):
    """One table that is no partition.

    Attributes:
        partitioned: Whether it has partitions.
        not_null: Its columns that are never null.
        indexes: Their definitions by name, without the schema.
        constraints: Primary keys, unique, foreign and other checks by name, as PostgreSQL writes them.
        triggers: Their definitions by name, without the schema.
    """

    partitioned: bool
    not_null: list[str]
    indexes: dict[str, str]
    constraints: dict[str, str]
    triggers: dict[str, str]


class Invalid(msgspec.Struct, frozen=True):
    """An index that PostgreSQL does not use. ``attached``: it is a part of an index of a whole table."""

    table: str
    index: str
    attached: bool


class Lack(msgspec.Struct, frozen=True):
    """An index that a partition has not: of which table, its name, its definition."""

    partition: str
    table: str
    index: str
    definition: str


class Catalogue(msgspec.Struct, frozen=True):
    """The tables as a database has them, and what of them does not count.

    Attributes:
        tables: The tables.
        invalid: Indexes of tables and partitions that PostgreSQL does not use.
        unvalidated: Constraints that may not hold for older rows: table and name.
        disabled: Triggers that do not fire: table and name.
        lacking: Indexes that partitions lack.
    """

    tables: dict[str, Table]
    invalid: list[Invalid] = []
    unvalidated: list[tuple[str, str]] = []
    disabled: list[tuple[str, str]] = []
    lacking: list[Lack] = []


def expected_tables() -> dict[str, Table]:
    """Return the tables as the migrations of this version make them."""
    return msgspec.json.decode(EXPECTED.read_bytes(), type=dict[str, Table])


def read_catalogue(connection: Connection) -> Catalogue:
    """Read the tables in one transaction, with the schema of the tables first in the path."""
    with connection, connection.cursor() as cursor:
        schema = schema_of_tables(cursor)
        cursor.execute("SELECT set_config('search_path', quote_ident(%s), true)", (schema,))

        def rows(query: str) -> list[tuple[Any, ...]]:
            cursor.execute(query, values(schema))
            return cursor.fetchall()

        tables = {
            name: Table(partitioned, not_null, {}, {}, {}) for name, partitioned, not_null in rows(_TABLES)
        }
        invalid = []
        for table, name, definition, valid, is_partition, attached, partitioned in rows(_INDEXES):
            if not is_partition:
                tables[table].indexes[name] = without_schema(definition)
            # An invalid index of a whole table lacks a part, which is told by the partition.
            if not valid and not partitioned:
                invalid.append(Invalid(table, name, attached))
        unvalidated = []
        for table, name, definition, validated, is_partition in rows(_CONSTRAINTS):
            if not is_partition:
                tables[table].constraints[name] = definition.removesuffix(" NOT VALID")
            if not validated:
                unvalidated.append((table, name))
        disabled = []
        for table, name, definition, enabled in rows(_TRIGGERS):
            tables[table].triggers[name] = without_schema(definition)
            if not enabled:
                disabled.append((table, name))
        lacking = [
            Lack(partition, table, index, without_schema(definition))
            for partition, table, index, definition in rows(_LACKING)
        ]
    return Catalogue(tables, invalid, unvalidated, disabled, lacking)


def without_schema(definition: str) -> str:
    """Return a definition of an index or a trigger without the schema of its table."""
    return _SCHEMA.sub(" ON ", definition)
