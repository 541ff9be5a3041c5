"""A bounded number of connections to PostgreSQL, borrowed and given back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Final

import psycopg2

from engine.runtime.ports import StoreError, StoreUnavailableError, StoreUnknownError
from storage.postgres.cell.citus import HAS_CITUS
from storage.postgres.cell.dsn import schema_of
from storage.postgres.cell.names import names_in
from storage.postgres.connection import (
    STATEMENT_S,
    ConnectionLostError,
    NoAnswerError,
    NotPreparedError,
    PooledConnection,
    PoolerDetection,
    PoolUsage,
    Statement,
    StatementNames,
)
from storage.postgres.driver import Row, Values, connect
from storage.postgres.hosts import Address, Host, order_of
from storage.postgres.remedies import fault_of, read_only, said
from storage.postgres.remedies import sentence as told
from storage.postgres.roles.named_tenants import EVERYONE, NOBODY, Tenants, naming
from storage.postgres.transactions import SERVER_LIMITS, StatementLimits, Transaction

#: How long a caller waits for a connection to become free.
_WAIT_S: Final = 5.0
_READ_ONLY: Final = "SHOW transaction_read_only"
_READ_ONLY_AND_CITUS: Final = f"SELECT current_setting('transaction_read_only'), {HAS_CITUS}"
_KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class CannotConnectError(StoreUnavailableError):
    """No host let this process in. ``causes`` are the refusals as a person at the command line reads them."""

    def __init__(self, sentences: list[str], causes: list[StoreError]) -> None:
        super().__init__("; ".join(sentences))
        self.causes = causes


class Database:
    """A bounded number of connections to the primary, opened when first needed and again when lost.

    Args:
        dsn: The database. Of several hosts those that take no writes are passed over.
        connections: How many connections there are at most.
        pooler: Shared with the other databases of this process, so that a pooler is detected once.
        limits: How long statements may take.
        everyone: The same database as the role of jobs, for work over all tenants. None if this is it.

    Raises:
        StoreError: The DSN cannot be read.
    """

    def __init__(
        self,
        dsn: str,
        connections: int,
        pooler: PoolerDetection | None = None,
        limits: StatementLimits = SERVER_LIMITS,
        everyone: Database | None = None,
    ) -> None:
        self._order = order_of(dsn)
        self.schema = schema_of(dsn)
        names = names_in(self.schema)
        self._names = None if names is None else StatementNames(names)
        self._everyone = everyone or self
        self._pooler = pooler or PoolerDetection()
        self._limits = limits
        self._idle: deque[PooledConnection] = deque()
        self._free = asyncio.Semaphore(connections)
        self._usage = PoolUsage(connections)

    def with_everyone(self, everyone: Database) -> Database:
        """Return this database, of the same connections, with other ones for work over all tenants."""
        same = copy(self)
        same._everyone = everyone  # noqa: SLF001  # its own class
        return same

    @property
    def usage(self) -> PoolUsage:
        """The use of the connections as of now."""
        self._usage.idle = sum(not connection.closed for connection in self._idle)
        return self._usage

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PooledConnection]:
        """Borrow a connection. Raises StoreUnavailableError."""
        connection = await self.acquire()
        try:
            yield connection
        except BaseException:
            await self.release(connection, clean=False)
            raise
        await self.release(connection)

    async def begin(self, settings: Statement | None = None, tenants: Tenants = NOBODY) -> Transaction:
        """Take a connection for a transaction, which the caller has to commit or roll back.

        Args:
            settings: What is set for it; None is the default of this database.
            tenants: Whose rows it is for. It sees no others.

        Raises:
            StoreUnavailableError: There is no connection.
        """
        database = self._for(tenants)
        return Transaction(
            await database.acquire(), settings or self._limits.write, database.release, tenants
        )

    @asynccontextmanager
    async def transaction(
        self, settings: Statement | None = None, tenants: Tenants = NOBODY
    ) -> AsyncIterator[Transaction]:
        """Run the block as one transaction: committed at its end, rolled back if it raises.

        Args:
            settings: What is set for it; None is the default of this database.
            tenants: Whose rows it is for. It sees no others.

        Raises:
            StoreUnknownError: The outcome of the commit is not known.
            StoreError: Nothing was written.
        """
        async with await self.begin(settings, tenants) as transaction:
            yield transaction

    async def execute(
        self,
        statement: str | Statement,
        values: Values | None = None,
        settings: Statement | None = None,
        tenants: Tenants = NOBODY,
    ) -> list[Row]:
        """Run one statement as a transaction of its own, in one round trip.

        Args:
            statement: A ``Statement`` is prepared, a text is planned each time.
            values: Its values by name.
            settings: What is set for the transaction; None is the default of this database.
            tenants: Whose rows it is for. It sees no others.

        Returns:
            The rows of the statement.

        Raises:
            StoreUnknownError: The outcome is not known, or the commit may not have reached the standby.
            StoreError: Nothing was written.
        """
        settings = settings or self._limits.write
        named, values = naming(tenants, values, self._names)
        try:
            async with self._for(tenants).connection() as connection:
                if isinstance(statement, str):
                    rows = await connection.run(statement, values, f"{settings.text}; {named}")
                else:
                    rows = await connection.run_prepared(named, (settings, statement), "", values or {})
                connection.confirm_commit()
                return rows
        except ConnectionLostError as error:
            raise StoreUnknownError(str(error)) from None

    async def query(
        self, statement: str | Statement, values: Values | None = None, tenants: Tenants = NOBODY
    ) -> list[Row]:
        """Run one read, a second time if the connection had been lost unnoticed or was pooled.

        Args:
            statement: A ``Statement`` is prepared. One that is seldom asked is better a text, which is
                planned each time.
            values: Its values by name.
            tenants: Whose rows it is for. It sees no others.

        Raises:
            StoreError: The database is away, or refused the statement.
        """
        named, values = naming(tenants, values, self._names)
        for attempt in (1, 2):
            try:
                async with self._for(tenants).connection() as connection:
                    if isinstance(statement, str):
                        return await connection.run(statement, values, self._limits.read + named)
                    read = self._limits.read_prepared + named
                    return await connection.run_prepared(read, (statement,), "", values or {})
            except NoAnswerError:
                raise
            except (ConnectionLostError, NotPreparedError):
                if attempt == 2:
                    raise
        raise AssertionError

    def _for(self, tenants: Tenants) -> Database:
        return self._everyone if tenants is EVERYONE else self

    async def acquire(self) -> PooledConnection:
        """Take a connection; ``release`` must follow. Raises StoreUnavailableError."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        self._usage.busy += 1
        try:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
            return await self._connect()
        except BaseException:
            self._give_back()
            raise

    async def _wait(self) -> None:
        usage = self._usage
        usage.waits += 1
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailableError("no connection became free") from None
        finally:
            usage.wait_s += time.monotonic() - began_s

    def _give_back(self) -> None:
        self._usage.busy -= 1
        self._free.release()

    async def release(self, connection: PooledConnection, *, clean: bool = True) -> None:
        """Give a connection back; one that is not ``clean`` is rolled back first."""
        try:
            if not clean and not connection.closed:
                await connection.roll_back()
            if not connection.closed:
                self._idle.append(connection)
            elif connection.host_failed:
                self._order.failed(connection.host)
                self._drop_idle(connection.host)
        except BaseException:
            connection.close()
            raise
        finally:
            self._give_back()

    async def _connect(self) -> PooledConnection:
        """Connect to the first host that is the primary. Raises CannotConnectError."""
        order = self._order
        sentences: list[str] = []
        causes: list[StoreError] = []
        for host in order.now():
            addresses = await host.addresses(one_of_several=order.several)
            if not addresses:
                sentences.append(host.unknown)
                causes.append(StoreUnavailableError(host.unknown))
            for address in order.sorted(addresses):
                try:
                    return await self._connect_to(host, address)
                except CannotConnectError as error:
                    order.address_failed(address)
                    sentences.append(str(error))
                    causes += error.causes
            order.failed(host)
        self._usage.failures += 1
        self._usage.away = "; ".join(sentences)
        raise CannotConnectError(sentences, causes)

    async def _connect_to(self, host: Host, address: Address) -> PooledConnection:
        try:
            async with asyncio.timeout(address.timeout_s):
                link = await connect(address.dsn, application_name="tidemark", **_KEEPALIVE)
                try:
                    asked = _READ_ONLY if self._names is None else _READ_ONLY_AND_CITUS
                    ((is_read_only, *citus),) = await link.run(asked, None, STATEMENT_S)
                    if is_read_only != "off":
                        found = f"the database at {address.name} is read-only"
                        raise CannotConnectError([f"{found}: it is not the primary"], [read_only(found)])
                    if any(citus):
                        self._pooler.find_citus()
                except BaseException:
                    link.close()
                    raise
        except CannotConnectError:
            raise
        except TimeoutError:
            sentence = (
                f"no answer from {address.name} within {address.timeout_s:g} s: see that it runs and that no"
                " firewall is between"
            )
            raise CannotConnectError([sentence], [StoreUnavailableError(sentence)]) from None
        except psycopg2.Error as error:
            found = f"cannot connect to {address.name}"
            cause = fault_of(error) or StoreUnavailableError(f"{found}: {said(error)}")
            raise CannotConnectError([f"{found}: {told(error)}"], [cause]) from None
        except Exception as error:  # of whatever kind: the database is away, and that ends nothing
            sentence = f"cannot connect to {address.name}: {str(error) or type(error).__name__}"
            raise CannotConnectError([sentence], [StoreUnavailableError(sentence)]) from None
        self._usage.opened += 1
        self._usage.away = ""
        return PooledConnection(
            host, link, self._pooler, self._usage, bounded=self._limits.bounded, names=self._names
        )

    def _drop_idle(self, host: Host) -> None:
        """Close what else is connected to a host that failed, so that nobody finds out one by one."""
        kept = [connection for connection in self._idle if connection.host is not host]
        for connection in self._idle:
            if connection.host is host:
                connection.close()
        self._idle.clear()
        self._idle.extend(kept)

    async def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.popleft().close()
