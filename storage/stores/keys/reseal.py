"""Seals again what tenants have stored: a page of rows at a time, in place, beside running servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from operator import ne
from typing import Any, Final, NamedTuple

import msgspec

from engine.model.rows import IdempotencyKey
from engine.operate.reseal import Resealed
from engine.operate.rows import UnreadableValue
from engine.runtime.ports import StoreError
from engine.seal.ports import KeysMissingError
from engine.wire.floats import json_decoder
from storage.postgres.arrays import text_array_or_null
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.stores.held_changes import StoredChange, changes_in_steps, encode_changes
from storage.stores.keys.reseal_statements import (
    HERE,
    MOVE,
    PAGE_SETTINGS,
    Statements,
    flags_of,
    key_of,
    own_of,
    statements_of,
    stored_of,
    unreadable_value,
)
from storage.stores.keys.sealed_columns import SEALED_TABLES, SealedColumn, SealedTable
from storage.stores.sealed.answers import open_answer
from storage.stores.sealed.checked import checked_transaction
from storage.stores.sealed.sealing import HASH_IN_RESULTS, VOICE_ID, Sealing, UnreadableValueError, in_steps

#: Rows of one page. A tenant is locked while they are written: for some milliseconds.
PAGE_ROWS: Final = 100
#: A page is read again so often if others changed rows of it, as syncs do.
_TRIES: Final = 5
#: Until a rotation or a sealed domain is so old, no pass begins: servers follow within a second, and then
#: seal what they write. What they wrote before, or missed to seal, is in the pass (``_NUMBER``).
_FOLLOWED_S: Final = 5
_NEEDED: Final = (
    "greatest(p.wanted_at, (SELECT max(since) FROM sealed_domains"
    f" WHERE since + interval '{_FOLLOWED_S} seconds' > t.created_at)) + interval '{_FOLLOWED_S} seconds'"
)
_WAIT: Final = (
    f"SELECT greatest(0, extract(epoch FROM max(at) - now()) + {_FOLLOWED_S})::float8 FROM"
    " (SELECT max(since) AS at FROM sealed_domains UNION ALL SELECT max(wanted_at) FROM reseal_passes) AS w"
)
_NEXT: Final = (
    "SELECT t.tenant_id FROM tenants AS t LEFT JOIN reseal_passes AS p ON p.tenant_id = t.tenant_id"
    f" WHERE t.tenant_id > %(after)s::int AND {_NEEDED} > coalesce(p.done_at, '-infinity')"
    f" AND {_NEEDED} <= now() ORDER BY t.tenant_id LIMIT 1"
)
#: Whether a pass goes on, and whether the number that this process took is new enough to begin one.
_DUE: Final = (
    f"SELECT p.began_at IS NOT NULL AND p.began_at >= {_NEEDED}, %(began)s::timestamptz >= {_NEEDED}"
    " FROM tenants AS t LEFT JOIN reseal_passes AS p ON p.tenant_id = t.tenant_id"
    " WHERE t.tenant_id = %(tenant)s::int"
)
_BEGIN: Final = (
    "INSERT INTO reseal_passes AS p (tenant_id, began_at) VALUES (%(tenant)s::int, %(began)s::timestamptz)"
    " ON CONFLICT (tenant_id) DO UPDATE SET began_at = excluded.began_at, place = NULL, position = NULL,"
    " resealed = 0, unreadable_values = 0, unreadable = '[]'"
)
#: A transaction that did not see a domain or a key, and seals without it, has a number of before it
#: (storage/stores/sealed/checked.py), and so below that of a pass for it. A pass begins when they have ended.
#: One number serves all tenants of a run: each wait lasts as long as the longest batch.
_NUMBER: Final = "SELECT pg_current_xact_id()::text, now()::text FROM cluster_state"
_OLDER_ENDED: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot()) > %(number)s::xid8 FROM cluster_state"
#: Servers and commands end an open transaction long before. A run is held for a minute.
_OLDER_S: Final = 30.0
_LOOK_S: Final = 0.1
_STATE: Final = (
    "SELECT p.place, p.position::text, extract(epoch FROM (SELECT max(since) FROM sealed_domains))::float8"
    f" + {_FOLLOWED_S} FROM reseal_passes AS p WHERE p.tenant_id = %(tenant)s::int"
)
_END: Final = (
    "UPDATE reseal_passes SET done_at = began_at, began_at = NULL, place = NULL, position = NULL"
    f" WHERE tenant_id = %(tenant)s::int AND {HERE} RETURNING 1"
)
_DEAD: Final = (
    "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables"
    " WHERE schemaname = current_schema() AND relname ~ %(tables)s"
)

_decode_changes: Final = msgspec.json.Decoder(list[StoredChange]).decode
_decode: Final = json_decoder(dict[str, Any]).decode
_decode_position: Final = msgspec.json.Decoder(list[str]).decode
_encode: Final = msgspec.json.encode
_STATEMENTS: Final[tuple[tuple[SealedTable, Statements], ...]] = tuple(
    (table, statements_of(table)) for table in SEALED_TABLES
)


class _Where(NamedTuple):
    """How far a pass is: the index of the table, and the key of the last row that was looked at.

    ``stored`` is how the pass has it, of which a page of a later table may be the next one.
    """

    table: int
    after: list[str] | None
    stored: Mapping[str, object]


class _Started(NamedTuple):
    """The number of a transaction, the time of the database at that moment, and until when to wait."""

    number: str
    began: str
    give_up_s: float


class PostgresReseal:
    """``engine.operate.reseal.ResealStore``.

    Args:
        database: The database.
        sealing: Opens and seals.
        refresh: Reads again which domains are sealed, and the keys.
        page_rows: Rows of one step.
    """

    def __init__(
        self,
        database: Database,
        sealing: Sealing,
        refresh: Callable[[], Awaitable[None]],
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._refresh = refresh
        self._page_rows = page_rows
        self._started = _Started("0", "-infinity", 0.0)

    async def wait_s(self) -> float:
        """Return how long to wait for servers."""
        ((wait_s,),) = await self._database.query(_WAIT, tenants=EVERYONE)
        return float(wait_s or 0)

    async def next_tenant(self, after: int) -> int | None:
        """Find a tenant that needs a pass."""
        found = await self._database.query(_NEXT, {"after": after}, EVERYONE)
        return int(found[0][0]) if found else None

    async def begin(self, tenant_id: int) -> None:
        """Begin or resume a pass."""
        known = {"tenant": tenant_id, "began": self._started.began}
        found = await self._database.query(_DUE, known, [tenant_id])
        if not found:
            return  # the tenant was removed
        ((resumes, is_new_enough),) = found
        if resumes:
            await self._refresh()
            return
        if not is_new_enough:
            ((number, began),) = await self._database.execute(_NUMBER)
            await self._refresh()
            self._started = _Started(number, began, asyncio.get_running_loop().time() + _OLDER_S)
        await self._wait_for_older(self._started)
        values = {"tenant": tenant_id, "began": self._started.began}
        await self._database.execute(_BEGIN, values, tenants=[tenant_id])

    async def _wait_for_older(self, started: _Started) -> None:
        """Wait until every transaction with a lower number has ended. Raises StoreError."""
        loop = asyncio.get_running_loop()
        while await self._database.query(_OLDER_ENDED, {"number": started.number}) != [(True,)]:
            if loop.time() > started.give_up_s:
                raise StoreError(
                    f"transactions that began before this pass are still open after {_OLDER_S:.0f} s, in this"
                    " or another database of the server: see those of pg_stat_activity with a backend_xid,"
                    " and pg_prepared_xacts, and end them; the next run goes on"
                )
            await asyncio.sleep(_LOOK_S)

    async def step(self, tenant_id: int) -> Resealed | None:
        """Seal a page of rows again."""
        state = await self._database.query(_STATE, {"tenant": tenant_id}, [tenant_id])
        if not state:
            return None  # the tenant was removed
        place, position, followed_s = state[0]
        await self._sealing.load_keys([tenant_id])
        where = _where(place, position)
        for table in range(where.table, len(_STATEMENTS)):
            at = where if table == where.table else _Where(table, None, where.stored)
            done = await self._page(tenant_id, at, followed_s or 0.0)
            if done is not None:
                return done
        values = {"tenant": tenant_id, **where.stored}
        if await self._database.execute(_END, values, tenants=[tenant_id]):
            return None
        return Resealed(0, 0, 0)  # the pass is elsewhere: the next step reads where

    async def _page(self, tenant_id: int, where: _Where, followed_s: float) -> Resealed | None:
        """Do a page of one table; None if no row of it is left."""
        looked = values = missed = 0
        for _ in range(_TRIES):
            rows = await self._read(tenant_id, where, followed_s)
            if not rows:
                return None
            looked = rows[0][0]
            done, missed, unreadable = await self._write(tenant_id, where, rows)
            values += done
            if not missed:
                return Resealed(looked, values, 0, unreadable)
        return Resealed(looked, values, missed)

    async def _read(self, tenant_id: int, where: _Where, followed_s: float) -> list[Row]:
        _, statements = _STATEMENTS[where.table]
        unsealed = self._sealing.unsealed_domains()
        values: dict[str, object] = {
            "tenant": tenant_id,
            "limit": self._page_rows,
            "on": unsealed is not None,
            "unsealed": sorted(unsealed or ()),
            "head": self._sealing.active_head(tenant_id).hex(),
            "followed": followed_s,
        }
        if where.after is None:
            return await self._database.execute(statements.first_page, values, PAGE_SETTINGS, [tenant_id])
        values |= {f"a{at}": text for at, text in enumerate(where.after)}
        return await self._database.execute(statements.page, values, PAGE_SETTINGS, [tenant_id])

    async def _write(
        self, tenant_id: int, where: _Where, rows: list[Row]
    ) -> tuple[int, int, Sequence[UnreadableValue]]:
        """Write the rows that are to be changed, and the position.

        Returns:
            Values done, rows missed, and what cannot be opened, which is left as it is.
        """
        table, statements = _STATEMENTS[where.table]
        due = [row for row in rows if any(flags_of(table, row))]
        unreadable: list[Row] = []
        before = self._sealing.seals_as(tenant_id)
        changed = await self._sealing.opened(
            due, lambda row: _changed(self._sealing, table, tenant_id, row), unreadable.append
        )
        due = [row for row in due if row not in unreadable]
        values = sum(sum(flags_of(table, row)) for row in due)
        for row in unreadable:  # its other values are done
            around = await in_steps(_changed(self._sealing, table, tenant_id, row, around=True))
            if done := sum(map(ne, around[len(table.key) + 1 :], stored_of(table, row))):
                due.append(row)
                changed.append(around)
                values += done
        named = [unreadable_value(table, row) for row in unreadable]
        moved: dict[str, object] = {
            "unreadable_values": len(named),
            "unreadable": _encode(named).decode(),
            "tenant": tenant_id,
            "place": table.name,
            "position": _encode(key_of(table, rows[-1])).decode(),
            "values": values,
            **where.stored,
        }
        if not due:
            await self._database.execute(MOVE, moved, PAGE_SETTINGS, [tenant_id])
            return 0, 0, named
        arrays = {
            name: text_array_or_null(column)
            for name, column in zip(statements.changed, zip(*changed, strict=True), strict=True)
        }
        async with checked_transaction(
            self._database, self._sealing, [tenant_id], PAGE_SETTINGS
        ) as transaction:
            if self._sealing.seals_as(tenant_id) != before:
                return 0, len(due), ()  # another key, or another domain, since the rows were read
            # The tenant is locked from here on.
            ((written,),) = await transaction.query(statements.update, {**moved, **arrays, "due": len(due)})
        missed = len(due) - int(written)
        return (0 if missed else values), missed, named

    async def dead_rows(self) -> int:
        """Return the dead rows of the tables."""
        names = "|".join(sorted({table.name.removesuffix("_later") for table, _ in _STATEMENTS}))
        ((count,),) = await self._database.query(_DEAD, {"tables": f"^({names})"})
        return int(count)


def _where(place: str | None, position: str | None) -> _Where:
    stored = {"from_place": place, "from_position": position}
    for at, (table, _) in enumerate(_STATEMENTS):
        if table.name == place and position is not None:
            return _Where(at, _decode_position(position), stored)
    return _Where(0, None, stored)


def _changed(
    sealing: Sealing, table: SealedTable, tenant_id: int, row: Row, *, around: bool = False
) -> Generator[None, None, list[str | None]]:
    """Return the key, xmin, values and further columns of a row as they should be.

    It yields where the loop is to be given back. With ``around``, values that cannot be opened stay.
    """
    keys = len(table.key)
    domain, value_id, version = own_of(table, row)
    own = tenant_id, domain, value_id, version
    flags = flags_of(table, row)
    values: list[str | None] = []
    more: Sequence[str | None] = row[6 + keys + 2 * len(table.columns) :]
    for column, is_due, stored in zip(table.columns, flags, stored_of(table, row), strict=True):
        value = stored
        if is_due and stored is not None:
            try:
                if column.form == "voice":
                    value, more = _voice(sealing, column, own, stored, more)
                elif column.form == "answer":
                    value, more = _answer(sealing, column, own, stored, more)
                else:
                    value = yield from _value(sealing, column, own, stored)
            except (KeysMissingError, UnreadableValueError, msgspec.DecodeError) as error:
                if not around and isinstance(error, msgspec.DecodeError):
                    sentence = f"{column.place} of {domain} {value_id}: {error}"
                    raise UnreadableValueError(tenant_id, sentence) from None
                if not around:
                    raise
            if sealing.slice_is_full():
                yield
        values.append(value)
    return [*row[2 : 3 + keys], *values, *more]


_Own = tuple[int, str | None, str, int]


def _value(
    sealing: Sealing, column: SealedColumn, own: _Own, stored: str
) -> Generator[None, None, str | None]:
    tenant_id, domain, value_id, version = own
    if column.form == "text":
        plain_text = sealing.open_text(column.place, tenant_id, domain, value_id, version, stored)
        return sealing.seal_text(column.place, tenant_id, domain, value_id, version, plain_text)
    assert domain is not None
    if column.form == "changes":
        of_conflict = tenant_id, domain, value_id
        changes = yield from changes_in_steps(_decode_changes(stored), sealing, of_conflict)
        return encode_changes(changes, sealing, of_conflict).decode()
    plain = sealing.open(column.place, tenant_id, domain, value_id, version, stored)
    sealed = sealing.seal(column.place, tenant_id, domain, value_id, version, plain)
    return None if sealed is None else sealed.decode()


def _answer(
    sealing: Sealing, column: SealedColumn, own: _Own, stored: str, more: Sequence[str | None]
) -> tuple[str | None, Sequence[str | None]]:
    """Return the results, and the hash of the request, which is sealed with them."""
    tenant_id, domain, value_id, version = own
    assert domain is not None
    (request_sha256,), results = more, stored.encode()
    if stored[0] == '"':
        request_sha256, results = open_answer(sealing, IdempotencyKey(tenant_id, value_id), stored)
    assert request_sha256 is not None
    if not sealing.covers(domain):
        return results.decode(), [request_sha256]
    plain = bytes.fromhex(request_sha256) + results
    sealed = sealing.seal(column.place, tenant_id, domain, value_id, version, plain)
    assert sealed is not None
    return sealed.decode(), [HASH_IN_RESULTS]


def _voice(
    sealing: Sealing, column: SealedColumn, own: _Own, stored: str, more: Sequence[str | None]
) -> tuple[str | None, Sequence[str | None]]:
    """Return the result, and the ids of the verification and the person, which are sealed with it."""
    tenant_id, domain, value_id, version = own
    assert domain is not None
    verification_id, user_id = more
    assert verification_id is not None
    plain = sealing.open(column.place, tenant_id, domain, value_id, version, stored)
    assert plain is not None
    result = _decode(plain)
    if stored[0] == '"':
        verification_id, user_id = result.pop("verification_id"), result.pop("user_id")
    if not sealing.covers(domain):
        return _encode(result).decode(), [verification_id, user_id]
    found = sealing.keyed_hash(VOICE_ID, tenant_id, domain, verification_id)
    named = {"verification_id": verification_id, "user_id": user_id}
    sealed = sealing.seal(column.place, tenant_id, domain, found, version, _encode(named | result))
    assert sealed is not None
    return sealed.decode(), [found, None]
