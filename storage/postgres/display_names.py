"""Names of a database and of a Redis that a person may see: never with a password."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import schema_of

#: Stands in place of a secret.
HIDDEN: Final = "***"
#: Parameters of libpq that are secrets.
_SECRET: Final = ("password", "sslpassword", "oauth_client_secret")
#: Up to the last @, since a password that is not encoded may hold one.
_CREDENTIALS: Final = re.compile(r"(?<=//)([^:]*):.*@", re.DOTALL)
_QUERY: Final = re.compile(r"(\w*password\w*=)[^&#]*", re.IGNORECASE)


def database_name(dsn: str, *others: str) -> str:
    """Return ``host:port/name`` of the server that answers, or the DSN without secrets if none does.

    Behind it stands the schema of a cell.

    Args:
        dsn: The database.
        others: The same as other roles: one may come in where another is refused.
    """
    for one in dict.fromkeys((dsn, *others)):
        with suppress(StoreError), connected(one) as connection:
            info = connection.info
            host = info.host or "localhost"
            shown = f"[{host}]" if ":" in host and not host.startswith("/") else host
            return f"{shown}:{info.port}/{info.dbname}" + (
                f", schema {cell}" if (cell := schema_of(one)) else ""
            )
    return dsn_without_secrets(dsn)


def dsn_without_secrets(dsn: str) -> str:
    """Return a DSN in libpq's keywords with its secrets hidden; a text that is no DSN is hidden whole."""
    try:
        parts = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return HIDDEN
    hidden: dict[str, str] = {name: HIDDEN for name in _SECRET if name in parts}
    if "@" in (host := parts.get("host", "")) and not host.startswith(
        "@"
    ):  # a part of a password that is not encoded
        hidden["host"] = f"{HIDDEN}@{host.rpartition('@')[2]}"
    return str(make_dsn(**parts | hidden))


def url_without_secrets(url: str) -> str:
    """Return the URL of a Redis with its passwords hidden; a text that is no URL is hidden whole."""
    if "//" not in url:
        return HIDDEN
    return _QUERY.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1:{HIDDEN}@", url))
