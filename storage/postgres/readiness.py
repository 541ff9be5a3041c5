"""Checks of `/readyz`: whether the database is durable, migrated and writable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.runtime.ports import StoreError
from storage.postgres.cell.identity import SYSTEM_IDENTIFIER
from storage.postgres.pool import Database

MIN_SERVER_VERSION: Final = 140002
DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")


_READ: Final = (*DURABLE, "server_version_num", "server_encoding", "transaction_read_only")
#: Settings, each with the identity that the epoch is of. Beside a table: on Citus they are then those of the
#: node that has the tables.
_SETTINGS: Final = (
    "SELECT w.name, current_setting(w.name), c.system_identifier FROM cluster_state AS c"
    f" CROSS JOIN unnest('{{{','.join(_READ)}}}'::text[]) AS w(name)"
)


async def faults(database: Database, newest_migration: str) -> list[str]:
    """Return a sentence for each problem; none if the database is fit."""
    try:
        read = await database.query(_SETTINGS)
        here = await database.query(SYSTEM_IDENTIFIER)
        applied = await database.query(
            "SELECT 1 FROM _yoyo_migration WHERE migration_id = %(newest)s", {"newest": newest_migration}
        )
    except StoreError as error:
        return [f"the database does not answer as it should: {error}"]
    if not read:
        return ["cluster_state has no row: restore it from a backup"]
    settings = {name: setting for name, setting, _ in read}
    found = [f"{what}: {remedy}" for what, remedy in (*undurable(settings), *unfit(settings))]
    if not applied:
        found.append("the schema is not up to date: run `run.py migrate`")
    if [read[0][2:]] != here:
        found.append("this database was restored: run `run.py epoch renew` so that devices pull afresh")
    return found


def undurable(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the settings by which what is acknowledged could be lost: the problem, and its remedy."""
    return [
        (f"PostgreSQL runs with {name} = off", "what is acknowledged could be lost; set it to on")
        for name in DURABLE
        if settings[name] == "off"
    ]


def unfit(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what else of PostgreSQL does not fit a server: the problem, and its remedy."""
    found = []
    if int(settings["server_version_num"]) < MIN_SERVER_VERSION:
        found.append(("PostgreSQL is too old", "14.2 or later is required"))
    if settings["server_encoding"] != "UTF8":
        found.append((f"the database is encoded in {settings['server_encoding']}", "create one in UTF8"))
    if settings["transaction_read_only"] == "on":
        found.append(("the database is read-only", "it is not the primary"))
    return found
