"""Further checks of the checklist for a deployment: a pooler in between, and the archive of the WAL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import psycopg2

from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

Pooling = Literal["none", "session", "transaction", "statement"]

#: With none of these a restore ends at the last whole backup.
_ARCHIVE: Final = (
    "SELECT current_setting('wal_level') AS wal_level, current_setting('archive_mode') <> 'off' AS archives,"
    " (SELECT setting::int FROM pg_settings WHERE name = 'archive_timeout') AS timeout_s,"
    " (SELECT count(*)::int FROM pg_stat_replication) AS followers, a.last_archived_time,"
    " a.last_archived_wal, a.last_failed_time, a.last_failed_wal FROM pg_stat_archiver AS a"
)


class Archive(msgspec.Struct, frozen=True):
    """What PostgreSQL says of the archive of its WAL.

    Attributes:
        wal_level: The setting.
        archives: Whether ``archive_mode`` is on.
        timeout_s: After how long a segment that is not full is archived; 0 is never.
        followers: Standbys and ``pg_receivewal`` that are connected.
        last_archived_time: When a segment was archived last.
        last_archived_wal: Its name.
        last_failed_time: When the archiving of a segment failed last.
        last_failed_wal: Its name.
    """

    wal_level: str
    archives: bool
    timeout_s: int
    followers: int
    last_archived_time: datetime | None
    last_archived_wal: str | None
    last_failed_time: datetime | None
    last_failed_wal: str | None


def read_archive(dsn: str) -> Archive:
    """Read the state of the archive. Raises StoreError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_ARCHIVE)
        return Archive(*cursor.fetchall()[0])


def archive_finding(archive: Archive) -> CheckResult:
    """Judge the archive of a database of which backups are made."""
    if archive.wal_level == "minimal":
        return CheckResult(
            "fault",
            "archive",
            "wal_level = minimal: the WAL cannot be archived, and pg_basebackup refuses",
            "set wal_level = replica, and restart PostgreSQL",
        )
    failed, archived = archive.last_failed_time, archive.last_archived_time
    if archive.archives and failed is not None and (archived is None or failed > archived):
        return CheckResult(
            "fault",
            "archive",
            f"archive_command fails: {archive.last_failed_wal} at {failed:%Y-%m-%d %H:%M %Z}",
            "look into PostgreSQL's log, and mend archive_command: until then its WAL fills the disk",
        )
    if archive.archives and not archive.timeout_s:
        return CheckResult(
            "warning",
            "archive",
            "archive_timeout = 0: the last changes are archived when 16 MB of WAL are full, however long"
            " that takes",
            "set archive_timeout = 60, and reload PostgreSQL: a restore lacks a minute at most then",
        )
    if archive.archives:
        when = "none yet" if archived is None else f"last {archive.last_archived_wal} at {archived:%H:%M %Z}"
        return CheckResult("ok", "archive", f"WAL is archived, {when}")
    if archive.followers:
        return CheckResult("ok", "archive", f"WAL goes to {archive.followers} that follow, and to no archive")
    return CheckResult(
        "warning",
        "archive",
        "archive_mode = off, and nothing follows: a restore loses all that came after the last backup",
        "archive the WAL (docs/operations.md, Backups and restores)",
    )


def pooler_finding(dsns: Sequence[str]) -> Iterator[CheckResult]:
    """Say whether a pooler stands before the database, and how it hands connections around.

    Args:
        dsns: The database, as each role that serves.

    Raises:
        StoreError: The database is away.
    """
    found = sorted({_pooling(dsn) for dsn in dsns})
    if "statement" in found:
        remedy = (
            "set pool_mode = transaction (deploy/pgbouncer/pgbouncer.ini) or session, and reload the pooler"
        )
        said = "the pooler hangs up when a transaction begins, as in pool_mode = statement"
        yield CheckResult("fault", "pooler", said, remedy)
    elif "transaction" in found:
        said = "pool_mode = transaction: each batch is planned again, 0.45 ms"
        yield CheckResult("ok", "pooler", said)
    elif "session" in found:
        yield CheckResult("ok", "pooler", "pool_mode = session, or no other client was there to tell it by")
    else:
        yield CheckResult("ok", "pooler", "no pooler is between")


def _pooling(dsn: str) -> Pooling:
    """Find out how a pooler hands connections around.

    PostgreSQL tells a client the number of its process at the login. A pooler tells a number of its own. If a
    second client gets the process of a first one that is still connected, connections go from one transaction
    to the next.
    """
    with connected(dsn) as one:
        process = _process(one)
        if process == one.info.backend_pid:
            return "none"
        with connected(dsn) as other:
            try:
                with other.cursor() as cursor:
                    cursor.execute("BEGIN")  # holds its connection of the server
            except psycopg2.OperationalError:  # the pooler hangs up
                return "statement"
            shared = _process(other) == process or _process(one) != process
            return "transaction" if shared else "session"


def _process(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchall()[0][0])
