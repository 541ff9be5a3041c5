"""What a database lacks of the schema that migrations make, each with the statement that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import owner_prefix
from storage.postgres.checkup.catalogue import Catalogue, Lack, Table, expected_tables, read_catalogue
from storage.postgres.roles.tables import quoted

_RESTORE: Final = "restore it from a backup: migrations that are noted as applied do not make it again"


def schema_findings(dsn: str) -> Iterator[CheckResult]:
    """Do as ``shape_findings`` for a database, as the owner. Raises StoreError."""
    with connected(dsn) as connection:
        found = read_catalogue(connection)
    yield from shape_findings(expected_tables(), found, owner_prefix(dsn))


def shape_findings(expected: Mapping[str, Table], found: Catalogue, as_owner: str) -> Iterator[CheckResult]:
    """Compare indexes, constraints and triggers. What an operator added besides is left alone.

    Args:
        expected: The tables as migrations make them.
        found: The tables as they are.
        as_owner: How statements of a remedy begin (``storage.postgres.cell.dsn.owner_prefix``).

    Yields:
        A fault for each difference, and a line for each kind that has none.
    """
    for name in sorted(expected.keys() - found.tables.keys()):
        yield CheckResult("fault", "schema", f"the table {name} is missing", _RESTORE)
    both = {name: (table, found.tables[name]) for name, table in expected.items() if name in found.tables}
    count = sum(len(table.indexes) for table in expected.values())
    said = f"{count} indexes are as migrations make them, and valid"
    yield from _or_ok("indexes", said, _indexes(both, found), as_owner)
    count = sum(len(table.constraints) + len(table.not_null) for table in expected.values())
    said = f"{count} constraints are as migrations make them, and validated"
    yield from _or_ok("constraints", said, _constraints(both, found), as_owner)
    count = sum(len(table.triggers) for table in expected.values())
    said = f"{count} triggers are as migrations make them, and fire"
    yield from _or_ok("triggers", said, _triggers(both, found), as_owner)


_Both = Mapping[str, tuple[Table, Table]]


def _or_ok(
    subject: str, said: str, faults: Iterator[tuple[str, str]], as_owner: str
) -> Iterator[CheckResult]:
    """Yield a fault for each problem and the statements that mend it, or a line if there is none."""
    sound = True
    for found, statements in faults:
        sound = False
        yield CheckResult("fault", subject, found, as_owner + statements)
    if sound:
        yield CheckResult("ok", subject, said)


def _indexes(both: _Both, found: Catalogue) -> Iterator[tuple[str, str]]:
    for name, (wanted, has) in both.items():
        for index, definition in wanted.indexes.items():
            if index in wanted.constraints:
                continue  # it comes and goes with its constraint
            created = _created(definition, partitioned=wanted.partitioned)
            if index not in has.indexes:
                yield f"the index {index} of {name} is missing", created
            elif has.indexes[index] != definition:
                remedy = f"{_dropped(index, partitioned=wanted.partitioned)}; {created}"
                yield f"the index {index} of {name} is another one: {has.indexes[index]}", remedy
    ours = {index for wanted, _ in both.values() for index in wanted.indexes}
    for one in found.invalid:
        if one.index in ours or one.attached:
            remedy = f"REINDEX INDEX CONCURRENTLY {quoted(one.index)}"
            yield f"the index {one.index} of {one.table} is not valid: PostgreSQL does not use it", remedy
        else:
            remedy = _dropped(one.index, partitioned=False)
            yield f"the index {one.index} of {one.table} is not valid, as one that was not finished", remedy
    for lack in found.lacking:
        yield f"the partition {lack.partition} lacks the index {lack.index}", _attached(lack)


def _created(definition: str, *, partitioned: bool) -> str:
    return definition if partitioned else definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)


def _dropped(index: str, *, partitioned: bool) -> str:
    return f"DROP INDEX {'' if partitioned else 'CONCURRENTLY '}{quoted(index)}"


def _attached(lack: Lack) -> str:
    own = f"{lack.partition}_{lack.index}"
    made = lack.definition.replace(f" {lack.index} ON {lack.table} ", f" {own} ON {lack.partition} ", 1)
    return f"{_created(made, partitioned=False)}; ALTER INDEX {lack.index} ATTACH PARTITION {own}"


def _constraints(both: _Both, found: Catalogue) -> Iterator[tuple[str, str]]:
    for name, (wanted, has) in both.items():
        for constraint, definition in wanted.constraints.items():
            added = f"ALTER TABLE {name} ADD CONSTRAINT {constraint} {definition}"
            if constraint not in has.constraints:
                yield f"the constraint {constraint} of {name} is missing", added
            elif has.constraints[constraint] != definition:
                remedy = f"ALTER TABLE {name} DROP CONSTRAINT {constraint}; {added}"
                yield f"the constraint {constraint} of {name} is: {has.constraints[constraint]}", remedy
        for column in sorted(set(wanted.not_null) - set(has.not_null)):
            remedy = f"ALTER TABLE {name} ALTER COLUMN {column} SET NOT NULL"
            yield f"the column {column} of {name} may be null", remedy
    for table, constraint in found.unvalidated:
        remedy = f"ALTER TABLE {table} VALIDATE CONSTRAINT {quoted(constraint)}"
        yield f"the constraint {constraint} of {table} was not validated: older rows may break it", remedy


def _triggers(both: _Both, found: Catalogue) -> Iterator[tuple[str, str]]:
    for name, (wanted, has) in both.items():
        for trigger, definition in wanted.triggers.items():
            if trigger not in has.triggers:
                yield f"the trigger {trigger} of {name} is missing", definition
            elif has.triggers[trigger] != definition:
                remedy = f"DROP TRIGGER {trigger} ON {name}; {definition}"
                yield f"the trigger {trigger} of {name} is another one: {has.triggers[trigger]}", remedy
    for table, trigger in found.disabled:
        remedy = f"ALTER TABLE {table} ENABLE TRIGGER {quoted(trigger)}"
        yield (
            f"the trigger {trigger} of {table} does not fire, as after pg_restore --disable-triggers",
            remedy,
        )
