"""Where a database and a Redis are, in words that a person may see: never with a password."""

from __future__ import annotations

import re
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected

#: In place of a secret.
HIDDEN: Final = "***"
#: What libpq takes that nobody else may know.
_SECRET: Final = ("password", "sslpassword", "oauth_client_secret")
#: Up to the last @: whatever a password holds that belongs into no URL.
_CREDENTIALS: Final = re.compile(r"(?<=//)([^:]*):.*@", re.DOTALL)
_QUERY: Final = re.compile(r"(\w*password\w*=)[^&#]*", re.IGNORECASE)


def place_of(dsn: str) -> str:
    """Name a database as ``host:port/name`` by the server that answers, else by its DSN without secrets."""
    try:
        with connected(dsn) as connection:
            info = connection.info
            host = info.host or "localhost"
            shown = f"[{host}]" if ":" in host and not host.startswith("/") else host
            return f"{shown}:{info.port}/{info.dbname}"
    except StoreError:
        return dsn_without_secrets(dsn)


def dsn_without_secrets(dsn: str) -> str:
    """Return a DSN in libpq's keywords with its secrets hidden; all of it where it is none."""
    try:
        parts = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return HIDDEN
    hidden: dict[str, str] = {name: HIDDEN for name in _SECRET if name in parts}
    if "@" in (host := parts.get("host", "")) and not host.startswith("@"):  # of a bare password
        hidden["host"] = f"{HIDDEN}@{host.rpartition('@')[2]}"
    return str(make_dsn(**parts | hidden))


def url_without_secrets(url: str) -> str:
    """Return the URL of a Redis with its passwords hidden; all of it where it is none."""
    if "//" not in url:
        return HIDDEN
    return _QUERY.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1:{HIDDEN}@", url))
