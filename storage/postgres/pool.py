"""Connections to PostgreSQL, borrowed and given back.

Several statements travel in one string, so that a batch costs two round trips; of them the driver
(``storage/postgres/driver.py``) gives back the rows of the last. Whatever the driver raises leaves here as a
``StoreError``.

Planning a batch's statements afresh costs 0.45 ms, as much as a lone sync needs besides. So each
connection prepares them on first use. Behind a pooler that hands the server's connections around, a
prepared statement may be missing or exist already: the first such error, before anything was written,
switches this process to plain statements.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg2
import structlog

from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StorePoisonError,
    StoreRetryError,
    StoreUnavailableError,
)
from storage.postgres.driver import Link, Row, Values, connect
from storage.postgres.hosts import Host, Place, order_of
from storage.postgres.remedies import sentence as told

__all__ = [
    "SERVER_MS",
    "ConnectionLostError",
    "Database",
    "NoAnswerError",
    "Pooling",
    "Row",
    "Session",
    "Statement",
    "Values",
]

#: No statement of ours takes this long; what does is given up and its connection dropped.
STATEMENT_S: Final = 10.0
#: The server gives up first, so that no statement runs on behind a connection that was dropped.
SERVER_MS: Final = 9000
#: How long whoever wants a connection waits for one.
_WAIT_S: Final = 5.0
_KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

#: SQLSTATE classes that say the value itself is refused, whatever the time.
_POISON = ("22", "23", "54")
_DISK_FULL: Final = "53100"
#: Those that say the statement is wrong here: a schema that is not ours, a right that is missing.
_WRONG = ("42", "0A", "3F")

#: Some statements are others every day (storage/stores/idempotency_keys.py): those of past days would stay in
# memory.
_MAX_PREPARED: Final = 200

#: A timeout of the server, or somebody who had it cancel the statement.
_CANCELLED: Final = "57014"

#: A prepared statement is missing, or there is one of that name already.
_NOT_AS_PREPARED: Final = ("26000", "42P05")

_log = structlog.get_logger()


class Pooling:
    """Whether a pooler between us and the server hands connections around."""

    found = False


class ConnectionLostError(StoreRetryError):
    """The connection broke or was given up on; what its last statement did is not known."""


class NotPreparedError(StoreRetryError):
    """A pooler handed out another connection than the one that prepared the statement; nothing was run."""


class NoAnswerError(ConnectionLostError):
    """The connection was given up on."""


class Statement:
    """One statement with named values (``%(name)s``), which may be prepared."""

    __slots__ = ("call", "name", "preparation", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        names = list(dict.fromkeys(_PLACEHOLDER.findall(text)))
        body = _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}::text", text)
        # The name tells the text, so that another version of this server can't have meant another.
        self.name = "tidemark_" + hashlib.blake2b(body.encode(), digest_size=12).hexdigest()
        self.preparation = f"PREPARE {self.name} AS {body}; ".replace("%", "%%")
        values = ", ".join(f"%({name})s" for name in names)
        self.call = f"EXECUTE {self.name}" + (f" ({values})" if names else "")


_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")


class Session:
    """One connection. Not for two tasks at once."""

    def __init__(self, host: Host, link: Link, pooling: Pooling) -> None:
        self.host = host
        #: Whether the host is to blame for the end of the connection.
        self.host_failed = False
        self._link = link
        self._pooling = pooling
        self._prepared: set[str] = set()

    async def run_prepared(
        self, opening: str, statements: Sequence[Statement], closing: str, values: Values
    ) -> list[Row]:
        """Run ``opening``, the statements, then ``closing`` in one round trip, as ``run`` does."""
        if self._pooling.found:
            texts = [statement.text for statement in statements]
            return await self.run(opening + "; ".join(texts) + closing, values)
        calls, forgetting = "; ".join([statement.call for statement in statements]), ""
        new = [statement for statement in statements if statement.name not in self._prepared]
        if new and len(self._prepared) >= _MAX_PREPARED:
            new, forgetting = list(statements), "DEALLOCATE ALL; "
            self._prepared.clear()
        if not new:
            return await self.run(opening + calls + closing, values)
        preparations = forgetting + "".join([statement.preparation for statement in new])
        try:
            rows = await self.run(preparations + opening + calls + closing, values)
        except BaseException:
            self.close()  # which of them were prepared is not known
            raise
        self._prepared.update([statement.name for statement in new])
        return rows

    async def run(self, statements: str, values: Values | None = None) -> list[Row]:
        """Run statements in one round trip and return the rows of the last one, none for a command.

        Raises ConnectionLostError, StoreRetryError (rolled back by the server), StorePoisonError.
        """
        try:
            return await self._link.run(statements, values, STATEMENT_S)
        except TimeoutError:
            self._lose()
            raise NoAnswerError(f"no answer within {STATEMENT_S:.0f} s") from None
        except psycopg2.Error as error:
            raise self._translated(error) from None
        except (ValueError, UnicodeError) as error:
            raise StorePoisonError(str(error)) from None
        except OSError as error:
            self._lose()
            raise ConnectionLostError(str(error)) from None

    def _translated(self, error: psycopg2.Error) -> StoreError:
        state = error.pgcode or ""
        sentence = told(error)
        if state == _CANCELLED and not self._link.closed:
            return StoreRetryError("the server cancelled the statement")
        if (
            self._link.closed
            or state[:2] in ("08", "57")
            or (not state and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError))
        ):
            self._lose()
            return ConnectionLostError(sentence)
        if state in _NOT_AS_PREPARED:
            if not self._pooling.found:  # else what was under way by then fails alike
                self._pooling.found = True
                _log.info("pooler_found", sqlstate=state)
            return NotPreparedError(sentence)
        if state == "25006":  # the host was demoted: another one is the primary now
            self._lose()
            return StoreRetryError(sentence)
        if state == _DISK_FULL:
            return StoreFullError(sentence)
        if state.startswith(_POISON):
            return StorePoisonError(sentence)
        if state.startswith(_WRONG):
            return StoreError(sentence)
        return StoreRetryError(sentence)

    def warned(self) -> bool:
        """Tell whether the server warned since this was last asked, as COMMIT does of a silent standby.

        In whatever language: nothing below a warning is sent (``client_min_messages``).
        """
        # What came with the last result reaches the notices only when the driver looks once more.
        self._link.advance()
        if self._link.closed:
            return True
        notices = self._link.notices
        warned = bool(notices)
        notices.clear()
        return warned

    def _lose(self) -> None:
        self.host_failed = True
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._link.closed

    def close(self) -> None:
        """Cut the connection; the server rolls back what was open."""
        self._link.close()


#: Of one round trip alone: several statements in one string are one transaction.
_READING: Final = f"SET LOCAL statement_timeout = {SERVER_MS}; "
#: A plan that is kept must suit a table that was empty when it was made, and is not weighed anew each time.
_READING_PREPARED: Final = (
    _READING + "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan; "
)


class Database:
    """A bounded number of connections to the primary, opened when first needed and again when lost.

    Of several hosts in ``dsn`` those that serve no writes are passed over. ``pooling`` is shared with others
    of this process, so that a pooler is found once. Raises StoreError for a DSN that cannot be read.
    """

    def __init__(self, dsn: str, connections: int, pooling: Pooling | None = None) -> None:
        self._order = order_of(dsn)
        self._pooling = pooling or Pooling()
        self._idle: deque[Session] = deque()
        self._free = asyncio.Semaphore(connections)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Borrow a connection for a moment. Raises StoreUnavailableError."""
        session = await self.acquire()
        try:
            yield session
        except BaseException:
            await self.release(session, clean=False)
            raise
        await self.release(session)

    async def query(self, statement: str | Statement, values: Values | None = None) -> list[Row]:
        """Run one read on a borrowed connection, once more if that one had been lost unnoticed or was pooled.

        A ``Statement`` is prepared; one that is asked seldom is better planned each time.

        Raises StoreError.
        """
        for attempt in (1, 2):
            try:
                async with self.session() as session:
                    if isinstance(statement, str):
                        return await session.run(_READING + statement, values)
                    return await session.run_prepared(_READING_PREPARED, (statement,), "", values or {})
            except NoAnswerError:
                raise
            except (ConnectionLostError, NotPreparedError):
                if attempt == 2:
                    raise
        raise AssertionError

    async def acquire(self) -> Session:
        """Take a connection; ``release`` must follow. Raises StoreUnavailableError."""
        if self._free.locked():
            try:
                async with asyncio.timeout(_WAIT_S):
                    await self._free.acquire()
            except TimeoutError:
                raise StoreUnavailableError("no connection became free") from None
        else:
            await self._free.acquire()
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.closed:
                    return session
            return await self._connect()
        except BaseException:
            self._free.release()
            raise

    async def release(self, session: Session, *, clean: bool = True) -> None:
        """Give a connection back; one that is not ``clean`` is rolled back first."""
        try:
            if not clean and not session.closed:
                try:
                    await session.run("ROLLBACK")
                    session.warned()  # of a transaction that had ended; the next COMMIT is not to blame
                except StoreError:
                    session.close()
            if not session.closed:
                self._idle.append(session)
            elif session.host_failed:
                self._order.failed(session.host)
                self._drop_idle(session.host)
        except BaseException:
            session.close()
            raise
        finally:
            self._free.release()

    async def _connect(self) -> Session:
        """Connect to the first host that is the primary. Raises StoreUnavailableError."""
        order = self._order
        refusals: list[str] = []
        for host in order.now():
            places = await host.places(one_of_several=order.several)
            if not places:
                refusals.append(host.unknown)
            for place in order.sorted(places):
                try:
                    return await self._connect_to(host, place)
                except StoreUnavailableError as error:
                    order.place_failed(place)
                    refusals.append(str(error))
            order.failed(host)
        raise StoreUnavailableError("; ".join(refusals))

    async def _connect_to(self, host: Host, place: Place) -> Session:
        try:
            async with asyncio.timeout(place.patience_s):
                link = await connect(place.dsn, application_name="tidemark", **_KEEPALIVE)
                try:
                    if await link.run("SHOW transaction_read_only", None, STATEMENT_S) != [("off",)]:
                        raise StoreUnavailableError(
                            f"the database at {place.name} is read-only: it is not the primary"
                        )
                except BaseException:
                    link.close()
                    raise
        except StoreUnavailableError:
            raise
        except TimeoutError:
            raise StoreUnavailableError(
                f"no answer from {place.name} within {place.patience_s:g} s: see that it runs and that no"
                " firewall is between"
            ) from None
        except Exception as error:  # of whatever kind: the database is away, and that ends nothing
            said = told(error) if isinstance(error, psycopg2.Error) else str(error) or type(error).__name__
            raise StoreUnavailableError(f"cannot connect to {place.name}: {said}") from None
        return Session(host, link, self._pooling)

    def _drop_idle(self, host: Host) -> None:
        """Close what else is connected to a host that failed, so that nobody finds out one by one."""
        kept = [session for session in self._idle if session.host is not host]
        for session in self._idle:
            if session.host is host:
                session.close()
        self._idle = deque(kept)

    async def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.popleft().close()
