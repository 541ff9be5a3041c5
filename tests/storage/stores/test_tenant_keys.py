"""The schema can be spread by tenant: its keys lead with the tenant, and every statement names it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from storage.embedded.servers import Services
from tests.harness.services import CELLS_TEMPLATE, in_cell, named, rows

STORAGE = Path(__file__).parents[3] / "storage"

#: Small, the same for every tenant, and so copied to each node: docs/scaling.md.
REFERENCE = {
    *(
        "tenants",
        "removed_tenants",
        "cluster_state",
        "job_runs",
        "server_processes",
        "health_report",
        "alerts",
        "audit_log",
        "master_keys",
        "sealed_domains",
    ),
}

#: Statements that go over all tenants on purpose, by a part of their text, and why that does no harm.
OVER_ALL = {
    ("admin.py", "k.master_key_id <> %(master)s"): "the keys of all tenants are wrapped by one master key",
    ("admin.py", "LEFT JOIN (SELECT master_key_id FROM tenant_keys"): "which is listed",
    ("admin.py", "WHERE k.master_key_id = m.master_key_id"): "and it is retired when no tenant needs it",
    ("reseal.py", "SELECT max(wanted_at) FROM reseal_passes"): "a job for all tenants, one after the other",
    ("maintenance.py", "INSERT INTO § SELECT * FROM moved"): "days are cut for all tenants at once",
    ("maintenance.py", "INSERT INTO events SELECT * FROM moved"): "and what they held is moved",
    ("maintenance.py", "INSERT INTO events SELECT * FROM events_interim"): "and what came meanwhile",
    ("usage.py", "FROM tenant_counters WHERE future_event_rows <> 0"): "few tenants have any",
    (
        "usage.py",
        "SELECT §, § FROM tenant_counters",
    ): "the fullest of all tenants, and their sum, for operators",
    ("usage.py", "FROM conflict_resolution_log WHERE outcome = 'open' LIMIT §"): "operators see all of them",
    ("usage.py", "SELECT coalesce(max(device_rows), 0) FROM tenant_storage"): "as above, of devices",
    ("daily_usage.py", "FROM § GROUP BY tenant_id"): "what a day held is taken off all tenants",
    ("usage.py", "ORDER BY counted_at NULLS FIRST"): "the tenant that was counted longest ago is next",
    ("migrate.py", "SELECT migration_id, applied_at_utc FROM §"): "the list of migrations has no tenants",
    ("devices.py", "FROM devices WHERE revoked_at IS NOT NULL OR tokens_from"): "of any tenant",
    ("devices.py", "FROM revoked_tokens"): "and tokens of any",
    ("upload_reads.py", "WITH RECURSIVE w AS"): "files of any tenant may be due",
    ("upload_cleanup.py", "WHERE u.state = § AND (u.tenant_id"): "uploads of any tenant expire",
    ("upload_cleanup.py", "SELECT tenant_id, domain, id FROM records WHERE data IS NULL"): "records end",
    ("upload_cleanup.py", "LEFT JOIN LATERAL (SELECT data IS NOT NULL AS alive"): "and their files with them",
    ("upload_cleanup.py", "DELETE FROM upload_session AS u USING old"): "what ended is forgotten alike",
    ("retention.py", "UPDATE records AS r SET last_data = NULL"): "and their last data",
    ("retention.py", "FOR UPDATE SKIP LOCKED), gone AS (DELETE"): "what is kept no longer goes alike",
    ("maintenance.py", "gone AS (DELETE FROM events_earlier AS e USING old"): "and late events",
    ("upload_cleanup.py", "JOIN tenants AS t ON t.tenant_id = u.tenant_id"): "an operator sees all tenants",
    ("minutes.py", "FROM sync_minutes WHERE late"): "few minutes of any tenant come late",
    ("aggregation.py", "FROM sync_minutes WHERE late"): "few minutes of any tenant come late",
    ("aggregation.py", "FROM sync_device_hours WHERE hour_start"): "hours of all devices end",
    ("aggregation.py", "SELECT 0 AS tenant_id UNION ALL"): "and minutes of all tenants",
    ("devices.py", "FROM sync_device_health WHERE last_sync_at IS NOT NULL"): "a cache is warmed",
}

_OURS = "relnamespace = current_schema()::regnamespace AND relname !~ 'yoyo'"
_TABLES = f"SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition AND {_OURS}"


@pytest.fixture(scope="session")
def migrated(services: Services, template: str) -> str:
    """A migrated database, to read from alone."""
    found = named(services.dsn, template)
    return in_cell(found) if template == CELLS_TEMPLATE else found


@pytest.fixture(scope="session")
def growing(migrated: str) -> set[str]:
    """The tables that grow with tenants' data: all but those of ``REFERENCE``."""
    return {str(name) for (name,) in rows(migrated, _TABLES)} - REFERENCE


# -- the catalog ------------------------------------------------------------------------------


