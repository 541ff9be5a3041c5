"""No statement is made of what a client sent: texts of statements are put together from constants alone."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.security.catalogue import against

STORAGE: Final = Path(__file__).parents[2] / "storage"
FILES: Final = sorted(path for path in STORAGE.rglob("*.py") if "embedded" not in path.parts)
#: What a text of SQL has.
_SQL: Final = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|SET|LOCK|FROM|WHERE|VALUES|EXECUTE|PREPARE"
    r"|COPY|LISTEN|NOTIFY|DEALLOCATE|set_config|LIMIT|ORDER BY|AND|ANY)\b"
)

#: File -> the names that its statements are made of at run time, and why no text of a client is among them.
AT_RUN_TIME: Final[dict[str, tuple[frozenset[str], str]]] = {
    name: (frozenset(names.split()), reason)
    for name, (names, reason) in {
        "access.py": ("policy table as_owner", "a remedy for a person, with quoted names of the catalog"),
        "admin.py": ("table", "sealed tables, of a table of columns"),
        "blocking.py": ("lock_timeout_ms", "an integer of a caller of this package"),
        "connection.py": ("self body", "a Statement, whose text this test has read where it is made"),
        "cursor.py": ("self", "the schema of the setting, which its pattern keeps to a plain name"),
        "daily_usage.py": ("column partition changes", "columns of a table here; partitions of the catalog"),
        "days.py": ("name series low high as_owner", "a remedy for a person, with partitions of the catalog"),
        "dsn.py": ("schema", "the schema of the setting, which its pattern keeps to a plain name"),
        "explained.py": ("name", "an expression on a plan that PostgreSQL gave"),
        "grants.py": ("schema what missing", "names of the catalog, quoted, and sentences for a person"),
        "hidden.py": ("table", "expressions of an oid that callers write as constants"),
        "maintenance.py": (
            "table later series until first begins ends name size",
            "tables of a table here, partitions of the catalog, days, and one of two functions",
        ),
        "names.py": ("schema", "the schema of the setting, which its pattern keeps to a plain name"),
        "remedies.py": ("error pid program role age", "sentences for a person"),
        "rights.py": ("owner role database table", "sentences for a person"),
        "transactions.py": ("values name value", "settings of PostgreSQL that callers write as constants"),
        "admin_reads.py": ("statement", "a constant of the caller, which this test has read there"),
        "answers.py": ("lifetime_h day", "integers of settings and the clock"),
        "rows.py": ("by_column types", "fields of NamedTuples"),
        "writes.py": ("places names", "names of counters, in a table here"),
        "reseal_statements.py": (
            (
                "table after columns due column text mark covered plain changes arrays names where typed"
                " coded each"
            ),
            "made at import, of a table of columns",
        ),
        "shape.py": (
            "partitioned index made lack own table constraint trigger name definition column added",
            "remedies for a person, with quoted names of the catalog",
        ),
        "schema.py": ("schema", "the schema of the setting, which its pattern keeps to a plain name"),
        "same_file.py": ("one other", "aliases of tables that callers write as constants"),
        "tables.py": ("role database schema", "a remedy for a person, with quoted names"),
        "tenant_rows.py": ("lock", "one of two constants of the caller"),
        "tenants.py": ("table", "tables of the catalog"),
        "usage.py": ("names columns most sums", "columns of a table here"),
    }.items()
}


class Part(NamedTuple):
    """What is put into a text of SQL."""

    file: str
    line: int
    expression: str
    names: frozenset[str]


def parts(path: Path) -> Iterator[Part]:
    """List what is put into texts of SQL and is no constant of a module."""
    tree = ast.parse(path.read_text("utf-8"))
    constant = _names_of_module(tree) | set(dir(builtins))
    for node in ast.walk(tree):
        for given in _given(node):
            own = {
                name.id
                for inner in ast.walk(given)
                if isinstance(inner, ast.comprehension)
                for name in ast.walk(inner.target)
                if isinstance(name, ast.Name)
            }
            names = {one.id for one in ast.walk(given) if isinstance(one, ast.Name)}
            if unknown := names - own - constant:
                yield Part(path.name, given.lineno, ast.unparse(given), frozenset(unknown))


def _given(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.JoinedStr):
        values = [one for one in node.values if isinstance(one, ast.FormattedValue)]
        text = "".join(str(one.value) for one in node.values if isinstance(one, ast.Constant))
        if _SQL.search(text):
            yield from (one.value for one in values)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        of = node.func.value
        if node.func.attr in ("format", "format_map", "replace", "join") and _is_sql(of):
            yield from node.args
            yield from (one.value for one in node.keywords)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and _is_sql(node.left):
        yield node.right
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        if _is_sql(node.left):
            yield node.right
        elif _is_sql(node.right):
            yield node.left


def _is_sql(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(_SQL.search(node.value))


def _names_of_module(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {one.asname or one.name for one in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        names |= {name.id for one in targets for name in ast.walk(one) if isinstance(name, ast.Name)}
    return names


@against("A05:2025", "V1.2")
def test_statement_parts_are_constants() -> None:
    allowed = {name: names for name, (names, _) in AT_RUN_TIME.items()}
    found = [one for path in FILES for one in parts(path) if not one.names <= allowed.get(one.file, set())]
    assert found == [], "give it as a parameter; if no client can have sent it, say so in AT_RUN_TIME"


@against("A05:2025", "V1.2")
def test_statement_parts_each_exception_is_needed() -> None:
    used = {name for path in FILES for one in parts(path) for name in ((path.name, n) for n in one.names)}
    assert {(name, one) for name, (names, _) in AT_RUN_TIME.items() for one in names} - used == set()


FORMATTED: Final = {
    "an f-string": 'def f(tenant): run(f"SELECT 1 FROM t WHERE a = {tenant}")',
    "a method of it": 'def f(row): run(f"DELETE FROM t WHERE a = {row.name.lower()}")',
    "format": 'def f(tenant): run("SELECT {} FROM t".format(tenant))',
    "format by name": 'def f(tenant): run("SELECT {a} FROM t".format(a=tenant))',
    "replace": 'def f(tenant): run("SELECT § FROM t".replace("§", tenant))',
    "join": 'def f(ids): run(" OR id = ANY ".join(ids))',
    "percent": 'def f(tenant): run("SELECT 1 FROM t WHERE a = %s" % tenant)',
    "a sum": 'def f(tenant): run("SELECT 1 FROM t WHERE a = " + tenant)',
    "a sum before": 'def f(head): run(head + " ORDER BY 1")',
    "a name of the module that an argument hides": 'A = 1\ndef f(B): run(f"SELECT {A} FROM {B}")',
}


@pytest.mark.parametrize("text", FORMATTED.values(), ids=FORMATTED)
@against("A05:2025", "V1.2")
def test_statement_made_of_an_argument_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text, "utf-8")
    assert len(list(parts(tmp_path / "a.py"))) == 1
