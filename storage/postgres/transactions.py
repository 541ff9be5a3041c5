"""The one seam for transactions: begin, settings, commit, and a commit of unknown outcome.

Settings are made for each transaction alone, so that no setting of the database, of its role or of a pooler
matters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final, NamedTuple, Protocol, Self

import msgspec

from engine.model.audit import AuditRow
from engine.runtime.ports import StoreUnknownError
from storage.postgres.arrays import int_array, number_array_or_null, text_array, text_array_or_null
from storage.postgres.connection import ConnectionLostError, PooledConnection, Statement
from storage.postgres.driver import Row, Values
from storage.postgres.roles.named_tenants import NOBODY, Tenants, naming

#: A server ends a statement after this, before ``connection.STATEMENT_S`` drops its connection. Otherwise the
#: statement would run on without anybody to wait for it.
SERVER_MS: Final = 9000
#: A holder that stands still (stopped process, dead host) gives its tenants free after this.
HOLD_MS: Final = 2000
#: Longer than ``HOLD_MS``, so that a waiting transaction outlasts a holder that stands still.
LOCK_WAIT_MS: Final = 3000


def set_for_transaction(**values: str | int) -> Statement:
    """Return the statement that makes settings for one transaction alone."""
    return Statement(
        "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in values.items())
    )


def transaction_settings(synchronous_commit: str, **more: str) -> Statement:
    """Return the settings of a server's transaction, and ``more``.

    - ``enable_seqscan = off``: a plan made while a table was empty would go on reading all of it.
    - ``force_generic_plan``: a lone sync would be planned again each time, since a plan for its values looks
      cheaper than the average.
    - ``client_min_messages = warning``: a warning is how COMMIT reports a standby that has not confirmed.
    """
    return set_for_transaction(
        idle_in_transaction_session_timeout=HOLD_MS,
        lock_timeout=LOCK_WAIT_MS,
        statement_timeout=SERVER_MS,
        synchronous_commit=synchronous_commit,
        enable_seqscan="off",
        plan_cache_mode="force_generic_plan",
        client_min_messages="warning",
        **more,
    )


SETTINGS: Final = transaction_settings(synchronous_commit="on")
#: For rows that may be lost together with the primary: COMMIT waits for its disk, and for no standby.
LOCAL_SETTINGS: Final = transaction_settings(synchronous_commit="local")

#: Several statements in one string are one transaction, so that SET LOCAL holds for one round trip.
READ: Final = f"SET LOCAL statement_timeout = {SERVER_MS}; "
#: A plan that is kept must suit a table that was empty when it was made, and is not weighed again each time.
READ_PREPARED: Final = (
    READ + "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan; "
)


class StatementLimits(NamedTuple):
    """How long statements may take, and what is set for them.

    ``read`` and ``read_prepared`` stand before a read, ``write`` at the begin of a transaction. ``bounded``
    says whether a statement is given up after ``connection.STATEMENT_S``.
    """

    bounded: bool
    read: str
    read_prepared: str
    write: Statement


SERVER_LIMITS: Final = StatementLimits(bounded=True, read=READ, read_prepared=READ_PREPARED, write=SETTINGS)
#: A command may take as long as its role allows. If it is stopped within a transaction, it still gives the
#: tenants free that devices wait for.
COMMAND_LIMITS: Final = StatementLimits(
    bounded=False,
    read="",
    read_prepared="",
    write=set_for_transaction(
        idle_in_transaction_session_timeout=HOLD_MS, synchronous_commit="on", client_min_messages="warning"
    ),
)


#: Appends events to the audit log. A batch knows its tenants by their numbers alone.
AUDIT: Final = Statement(
    "WITH noted AS MATERIALIZED (SELECT"
    " coalesce(to_timestamp(w.u / 1000000.0), clock_timestamp()), w.e, w.k, w.a,"
    " coalesce(w.n, t.name), w.i, w.g, w.d, w.m FROM unnest(%(a_ats)s::bigint[], %(a_events)s::text[],"
    " %(a_kinds)s::text[], %(a_actors)s::text[], %(a_tenants)s::text[], %(a_numbers)s::int[],"
    " %(a_targets)s::text[], %(a_details)s::json[], %(a_times)s::int[]) AS w(u, e, k, a, n, i, g, d, m)"
    " LEFT JOIN tenants AS t ON t.tenant_id = w.i)"
    " INSERT INTO audit_log (at, event, actor_kind, actor, tenant, tenant_number, target, details, times)"
    " SELECT * FROM noted"
)


def audit_values(rows: Sequence[AuditRow]) -> dict[str, object]:
    """Return the values of ``AUDIT``."""
    details = [None if row.details is None else msgspec.json.encode(row.details).decode() for row in rows]
    return {
        "a_ats": number_array_or_null([row.at_us for row in rows]),
        "a_events": text_array([row.event for row in rows]),
        "a_kinds": text_array([row.actor.kind for row in rows]),
        "a_actors": text_array([row.actor.name for row in rows]),
        "a_tenants": text_array_or_null([row.tenant for row in rows]),
        "a_numbers": number_array_or_null([row.tenant_number for row in rows]),
        "a_targets": text_array([row.target for row in rows]),
        "a_details": text_array_or_null(details),
        "a_times": int_array([row.times for row in rows]),
    }


class _Release(Protocol):
    def __call__(self, connection: PooledConnection, *, clean: bool) -> Awaitable[None]: ...


class Transaction:
    """One transaction. It begins with its first statements, in their round trip.

    ``commit`` or ``rollback`` has to follow, and gives the connection back: a block (``async with``) commits
    at its end, and rolls back if it raises. Two tasks must not use it at the same time.

    Args:
        connection: The borrowed connection.
        settings: What is set for this transaction.
        release: Gives the connection back; with ``clean=False`` it is rolled back first.
        tenants: Whose rows it is for.
    """

    __slots__ = ("_begun", "_connection", "_ended", "_release", "_settings", "_tenants")

    def __init__(
        self,
        connection: PooledConnection,
        settings: Statement,
        release: _Release,
        tenants: Tenants = NOBODY,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._release = release
        self._tenants = tenants
        self._begun = False
        self._ended = False

    async def __aenter__(self) -> Self:
        """Return this transaction."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit, or roll back if the block raised. Raises as ``commit``."""
        if kind is None:
            await self.commit()
        else:
            await self.rollback()

    async def run(self, statements: Sequence[Statement], values: Values) -> list[Row]:
        """Run statements in one round trip and return the rows of the last one.

        Raises:
            StoreError: As ``PooledConnection.run``.
        """
        if self._begun:
            return await self._connection.run_prepared("", statements, "", values)
        self._begun = True
        named, named_values = naming(self._tenants, values, self._connection.names)
        return await self._connection.run_prepared(
            f"BEGIN; {named}", (self._settings, *statements), "", named_values or {}
        )

    async def query(
        self, statement: str, values: Values | None = None, tenants: Tenants = NOBODY
    ) -> list[Row]:
        """Run a statement that is planned each time, and return its rows.

        Args:
            statement: The statement.
            values: Its values by name.
            tenants: Whose rows the transaction is for from now on; without any it stays as it was.

        Raises:
            StoreError: As ``PooledConnection.run``.
        """
        named = ""
        if tenants or not self._begun:
            named, values = naming(tenants or self._tenants, values, self._connection.names)
        begin = "" if self._begun else f"BEGIN; {self._settings.text}; "
        self._begun = True
        return await self._connection.run(statement, values, begin + named)

    async def note(self, row: AuditRow) -> None:
        """Append an event to the audit log, with the change that it tells of.

        Raises:
            StoreError: As ``PooledConnection.run``.
        """
        await self.query(AUDIT.text, audit_values([row]))

    async def commit(self, statements: Sequence[Statement] = (), values: Values | None = None) -> None:
        """Run the last statements of a transaction that has begun, and commit, in one round trip.

        Raises:
            StoreUnknownError: The outcome is not known, or the commit may not have reached the standby.
            StoreError: As ``PooledConnection.run``; nothing was written.
        """
        clean = False
        try:
            if self._begun:
                closing = "; COMMIT" if statements else "COMMIT"
                await self._connection.run_prepared("", statements, closing, values or {})
                self._connection.confirm_commit()
            clean = True
        except ConnectionLostError as error:
            raise StoreUnknownError(str(error)) from None
        finally:
            await self._end(clean=clean)

    async def rollback(self) -> None:
        """End without writing. After ``commit`` it does nothing."""
        if not self._ended:
            await self._end(clean=not self._begun)

    async def _end(self, *, clean: bool) -> None:
        self._ended = True
        await self._release(self._connection, clean=clean)
