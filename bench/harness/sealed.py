"""A benchmark of sealed data: every domain of its databases is sealed, and audits read them opened.

The key is in the environment of this process, where all that read or write its databases find it.
"""

from __future__ import annotations

import os
import secrets
import tomllib
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bench.harness.administer import administer
from compose.configuration import DEFAULTS
from engine.cache.key_ring import COMMAND_SEALS, TenantKeyRing
from engine.model.rows import IdempotencyKey
from engine.seal.master_keys import KEY_BYTES, MasterKeys
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import schema_of
from storage.postgres.pool import Database
from storage.stores.keys.wrapped import PostgresTenantKeys
from storage.stores.sealed.answers import open_answer
from storage.stores.sealed.sealing import EVENT_DATA, RECORD_DATA, Sealing

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

_KEY: Final = "TIDEMARK_BENCH_MASTER_KEY"
_PAGE_ROWS: Final = 5000


def seal_from_now() -> None:
    """Seal the databases that are made from now on."""
    os.environ[_KEY] = b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def variables() -> dict[str, str]:
    """Return what the environment of a server has in addition."""
    return {"TIDEMARK__SEALING__MASTER_KEY": os.environ[_KEY]} if _KEY in os.environ else {}


def seal(dsn: str) -> None:
    """Seal every domain of a new database, if this benchmark is of sealed data. Raises StoreError."""
    if _KEY not in os.environ:
        return
    domains = list(tomllib.loads(DEFAULTS.read_text("utf-8"))["domains"])
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO sealed_domains (domain) SELECT unnest(%s)", (domains,))


def open_tables(cursor: Cursor, dsn: str) -> None:
    """Let this connection see records, events and answers opened, in temporary tables of their names.

    Raises:
        StoreError: A value cannot be opened.
    """
    if _KEY not in os.environ:
        return
    sealing = administer(dsn, _sealing)

    def record(*row: object) -> bytes | None:
        return sealing.open(RECORD_DATA, *row)  # type: ignore[arg-type]  # the columns below

    def event(*row: object) -> bytes | None:
        return sealing.open(EVENT_DATA, *row)  # type: ignore[arg-type]  # as above

    def answer(tenant_id: int, key_hash: str, stored: str) -> bytes:
        return open_answer(sealing, IdempotencyKey(tenant_id, key_hash), stored)[1]

    schema = schema_of(dsn) or "public"
    _open(cursor, schema, "records", "data", "tenant_id, domain, id, version", record)
    _open(cursor, schema, "events", "data", "tenant_id, domain, id, sent_at_us", event)
    own = "tenant_id, replace(key_hash::text, '-', '')"
    _open(cursor, schema, "sync_idempotency_record", "results", own, answer)


async def _sealing(database: Database) -> Sealing:
    class Given:
        async def keys(self, _: str | None = None) -> MasterKeys:
            return MasterKeys([b64decode(os.environ[_KEY])])

    ring = TenantKeyRing(PostgresTenantKeys(database), Given(), os.urandom, COMMAND_SEALS)
    await ring.load([tenant_id for (tenant_id,) in await database.query("SELECT tenant_id FROM tenants")])
    return Sealing(ring)


def _open(
    cursor: Cursor, schema: str, table: str, column: str, own: str, plain: Callable[..., bytes | None]
) -> None:
    cursor.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM {schema}.{table}")
    cursor.execute(
        f"SELECT ctid::text, {own}, {column}::text FROM {table} WHERE left({column}::text, 1) = '\"'"
    )
    sealed = cursor.fetchall()
    for start in range(0, len(sealed), _PAGE_ROWS):
        part = sealed[start : start + _PAGE_ROWS]
        opened = [(plain(*row[1:]) or b"").decode() for row in part]
        cursor.execute(
            f"UPDATE {table} AS t SET {column} = w.v::json FROM unnest(%s::text[], %s::text[]) AS w(c, v)"
            " WHERE t.ctid = w.c::tid",
            ([row[0] for row in part], opened),
        )
