"""Statements as stores run them, and the same with one condition on the tenant replaced by ``true``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import pytest

from storage.postgres.connection import PooledConnection, PoolerDetection
from storage.postgres.driver import Row
from storage.postgres.pool import Database

Values = Mapping[str, Any]

_COLUMN: Final = r"(?:\w+\.)?tenant_id\b"
_OTHER: Final = r"(?:ANY\s*\((?:[^()]|\([^()]*\))*\)|%\(\w+\)s(?:::[\w\[\]]+)?|[\w.]+)"
#: A condition on the tenant, by its number or by its name, and a join on it.
_CONDITION: Final = re.compile(
    rf"{_COLUMN}\s*=\s*{_OTHER}|\b[\w.]+\s*=\s*{_COLUMN}|t\.name = %\(name\)s"
    r"|\(?%\(tenant\)s::text IS NULL OR t\.name = %\(tenant\)s\)?"
)
_JOIN: Final = re.compile(r"USING \(tenant_id, ")
_NAMES: Final = re.compile(
    r"SET LOCAL tidemark\.tenants = '[^']*'; |SELECT set_config\('tidemark\.t.*?true\); "
)
_AROUND: Final = re.compile(r"BEGIN; |(?:; )?(?:COMMIT|ROLLBACK)$")


class Ran(NamedTuple):
    """A statement that was sent, what named the tenants before it, and whether as the role of jobs."""

    text: str
    values: Values | None
    naming: str
    as_jobs: bool


def plain(dsn: str, connections: int, everyone: Database | None = None) -> Database:
    """Return a database that prepares nothing."""
    return Database(dsn, connections, PoolerDetection(found=True), everyone=everyone)


def captured(patch: pytest.MonkeyPatch) -> list[Ran]:
    """Return a list that is filled with what ``plain`` databases send from now on."""
    found: list[Ran] = []
    names: dict[PooledConnection, tuple[str, Values]] = {}
    open_ones: set[PooledConnection] = set()
    run = PooledConnection._run

    async def capture(self: PooledConnection, statements: str, values: Values | None) -> list[Row]:
        named = _NAMES.search(statements)
        if named:
            names[self] = (named[0], values or {})
        text = _AROUND.sub("", _NAMES.sub("", statements))
        naming, named_values = names.get(self, ("", {}))
        given = {**named_values, **(values or {})} if values is not None or named_values else None
        as_jobs = "user=tidemark_jobs" in self.host.dsn
        found.extend(Ran(one, given, naming, as_jobs) for one in text.split("; ") if one)
        ends = statements.endswith(("COMMIT", "ROLLBACK"))
        if ends or ("BEGIN; " not in statements and self not in open_ones):
            names.pop(self, None)
            open_ones.discard(self)
        else:
            open_ones.add(self)
        return await run(self, statements, values)

    patch.setattr(PooledConnection, "_run", capture)
    return found


def without_each_condition(text: str) -> Iterator[str]:
    """Yield a statement as often as it has a condition on the tenant, each time without another one."""
    for found in _CONDITION.finditer(text):
        yield f"{text[: found.start()]}true{text[found.end() :]}"
    for found in _JOIN.finditer(text):
        yield f"{text[: found.start()]}USING ({text[found.end() :]}"
