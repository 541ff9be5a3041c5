"""By which indexes PostgreSQL finds what statements of serving ask for, whether the right ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import psycopg2

from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected
from storage.postgres.cell.citus import is_on_citus
from storage.postgres.cell.dsn import owner_prefix, schema_of
from storage.postgres.remedies import said
from storage.postgres.roles.named_tenants import SETTING
from storage.postgres.roles.tables import GROWING_TABLES, IN_SCHEMA, schema_of_tables, values
from storage.postgres.transactions import SETTINGS
from storage.stores.plans.hot_statements import PREPARED, HotStatement, hot_statements

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: The accesses of each statement on an empty and on a grown database: ``python -m tests.storage.expected``.
EXPECTED: Final = Path(__file__).with_name("expected.json")
#: Of each index of a growing table, or of a partition of one: the table, the index of the whole table, its
#: columns, and whether all of them together find one row at most.
_INDEXES: Final = (
    "SELECT i.relname::text, coalesce(whole.relname, c.relname)::text, coalesce(wi.relname, i.relname)::text,"
    " ARRAY(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY AS k(n, o)"
    " JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.n ORDER BY k.o),"
    " x.indisunique FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid"
    " JOIN pg_class AS c ON c.oid = x.indrelid"
    " LEFT JOIN pg_inherits AS h ON h.inhrelid = c.oid LEFT JOIN pg_class AS whole ON whole.oid = h.inhparent"
    " LEFT JOIN pg_inherits AS ih ON ih.inhrelid = i.oid LEFT JOIN pg_class AS wi ON wi.oid = ih.inhparent"
    f" WHERE coalesce(whole.relname, c.relname) = ANY(%(growing)s) AND {IN_SCHEMA}"
)
_WHOLE: Final = (
    "SELECT p.relname::text, c.relname::text FROM pg_inherits AS h JOIN pg_class AS p ON p.oid = h.inhrelid"
    f" JOIN pg_class AS c ON c.oid = h.inhparent WHERE c.relname = ANY(%(growing)s) AND {IN_SCHEMA}"
)
#: Tables with one row for each tenant: to read them whole may be the quickest for a batch of many tenants.
_OF_TENANTS: Final = frozenset({"tenant_counters", "tenant_storage"})
#: Up to this size a table may be read by any index: PostgreSQL takes what costs nothing now, and plans anew
#: when ANALYZE has seen it grow.
_SMALL_BYTES: Final = 1 << 20
_SMALL: Final = (
    "SELECT name FROM unnest(%(growing)s) AS name WHERE coalesce((SELECT sum(pg_relation_size(relid))"
    " FROM pg_partition_tree(name::regclass)), pg_relation_size(name::regclass)) < %(bytes)s"
)
_NOBODY: Final = f"SET LOCAL {SETTING} = ''"

Node = dict[str, Any]


class _Index(NamedTuple):
    table: str
    name: str
    columns: list[str]
    unique: bool


class Access(NamedTuple):
    """How a plan reads a growing table.

    Attributes:
        table: The table; of a partition the whole one.
        small: Whether it is of a size at which any index will do.
        by: The index with the columns that are compared, such as ``records_pkey(tenant_id, domain, id)``, or
            ``all rows`` without an index.
        columns: How many columns are compared.
        finds_one: Whether it finds one row at most each time.
    """

    table: str
    small: bool
    by: str
    columns: int
    finds_one: bool


ALL_ROWS: Final = "all rows"


def expected_accesses() -> dict[str, list[str]]:
    """Return how each statement may read growing tables."""
    return msgspec.json.decode(EXPECTED.read_bytes(), type=dict[str, list[str]])


def read_accesses(dsn: str, lifetime_h: float) -> dict[str, list[Access] | str]:
    """Have the statements of serving explained, as serving has them planned.

    Nothing is run, and nothing stays prepared: behind a pooler another client has the connection next.

    Args:
        dsn: The database, as the role of serving, so that its policies are part of the plans.
        lifetime_h: How long kept answers are found.

    Returns:
        The accesses of each statement, or the sentence with which PostgreSQL refuses it.

    Raises:
        StoreError: The database is away.
    """
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute(SETTINGS.text)
        cursor.execute(_NOBODY)
        here = values(schema_of_tables(cursor))
        cursor.execute(_INDEXES, here)
        indexes = {name: _Index(*index) for name, *index in cursor.fetchall()}
        cursor.execute(_WHOLE, here)
        tables = {**{name: name for name in GROWING_TABLES}, **dict(cursor.fetchall())}
        cursor.execute(_SMALL, {**here, "bytes": _SMALL_BYTES})
        catalog = _Catalog(indexes, tables, _OF_TENANTS.union(name for (name,) in cursor.fetchall()))
        found: dict[str, list[Access] | str] = {}
        for one in hot_statements(lifetime_h):
            cursor.execute("SAVEPOINT before")
            try:
                found[one.name] = sorted(set(catalog.accesses(_explained(cursor, one))))
            except psycopg2.ProgrammingError as error:
                cursor.execute("ROLLBACK TO SAVEPOINT before")
                _forget(cursor)
                found[one.name] = said(error)
    return found


def _explained(cursor: Cursor, one: HotStatement) -> Node:
    if one.preparation:
        cursor.execute(one.preparation)
    opening, _, query = one.call.rpartition("; ")  # a page sets how it is planned
    if opening:
        cursor.execute(opening)
    cursor.execute(f"EXPLAIN (FORMAT JSON, COSTS OFF) {query}", one.values)
    plan: Node = cursor.fetchall()[0][0][0]["Plan"]
    if one.preparation:
        cursor.execute(f"DEALLOCATE {PREPARED}")
    return plan


def _forget(cursor: Cursor) -> None:
    """Drop what was prepared before the statement was refused: that is not rolled back."""
    cursor.execute(f"SELECT FROM pg_prepared_statements WHERE name = '{PREPARED}'")
    if cursor.fetchall():
        cursor.execute(f"DEALLOCATE {PREPARED}")


class _Catalog(NamedTuple):
    """Indexes, tables by their own name and those of partitions, and tables that are small."""

    indexes: Mapping[str, _Index]
    tables: Mapping[str, str]
    small: Collection[str]

    def accesses(self, node: Node) -> Iterator[Access]:
        """Yield how a part of a plan reads growing tables."""
        if node.get("Index Name") in self.indexes:
            yield self._by(self.indexes[node["Index Name"]], node.get("Index Cond", ""))
        for name in node.get("Conflict Arbiter Indexes", ()):
            if name in self.indexes:
                index = self.indexes[name]
                yield self._by(index, "".join(f"({column} = )" for column in index.columns))
        table = self.tables.get(node.get("Relation Name", ""))
        if node["Node Type"] == "Seq Scan" and table is not None:
            yield Access(table, table in self.small, ALL_ROWS, 0, finds_one=False)
        for part in node.get("Plans", ()):
            yield from self.accesses(part)

    def _by(self, index: _Index, condition: str) -> Access:
        compared = [name for name in index.columns if re.search(rf"(?<![\w.]){name}(?![\w.])", condition)]
        exact = [name for name in compared if re.search(rf"\({name} = (?!ANY)", condition)]
        return Access(
            index.table,
            index.table in self.small,
            f"{index.name}({', '.join(compared)})",
            len(compared),
            index.unique and exact == index.columns,
        )


def plan_findings(dsn: str, lifetime_h: float) -> Iterator[CheckResult]:
    """Check that each statement finds its rows by an index that suits it, whatever the tables hold.

    Args:
        dsn: The database, as the role of serving.
        lifetime_h: How long kept answers are found.

    Yields:
        A fault for each statement that reads a growing table otherwise, or a line if none does.

    Raises:
        StoreError: As ``read_accesses``.
    """
    if _on_citus(dsn):
        why = "Citus plans statements on its nodes, and none is prepared"
        yield CheckResult("not checked", "plans", why, "look at one with EXPLAIN on the node of the cell")
        return
    expected, sound = expected_accesses(), True
    for name, accesses in read_accesses(dsn, lifetime_h).items():
        if isinstance(accesses, str):
            sound = False
            found = f"PostgreSQL refuses the statement {name}: {accesses}"
            yield CheckResult("fault", "plans", found, "mend what is said of constraints and of roles")
            continue
        for access in accesses:
            if not suits(access, expected[name]):
                sound = False
                yield CheckResult(
                    "fault", "plans", _said(name, access), _remedy(access, expected[name], owner_prefix(dsn))
                )
    if sound:
        yield CheckResult("ok", "plans", f"{len(expected)} statements of serving use their indexes")


def _on_citus(dsn: str) -> bool:
    with connected(dsn) as connection, connection.cursor() as cursor:
        return is_on_citus(cursor, schema_of(dsn))


def suits(access: Access, expected: Collection[str]) -> bool:
    """Whether an access is an expected one, or reads no more rows than those.

    PostgreSQL chooses by its statistics: of two indexes that compare two columns each, either will do. One by
    the tenant alone reads all rows of it.
    """
    if access.by == ALL_ROWS:
        return False
    if access.small or access.finds_one or access.by in expected:
        return True
    own = [one for one in expected if one.startswith(access.table)]
    least = min((one.count(",") + 1 for one in own if not one.endswith("()")), default=0)
    return access.columns >= max(least, 2)


def _said(name: str, access: Access) -> str:
    if access.by == ALL_ROWS:
        return f"the statement {name} reads all rows of {access.table}"
    return f"the statement {name} reads {access.table} by {access.by}"


def _remedy(access: Access, expected: Collection[str], as_owner: str) -> str:
    wanted = " or ".join(one for one in expected if one.startswith(access.table)) or "its primary key"
    return f"mend what is said of indexes; else, {as_owner}ANALYZE {access.table}; wanted is {wanted}"
