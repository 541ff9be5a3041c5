"""The epoch: cursors carry it, so that devices notice that a database was restored from a backup."""

from __future__ import annotations

from engine.operate.ports import RefusedError
from storage.postgres.blocking import connected
from storage.postgres.transactions import AUDIT, audit_values
from storage.stores.audit import by_account


class PostgresEpoch:
    """``engine.operate.ports.EpochAdmin``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def restored(self) -> bool:
        """Return whether the epoch was made for another cluster."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT s.system_identifier <> c.system_identifier"
                " FROM cluster_state AS s, pg_control_system() AS c"
            )
            return cursor.fetchall() == [(True,)]

    def renew(self) -> str:
        """Create and return a new epoch for this cluster."""
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('cluster_state') IS NULL")
            if cursor.fetchall() == [(True,)]:
                raise RefusedError("this database has no schema: run `run.py migrate` first")
            cursor.execute(
                "UPDATE cluster_state SET epoch = replace(gen_random_uuid()::text, '-', ''),"
                " generation = generation + 1,"
                " system_identifier = (SELECT system_identifier FROM pg_control_system()) RETURNING epoch"
            )
            epoch = str(cursor.fetchall()[0][0])
            cursor.execute(AUDIT.text, audit_values([by_account("epoch_renewed", epoch)]))
            return epoch