def test_schema_keys_of_growing_tables_lead_with_the_tenant(migrated: str, growing: set[str]) -> None:
    keys = rows(
        migrated,
        "SELECT c.relname::text, k.relname::text, a.attname::text, i.indisprimary FROM pg_index AS i"
        " JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_class AS k ON k.oid = i.indexrelid"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
        f" WHERE i.indisunique AND c.relname IN ({_TABLES})",
    )
    assert {table for table, _, _, primary in keys if primary} >= growing, "without a primary key"
    for table, key, first, _ in keys:
        assert first == "tenant_id" or table in REFERENCE, f"{table}: {key}"


def test_schema_foreign_keys_stay_in_their_tenant_or_lead_to_shared_tables(migrated: str) -> None:
    found = rows(
        migrated,
        "SELECT conrelid::regclass::text, confrelid::regclass::text, array_agg(a.attname::text)"
        " FROM pg_constraint AS f JOIN pg_attribute AS a"
        " ON a.attrelid = f.conrelid AND a.attnum = ANY(f.conkey)"
        " WHERE contype = 'f' AND conparentid = 0 GROUP BY f.oid, conrelid, confrelid",
    )
    assert found
    for table, other, columns in found:
        if table in REFERENCE:
            assert other in REFERENCE, f"{table} -> {other}"
        else:
            assert isinstance(columns, list)
            assert "tenant_id" in columns, f"{table} -> {other}"


def test_schema_tenant_columns_have_one_type(migrated: str, growing: set[str]) -> None:
    found = rows(
        migrated,
        "SELECT c.relname::text, a.atttypid::regtype::text FROM pg_class AS c JOIN pg_attribute AS a"
        f" ON a.attrelid = c.oid AND a.attname = 'tenant_id' WHERE c.relname IN ({_TABLES})",
    )
    assert {table for table, _ in found} == growing | {"tenants"}
    assert {kind for _, kind in found} == {"integer"}


# -- the statements ---------------------------------------------------------------------------

#: What a text has where something is put in that is not known before it runs.
UNKNOWN = "§"


class Reference(NamedTuple):
    """A table in a statement: what it is called there, the query it stands in, and what follows it."""

    keyword: str
    table: str
    alias: str
    query: str
    following: str


def texts(path: Path) -> Iterator[str]:
    """All texts of a module as they are put together, as far as that can be told without running it."""
    tree = ast.parse(path.read_text("utf-8"))
    known: dict[str, str] = {}
    for node in tree.body:
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            [target] = node.targets
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            value = node.value
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and len(value.args) == 1:
                value = value.args[0]  # Statement("…")
            text = _text(value, known)
            if text is not None:
                known[target.id] = text
    yield from _maximal(tree, known)


def _maximal(node: ast.AST, known: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.expr) and not isinstance(node, ast.Name):
        text = _text(node, known)
        if text is not None:
            yield text
            return
    for inner in ast.iter_child_nodes(node):
        yield from _maximal(inner, known)


def _text(node: ast.expr, known: dict[str, str]) -> str | None:
    """Put a text together; None for what is none."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, known) or UNKNOWN for part in parts)
        case ast.FormattedValue(value=value):
            return _text(value, known) or UNKNOWN
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = _text(left, known), _text(right, known)
            return None if sides == (None, None) else "".join(side or UNKNOWN for side in sides)
        case ast.Call(func=ast.Attribute(value=value, attr="format"), keywords=given):
            template = _text(value, known)
            put_in = {one.arg: _text(one.value, known) for one in given}
            return template and re.sub(
                r"(?<!\{)\{(\w+)\}", lambda place: put_in.get(place[1]) or UNKNOWN, template
            )
    return None


_TABLE = re.compile(
    rf"\b(FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?([a-z_]+|{UNKNOWN}\w*)(?![\w.(])(?:\s+AS\s+([a-z_]+))?"
)
_QUERY = re.compile(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE)\b")


def references(statement: str) -> Iterator[Reference]:
    """Find every table that a statement, or one of several, reads or writes."""
    for query in _queries(statement):
        for found in _TABLE.finditer(query):
            keyword, table, alias = found.groups()
            following = re.split(r"\b(?:JOIN|WHERE)\b", query[found.end() :], maxsplit=1)[0]
            yield Reference(keyword, table, alias or table, query, following)


def _queries(text: str) -> Iterator[str]:
    """Take a statement's queries apart: each without those inside of it."""
    outer, depth, begins = "", 0, 0
    for place, sign in enumerate(text):
        if sign == "(":
            depth += 1
            if depth == 1:
                begins = place
        if depth == 0:
            outer += sign
        if sign == ")" and depth:
            depth -= 1
            if depth == 0:
                inner = text[begins + 1 : place]
                if _QUERY.match(inner) or _TABLE.search(inner):
                    yield from _queries(inner)
                    outer += "()"
                else:
                    outer += f"({inner})"
    yield from re.split(r"\bUNION ALL\b|;", outer)


