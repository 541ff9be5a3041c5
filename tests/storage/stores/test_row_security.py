"""Row-level security: a forgotten condition shows no row of a tenant that the transaction does not name."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Final, NamedTuple

import psycopg2
import pytest
from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

from bench.harness.clusters import as_role
from storage.postgres.roles.named_tenants import NAMED_BY
from tests.harness.every_method import OWN, EveryMethod
from tests.harness.services import execute, rows, without_cells
from tests.harness.unguarded import Ran, Values, captured, plain, without_each_condition
from tests.storage.stores.test_tenant_keys import STORAGE, UNKNOWN, references, texts

_ALONE: Final = without_cells("takes statements apart as they are written")
FOREIGN = 777
OWN_NAME: Final = "acme"
FOREIGN_NAME: Final = "globex"
#: The recount and the job that seals again run as the role of jobs, whom the policies show everything.
AS_JOBS: Final = ("usage.py", "reseal.py", "reseal_statements.py")
STORES: Final = STORAGE / "stores"
_GROWING: Final = (
    "SELECT c.relname::text FROM pg_class AS c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
    " AND c.relnamespace = current_schema()::regnamespace AND c.relname <> 'tenants' AND EXISTS (SELECT FROM"
    " pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') ORDER BY 1"
)
_COPIED: Final = (
    "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
    " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
    " AND attidentity = '' AND attname <> 'tenant_id'"
)


class Mutant(NamedTuple):
    """A statement with something of it changed, in the transaction of its store."""

    naming: str
    text: str
    values: Values | None


class Tried:
    """Mutants by what came of them. Each has a text that tells it from others."""

    def __init__(self) -> None:
        self.statements: set[str] = set()
        self.mutants: list[str] = []
        self.refused: list[str] = []
        self.foreign: list[str] = []


@pytest.fixture
async def ran(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Ran]]:
    """Everything that the stores send for one tenant."""
    everyone = plain(as_role(dsn, "jobs"), 1)
    database = plain(as_role(dsn, "serving"), 2, everyone)
    ((now_us,),) = rows(dsn, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")
    hour_ends = partial(execute, dsn, "UPDATE tenant_counters SET sync_hour = sync_hour - 1")
    methods = EveryMethod(database, int(str(now_us)), hour_ends)
    found = captured(monkeypatch)
    await methods.run()
    yield found
    await database.close()
    await everyone.close()


def _copy_to_foreign(cursor: Cursor, tables: list[str]) -> None:
    """Give a second tenant the same rows under the same ids."""
    cursor.execute(
        "INSERT INTO tenants (tenant_id, name) OVERRIDING SYSTEM VALUE VALUES (%s, %s)",
        (FOREIGN, FOREIGN_NAME),
    )
    cursor.execute("SET LOCAL session_replication_role = replica")  # the triggers' rows are copied, too
    for table in tables:
        cursor.execute(_COPIED, (table,))
        ((columns,),) = cursor.fetchall()
        cursor.execute(
            f"INSERT INTO {table} (tenant_id, {columns}) SELECT {FOREIGN}, {columns} FROM {table}"
            f" WHERE tenant_id = {OWN}"
        )
        assert cursor.rowcount > 0, f"the scenario writes nothing into {table}"
    cursor.execute("SET LOCAL session_replication_role = origin")


def _state(cursor: Cursor, tables: list[str]) -> list[tuple[Any, ...]]:
    parts = [
        f"SELECT '{table}', count(*), sum(hashtext(t::text)::bigint) FROM {table} AS t"
        f" WHERE tenant_id = {FOREIGN}"
        for table in tables
    ]
    cursor.execute(" UNION ALL ".join(parts))
    return cursor.fetchall()


def _outcome(cursor: Cursor, role: str, one: Mutant) -> object:
    """Return the rows of a mutant in the store's own transaction, or the error that refused it."""
    cursor.execute("SAVEPOINT mutant")
    cursor.execute(f"SET LOCAL ROLE {role}")
    try:
        cursor.execute(one.naming + one.text, one.values)
        return sorted(map(repr, cursor.fetchall())) if cursor.description else cursor.rowcount
    except psycopg2.Error as error:
        return error


def _undo(cursor: Cursor) -> None:
    cursor.execute("ROLLBACK TO SAVEPOINT mutant; RESET ROLE")


def _without_conditions(ran: Iterable[Ran]) -> Iterator[tuple[str, Mutant]]:
    """Yield each statement as often as it has a condition on the tenant, each time without another one."""
    for one in ran:
        for text in without_each_condition(one.text):
            yield one.text, Mutant(one.naming, text, one.values)


def _for_foreign(ran: Iterable[Ran]) -> Iterator[tuple[str, Mutant]]:
    """Yield each statement with the second tenant in its values, while the first one is named."""
    for one in ran:
        values = {name: _foreign(name, value) for name, value in (one.values or {}).items()}
        if values != (one.values or {}):
            yield one.text, Mutant(one.naming, one.text, values)


