"""Errors of PostgreSQL as sentences with their remedy: one table by SQLSTATE."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import psycopg2

from engine.runtime.ports import StoreError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_MIGRATE: Final = "the schema is not as this version needs it: run `run.py migrate`"
_NOT_OURS: Final = "no migration that is noted as applied made it: use a database of the server's own"
_RESTARTS: Final = "PostgreSQL is being started or stopped: try again"
_DAMAGED: Final = "PostgreSQL's files are damaged: stop the server and restore a backup"
_AGAIN: Final = "others changed the same at the same time: try again"

_REMEDIES: Final = {
    "28000": "let the role in: it has to exist, with LOGIN, and pg_hba.conf has to let it in from this host",
    "28P01": "correct the password in postgres.dsn, or in the file that postgres.dsn_file names",
    "3D000": "create it (docs/operations.md, Roles and a database), or correct its name in postgres.dsn",
    "25006": "this is a standby, or default_transaction_read_only is on: name the primary, or every host, in"
    " postgres.dsn",
    "3F000": _MIGRATE,
    "40001": _AGAIN,
    "40P01": _AGAIN,
    "42501": "run `run.py migrate`, which grants what roles need, as the owner of the database; a schema that"
    " `migrate --down` took back before row-level security is the owner's alone"
    " (docs/operations.md, Roles and a database); `run.py doctor` looks",
    "42701": _NOT_OURS,
    "42703": _MIGRATE,
    "42710": _NOT_OURS,
    "42P01": _MIGRATE,
    "42P07": _NOT_OURS,
    "53100": "the disk of PostgreSQL is full: free some space there, or add some",
    "53200": "PostgreSQL has no memory left: lower its work_mem or max_connections, or give its host more",
    "53300": "raise max_connections, or lower server.workers, commit.lanes or postgres.read_connections, or"
    " put a pooler between",
    "55P03": "another transaction holds it: try again, or look in pg_stat_activity for one that does not end",
    "57014": "it took longer than statement_timeout allows: raise that of the role, or try again",
    "57P01": _RESTARTS,
    "57P02": _RESTARTS,
    "57P03": _RESTARTS,
    "58030": "PostgreSQL cannot read or write its files: look at its disk and its log",
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}

#: A refused connection has no SQLSTATE: these are the words of PostgreSQL and libpq for it.
_REFUSED: Final = (
    (re.compile(r"password authentication failed|no password supplied"), "28P01"),
    (re.compile(r'no pg_hba\.conf entry|role ".*" does not exist|not permitted to log in'), "28000"),
    (re.compile(r"authentication failed"), "28000"),
    (re.compile(r'database ".*" does not exist'), "3D000"),
    (re.compile(r"permission denied for database"), "42501"),
    (re.compile(r"too many (clients|connections)|connection slots"), "53300"),
    (re.compile(r"starting up|shutting down|not yet accepting|in recovery mode"), "57P03"),
    (re.compile(r"session is read-only|hot standby"), "25006"),
    (re.compile(r"No space left"), "53100"),
)
_LOCKED: Final = "55P03"
#: The oldest transaction that holds a lock on a table of this database.
_HOLDER: Final = (
    "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type, ''), coalesce(a.usename, ''),"
    " extract(epoch FROM now() - a.xact_start)::int FROM pg_stat_activity AS a"
    " WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND EXISTS ("
    " SELECT FROM pg_locks AS l WHERE l.pid = a.pid AND l.granted AND l.relation >= 16384)"
    " ORDER BY a.xact_start LIMIT 1"
)


class DatabaseFaultError(StoreError):
    """PostgreSQL refused something: ``found`` is its sentence, ``remedy`` says what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}: {remedy}")
        self.found = found
        self.remedy = remedy


def sentence(error: psycopg2.Error) -> str:
    """Return the error in one line, with its remedy, or with its SQLSTATE if no remedy is known."""
    fault = fault_of(error)
    if fault is not None:
        return str(fault)
    return said(error) + (f" (SQLSTATE {error.pgcode})" if error.pgcode else "")


def fault_of(error: psycopg2.Error) -> DatabaseFaultError | None:
    """Return the error with its remedy; None if no remedy is known."""
    found = said(error)
    state = error.pgcode or next((state for words, state in _REFUSED if words.search(found)), "")
    remedy = _REMEDIES.get(state)
    return None if remedy is None else DatabaseFaultError(found, remedy)


def read_only(found: str) -> DatabaseFaultError:
    """Return the fault of a host that takes no writes."""
    return DatabaseFaultError(found, _REMEDIES["25006"])


def said(error: psycopg2.Error) -> str:
    """Return the first line of the error's text."""
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def lock_sentence(connection: Connection, error: psycopg2.Error) -> str:
    """Return the sentence for a lock timeout, with the transaction that holds the lock."""
    try:
        connection.rollback()
        with connection.cursor() as cursor:
            cursor.execute(_HOLDER)
            holders = cursor.fetchall()
    except psycopg2.Error:
        holders = []
    if not holders:
        return f"{said(error)}: {_REMEDIES[_LOCKED]}"
    pid, program, role, held_s = holders[0]
    age = "" if held_s is None else f", for {held_s} s"
    return (
        f"{said(error)}: the transaction of PostgreSQL's process {pid} holds it"
        f" ({program}, role {role}{age}): wait for it, or end it with SELECT pg_terminate_backend({pid})"
    )
