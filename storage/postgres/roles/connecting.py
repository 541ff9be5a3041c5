"""The role that a DSN connects as. Its text may leave it to a service file, the environment or a pooler."""

from __future__ import annotations

from contextlib import closing

import psycopg2
from psycopg2.extensions import parse_dsn

from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected


def connecting_role(dsn: str) -> str:
    """Return the role of a DSN: as PostgreSQL says, or as libpq would say it if it does not let it in yet.

    Raises:
        StoreError: Neither can be asked.
    """
    try:
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_user::text")
            return str(cursor.fetchall()[0][0])
    except StoreError:
        named = parse_dsn(dsn).get("user")
        if named:
            return str(named)
        try:
            # Nothing is sent yet: libpq has read its files and variables.
            with closing(psycopg2.connect(dsn, async_=True)) as begun:
                return str(begun.info.user)
        except psycopg2.Error:
            pass
        raise
