"""The epoch: cursors carry it, so that devices notice that a database was restored from a backup."""

from __future__ import annotations

from uuid import uuid4

from engine.operate.ports import RefusedError
from storage.postgres.blocking import connected
from storage.postgres.cell.identity import is_restored, system_identifier
from storage.postgres.transactions import AUDIT, audit_values
from storage.stores.audit import by_account


class PostgresEpoch:
    """``engine.operate.ports.EpochAdmin``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def restored(self) -> bool:
        """Return whether the epoch was made for another cluster."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            return is_restored(cursor)

    def renew(self) -> str:
        """Create and return a new epoch for this cluster."""
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('cluster_state') IS NULL")
            if cursor.fetchall() == [(True,)]:
                raise RefusedError("this database has no schema: run `run.py migrate` first")
            epoch = uuid4().hex
            cursor.execute(
                "UPDATE cluster_state SET epoch = %s, generation = generation + 1, system_identifier = %s",
                (epoch, system_identifier(cursor)),
            )
            if cursor.rowcount != 1:
                raise RefusedError("cluster_state has no row: restore it from a backup")
            cursor.execute(AUDIT.text, audit_values([by_account("epoch_renewed", epoch)]))
            return epoch