def _foreign(name: str, value: Any) -> Any:
    """Return a value of a statement, or that of the second tenant if it is the first one's number or name."""
    if name == NAMED_BY:
        return value
    if value == OWN_NAME:
        return FOREIGN_NAME
    if "tenant" not in name or not re.fullmatch(r"[\d{},]+", str(value)):
        return value
    foreign = re.sub(rf"\b{OWN}\b", str(FOREIGN), str(value))
    return int(foreign) if isinstance(value, int) else foreign


def _try_all(dsn: str, found: Iterable[tuple[str, Mutant]], role: str) -> Tried:
    """Run mutants of statements beside a second tenant; compare with a database of the first one alone."""
    tried = Tried()
    tables = [str(name) for (name,) in rows(dsn, _GROWING)]
    mutants = {}
    for statement, mutant in found:
        mutants[mutant.naming, mutant.text] = mutant
        tried.statements.add(statement)
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        _copy_to_foreign(cursor, tables)
        before, outcomes = _state(cursor, tables), dict[tuple[str, str], object]()
        for (naming, text), one in mutants.items():
            outcome = _outcome(cursor, role, one)
            outcomes[naming, text] = outcome
            changed = False
            if not isinstance(outcome, psycopg2.Error) and re.search(r"\b(INSERT|UPDATE|DELETE)\b", text):
                cursor.execute("RESET ROLE")
                changed = _state(cursor, tables) != before
            _undo(cursor)
            tried.mutants.append(text)
            if changed:
                tried.foreign.append(text)
        for table in reversed(tables):
            cursor.execute(f"DELETE FROM {table} WHERE tenant_id = {FOREIGN}")
        for (naming, text), one in mutants.items():
            alone = _outcome(cursor, role, one)
            _undo(cursor)
            outcome = outcomes[naming, text]
            if isinstance(outcome, psycopg2.Error):
                tried.refused.append(f"{type(outcome).__name__} {outcome}: {text}")
            elif isinstance(alone, psycopg2.Error) or outcome != alone:
                tried.foreign.append(text)
        connection.rollback()
    return tried


def _policies_hold(dsn: str, mutants: list[tuple[str, Mutant]], mistake: str, record_property: Any) -> None:
    """See that mutants reach nothing of the second tenant as the role of serving, and do as the owner."""
    guarded, bypassed = _try_all(dsn, mutants, "tidemark_serving"), _try_all(dsn, mutants, "tidemark")
    record_property("statements", len(guarded.statements))
    record_property("mutants", len(guarded.mutants))
    record_property("foreign_without_policies", len(bypassed.foreign))
    assert guarded.foreign == []
    assert len(bypassed.foreign) > 60, f"without the policies {mistake} does no harm"


@_ALONE
async def test_statements_without_a_condition_get_no_row_of_a_tenant_not_named(
    dsn: str, ran: list[Ran], record_property: Any
) -> None:
    mutants = list(_without_conditions(one for one in ran if not one.as_jobs))
    _policies_hold(dsn, mutants, "a forgotten condition", record_property)


@_ALONE
async def test_statements_for_another_tenant_than_the_named_one_reach_no_row_of_it(
    dsn: str, ran: list[Ran], record_property: Any
) -> None:
    """A wrong value instead of a missing condition. What is inserted for the other tenant is refused."""
    mutants = list(_for_foreign(one for one in ran if not one.as_jobs))
    _policies_hold(dsn, mutants, "a wrong value", record_property)


@_ALONE
async def test_statements_as_they_are_touch_one_tenant_without_the_policies(
    dsn: str, ran: list[Ran], record_property: Any
) -> None:
    """So a cell on Citus runs them, which takes no policies."""
    as_they_are = [(one.text, Mutant(one.naming, one.text, one.values)) for one in ran if not one.as_jobs]
    tried = _try_all(dsn, as_they_are, "tidemark")
    record_property("statements", len(tried.statements))
    # A new tenant's number comes from a sequence, so it is another one each time.
    assert [one for one in tried.foreign if not one.startswith("INSERT INTO tenants ")] == []


def _was_run(text: str, sent: Iterable[str]) -> bool:
    """Return whether each statement of a text of a module was run, whatever was put into it."""
    parts = [
        re.split(rf"{UNKNOWN}|\{{\w*\}}", one)
        for one in text.replace("{{", "{").replace("}}", "}").split("; ")
    ]
    return all(any(_has_in_order(one, few) for one in sent) for few in parts)


def _has_in_order(text: str, parts: Iterable[str]) -> bool:
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


@_ALONE
async def test_statements_on_growing_tables_were_all_tried(ran: list[Ran], dsn: str) -> None:
    growing = {str(name) for (name,) in rows(dsn, _GROWING)}
    sent = {one.text for one in ran}
    missing = [
        (path.name, text)
        for path in sorted(STORES.rglob("*.py"))
        if path.name not in AS_JOBS
        for text in texts(path)
        if any(one.table in growing for one in references(text)) and not _was_run(text, sent)
    ]
    assert len(missing) == 0, "\n".join(map(str, missing))