def names_its_tenant(one: Reference) -> bool:
    """Whether a query keeps to the tenant, or tenants, that it was given, in this table."""
    if one.keyword == "INTO":
        columns = re.match(r"\s*\(([^)]*)\)", one.following)
        if columns is None:
            return False
        if columns[1] == UNKNOWN:
            return "ON CONFLICT (tenant_id, " in one.following
        return columns[1].split(",")[0] == "tenant_id"
    own = rf"(?:\b{re.escape(one.alias)}\.|(?<![.\w]))tenant_id"
    return (
        re.search(rf"{own} = |= {own}\b", one.query) is not None
        or re.match(r"\s*USING \(tenant_id\b", one.following) is not None
    )


def stray(text: str, tables: set[str]) -> list[str]:
    """Name the growing tables that a statement reads or writes without keeping to a tenant that it was given.

    Two of them kept to each other are not enough: something outside of both must say whose rows these are.
    """
    found = [one for one in references(text) if one.table in tables or one.table.startswith(UNKNOWN)]
    given = set(found)
    for one in found:
        others = {other.alias for other in found if other.query == one.query}
        sides = [
            {left.strip("(),"), right.strip("(),")}
            for left, right in re.findall(r"(\S+) = (\S+)", one.query)
            if re.search(r"\btenant_id\b", f"{left} {right}")
        ]
        within = {f"{alias}.tenant_id" for alias in others}
        reference = any(other.table in REFERENCE for other in references(one.query))
        if one.keyword != "INTO" and all(pair <= within for pair in sides) and not reference:
            given.discard(one)
    return [one.table for one in found if one not in given or not names_its_tenant(one)]


@pytest.mark.parametrize("path", sorted(STORAGE.rglob("*.py")), ids=lambda path: path.name)
def test_statements_on_growing_tables_name_the_tenant(path: Path, growing: set[str]) -> None:
    for text in texts(path):
        if any(path.name == name and part in text for name, part in OVER_ALL):
            continue
        assert stray(text, growing) == [], text


def test_statements_each_exception_is_needed() -> None:
    for name, part in OVER_ALL:
        assert any(part in text for path in STORAGE.rglob(name) for text in texts(path)), (name, part)


def test_statements_are_found_for_every_written_table(growing: set[str]) -> None:
    found = {one.table for path in STORAGE.rglob("*.py") for text in texts(path) for one in references(text)}
    assert found >= {
        *("tenants", "tenant_counters", "devices", "records", "events", "quarantine"),
        *("sync_idempotency_record", "tenant_conflict_policy", "conflict_resolution_log"),
    }
    assert found & growing


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("SELECT data FROM records WHERE tenant_id = %(t)s AND id = 'a'", True),
        ("SELECT data FROM records WHERE id = 'a'", False),
        ("SELECT data FROM records WHERE id = 'tenant_id'", False),
        ("SELECT data FROM records AS r WHERE r.tenant_id = ANY(%(t)s)", True),
        ("SELECT 1 FROM w CROSS JOIN LATERAL (SELECT * FROM records WHERE tenant_id = w.t) AS f", True),
        ("SELECT 1 FROM w CROSS JOIN LATERAL (SELECT * FROM records WHERE id = w.t) AS f", False),
        ("SELECT 1 FROM records AS r JOIN events AS e ON e.id = r.id WHERE r.tenant_id = 1", False),
        ("SELECT 1 FROM records AS r JOIN events AS e ON e.tenant_id = r.tenant_id", False),
        ("SELECT 1 FROM records AS r JOIN events AS e USING (tenant_id) WHERE r.tenant_id = 1", True),
        ("SELECT 1 FROM tenants AS t JOIN events AS e ON e.tenant_id = t.tenant_id", True),
        ("SELECT 1 FROM tenants JOIN records USING (tenant_id)", True),
        ("SELECT 1 FROM records WHERE tenant_id = 1 UNION ALL SELECT 2 FROM events", False),
        ("SELECT (SELECT max(seq) FROM records) FROM tenants WHERE tenant_id = 1", False),
        ("INSERT INTO records (tenant_id, id) SELECT 1, 'a'", True),
        ("INSERT INTO records (id, tenant_id) SELECT 'a', 1", False),
        ("INSERT INTO records SELECT 1, 'a'", False),
        ("UPDATE records AS r SET seq = 1 FROM w WHERE r.tenant_id = w.t", True),
        ("UPDATE records SET seq = 1", False),
        ("DELETE FROM records WHERE ctid = ANY (ARRAY(SELECT ctid FROM records WHERE tenant_id = 1))", False),
        (f"DELETE FROM {UNKNOWN} WHERE id = 1", False),
    ],
)
def test_statements_naming_the_tenant_is_recognised(statement: str, kept: bool) -> None:
    assert (stray(statement, {"records", "events"}) == []) is kept
