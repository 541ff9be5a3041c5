"""Statements of a cell: each table in them is named with its schema.

Statements are written without a schema. A cell's are made of them once for each text, and kept. A name
stands for a table where the grammar wants one: behind FROM, JOIN, INTO, UPDATE, USING and TABLE, and behind
the commas of a FROM. Names of common table expressions stay as they are, as do functions and the catalog.

- ``'name'::regclass`` and ``to_regclass('name')`` get the schema too.
- ``current_schema()`` becomes the schema itself.
- An advisory lock belongs to a whole database: a cell's has a second number, made of the schema.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|%\(\w+\)s|[A-Za-z_][\w.]*|[(),;]")
_NAME: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]*")
#: The name of a common table expression: in its statement it hides a table of the same name.
_EXPRESSION: Final = re.compile(r"\b(\w+)(?:\s*\([^()]*\))?\s+AS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\(")
_ADVISORY: Final = re.compile(r"\b(pg_(?:try_)?advisory_xact_lock(?:_shared)?)\(")
_REGCLASS: Final = re.compile(r"'(?!pg_)(\w+)'(?=::regclass)|(?<=to_regclass\()'(\w+)'")

_OPENS: Final = frozenset({"FROM", "USING"})
_ONE: Final = frozenset({"JOIN", "INTO", "UPDATE", "TABLE"})
#: Words that may stand between such a word and the table.
_BETWEEN: Final = frozenset({"ONLY", "LATERAL"})
#: Words that end the list of tables behind a FROM.
_ENDS: Final = frozenset(
    {"SELECT", "INSERT", "DELETE", "VALUES", "SET", "WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT"}
    | {"OFFSET", "FOR", "RETURNING", "UNION", "EXCEPT", "INTERSECT"}
)
#: FROM belongs to a query; extract(epoch FROM …) is none.
_QUERY: Final = frozenset({"SELECT", "DELETE"})
#: UPDATE behind them locks rows, or sets the columns of a conflict; FROM compares.
_NO_TABLE_BEHIND: Final = {"UPDATE": frozenset({"FOR", "KEY", "DO"}), "FROM": frozenset({"DISTINCT"})}
#: Statements of some texts change with the day or with what is asked: the oldest are made again.
_KEPT: Final = 1000


class _Frame(NamedTuple):
    """What is known within a pair of parentheses: whether it is a query, and whether a comma lists tables."""

    is_query: bool
    lists: bool


@lru_cache(maxsize=16)
def names_in(schema: str) -> Names | None:
    """Return how a cell names its tables, shared by this process; None without a schema."""
    return Names(schema) if schema else None


class Names:
    """How statements of one cell name its tables.

    Args:
        schema: The schema, a name that needs no quotes.
    """

    def __init__(self, schema: str) -> None:
        self.schema = schema
        #: For a blocking connection, whose statements are also definitions: it stands before each of them.
        #: In quotes: without them ``default`` would lead to another schema.
        self.search_path = f'SET LOCAL search_path = "{schema}"; '
        self._lock = zlib.crc32(schema.encode()) - (1 << 31)
        self._texts: dict[str, str] = {}

    def text(self, statement: str) -> str:
        """Return a statement with the names of tables in full. It is made once and kept."""
        found = self._texts.get(statement)
        if found is None:
            if len(self._texts) >= _KEPT:
                self._texts.clear()
            found = self._texts[statement] = self.locks(qualified(statement, self.schema))
        return found

    def locks(self, statement: str) -> str:
        """Return a statement whose advisory locks are the cell's own."""
        return _ADVISORY.sub(rf"\1({self._lock}, ", statement)


def qualified(statement: str, schema: str) -> str:
    """Return a statement, or several, with each table named in a schema."""
    hidden = _expressions(statement, 0)
    parts: list[str] = []
    copied = 0
    outer: list[_Frame] = []
    frame, expects, before = _Frame(is_query=False, lists=False), False, ""
    for found in _TOKEN.finditer(statement):
        token = found[0]
        if token == "(":  # noqa: S105  # a sign
            outer.append(frame)
            frame, expects = _Frame(is_query=False, lists=False), False
        elif token == ")":  # noqa: S105
            frame, expects = outer.pop() if outer else frame, False
        elif token == ",":  # noqa: S105
            expects = frame.lists
        elif token == ";":  # noqa: S105
            outer.clear()
            hidden = _expressions(statement, found.end())
            frame, expects = _Frame(is_query=False, lists=False), False
        elif token in _OPENS or token in _ONE:
            expects = before not in _NO_TABLE_BEHIND.get(token, ()) and (token != "FROM" or frame.is_query)  # noqa: S105
            if expects and token != "JOIN":  # noqa: S105
                frame = _Frame(frame.is_query or token == "UPDATE", token in _OPENS)  # noqa: S105
        elif token in _ENDS:
            frame, expects = _Frame(frame.is_query or token in _QUERY, lists=False), False
        elif expects and token not in _BETWEEN:
            expects = False
            called = statement.startswith("(", found.end())
            if _NAME.fullmatch(token) and token not in hidden and not called:
                parts += statement[copied : found.start()], schema, "."
                copied = found.start()
        before = token
    text = "".join((*parts, statement[copied:]))
    text = _REGCLASS.sub(lambda name: f"'{schema}.{name[1] or name[2]}'", text)
    return text.replace("current_schema()", f"'{schema}'")


def _expressions(statements: str, begin: int) -> frozenset[str]:
    """Return the names of common table expressions of the statement that begins there."""
    end = statements.find("; ", begin)
    return frozenset(_EXPRESSION.findall(statements, begin, len(statements) if end < 0 else end))
