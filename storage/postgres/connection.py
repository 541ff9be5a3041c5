"""One connection to PostgreSQL: statements in, rows or a ``StoreError`` out.

Several statements travel in one string, so that a batch costs two round trips; of them the driver
(``storage/postgres/driver.py``) gives back the rows of the last one.

Planning the statements of a batch costs 0.45 ms, as much as all other work of a lone sync. So each connection
prepares them on first use. Behind a pooler that hands the server's connections around, a prepared statement
may be missing or may exist already. The first such error, before anything was written, switches this process
to plain statements.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec
import psycopg2
import structlog

from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StorePoisonError,
    StoreRetryError,
    StoreUnknownError,
)
from storage.postgres.cell.names import Names
from storage.postgres.driver import Link, Row, Values
from storage.postgres.hosts import Host
from storage.postgres.remedies import sentence as told

#: A server's statements take far less. One that takes longer is given up, and its connection is dropped.
STATEMENT_S: Final = 10.0
#: A command waits for its statement as long as its operator does.
_UNBOUNDED_S: Final = 7 * 86_400.0

#: Classes of SQLSTATE: the value itself is refused, so that the same statement never succeeds.
_POISON = ("22", "23", "54")
_DISK_FULL: Final = "53100"
#: Classes of SQLSTATE: the statement does not fit: the schema is another one, or a right is missing.
_WRONG = ("42", "0A", "3F")

#: Statements of storage/stores/commit/answers.py change every day. Without this limit those of past days
#: would stay in memory.
_MAX_PREPARED: Final = 200

#: The statement was cancelled: by a timeout of the server, or by a person.
_CANCELLED: Final = "57014"

#: A prepared statement is missing, or one of that name exists already.
_NOT_AS_PREPARED: Final = ("26000", "42P05")

_log = structlog.get_logger()


class PoolerDetection:
    """Whether a pooler or Citus keeps statements from being prepared; shared by all databases of a process.

    Args:
        found: Whether that is assumed from the start, so that nothing is ever prepared.
    """

    def __init__(self, *, found: bool = False) -> None:
        self.found = found

    def find_citus(self) -> None:
        """Prepare nothing more: Citus plans no prepared statement that takes an array apart."""
        if not self.found:
            self.found = True
            _log.info("citus_found")


class PoolUsage(msgspec.Struct):
    """The use of one pool of connections.

    Attributes:
        limit: The most connections.
        busy: Connections that are borrowed now, also those that are being opened.
        idle: Open connections that nobody has borrowed.
        opened: Connections opened since the start.
        failures: Attempts at which no host let this process in.
        away: Why the last attempt failed; empty if it succeeded.
        waits: Borrowings that waited because all connections were busy.
        wait_s: The time of these waits, added up.
        round_trips: Requests to the server. One may have several statements.
        statements: Statements in them, without those that begin or end a transaction.
    """

    limit: int = 0
    busy: int = 0
    idle: int = 0
    opened: int = 0
    failures: int = 0
    away: str = ""
    waits: int = 0
    wait_s: float = 0.0
    round_trips: int = 0
    statements: int = 0


class ConnectionLostError(StoreRetryError):
    """The connection broke or was given up. It is not known whether the last statement was carried out."""


class NotPreparedError(StoreRetryError):
    """A pooler handed out a connection on which the statement is not prepared; nothing was run."""


class NoAnswerError(ConnectionLostError):
    """The connection was given up, since no answer came in time."""


class Statement:
    """One statement with named values (``%(name)s``) that connections prepare on first use."""

    __slots__ = ("call", "name", "names", "preparation", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.names = names = list(dict.fromkeys(_PLACEHOLDER.findall(text)))
        body = _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}::text", text)
        # The name is made of the text: another version of this server cannot mean another statement by it.
        self.name = "tidemark_" + hashlib.blake2b(body.encode(), digest_size=12).hexdigest()
        self.preparation = f"PREPARE {self.name} AS {body}; ".replace("%", "%%")
        values = ", ".join(f"%({name})s" for name in names)
        self.call = f"EXECUTE {self.name}" + (f" ({values})" if names else "")


_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")


class StatementNames:
    """How statements of a cell name its tables, texts and prepared ones.

    Args:
        names: How texts name them.
    """

    __slots__ = ("_made", "text")

    def __init__(self, names: Names) -> None:
        self.text = names.text
        self._made: dict[Statement, Statement] = {}

    def statement(self, statement: Statement) -> Statement:
        """Return a statement with the names of tables in full. It is made once and kept."""
        found = self._made.get(statement)
        if found is None:
            if len(self._made) >= _MAX_PREPARED:
                self._made.clear()
            found = self._made[statement] = Statement(self.text(statement.text))
        return found


class PooledConnection:
    """One connection, borrowed from a ``Database``. Two tasks must not use it at the same time.

    Args:
        host: The host that it leads to.
        link: The driver's connection.
        pooler: Whether statements are prepared.
        usage: Where requests are counted.
        bounded: Whether a statement is given up after ``STATEMENT_S``.
        names: How statements name the tables of a cell; None if they stay as they are.
    """

    def __init__(
        self,
        host: Host,
        link: Link,
        pooler: PoolerDetection,
        usage: PoolUsage,
        *,
        bounded: bool = True,
        names: StatementNames | None = None,
    ) -> None:
        self.host = host
        self.names = names
        #: Whether the connection ended because the host failed.
        self.host_failed = False
        self._link = link
        self._pooler = pooler
        self._usage = usage
        self._statement_s = STATEMENT_S if bounded else _UNBOUNDED_S
        self._prepared: set[str] = set()

    async def run_prepared(
        self, opening: str, statements: Sequence[Statement], closing: str, values: Values
    ) -> list[Row]:
        """Run ``opening``, the statements, then ``closing`` in one round trip, as ``run`` does."""
        self._usage.statements += len(statements)
        if self.names is not None:
            statements = [self.names.statement(statement) for statement in statements]
        if self._pooler.found:
            texts = [statement.text for statement in statements]
            return await self._run(opening + "; ".join(texts) + closing, values)
        calls, forgetting = "; ".join([statement.call for statement in statements]), ""
        new = [statement for statement in statements if statement.name not in self._prepared]
        if new and len(self._prepared) >= _MAX_PREPARED:
            new, forgetting = list(statements), "DEALLOCATE ALL; "
            self._prepared.clear()
        if not new:
            return await self._run(opening + calls + closing, values)
        preparations = forgetting + "".join([statement.preparation for statement in new])
        try:
            rows = await self._run(preparations + opening + calls + closing, values)
        except BaseException:
            self.close()  # it is not known which of them were prepared
            raise
        self._prepared.update([statement.name for statement in new])
        return rows

    async def run(self, statement: str, values: Values | None = None, opening: str = "") -> list[Row]:
        """Run ``opening``, then a statement, or several, in one round trip.

        Returns:
            The rows of the last statement; none if it returns no rows.

        Raises:
            ConnectionLostError: The connection ended; the statements may have been carried out.
            StoreRetryError: The server rolled the transaction back; running it again may succeed.
            StorePoisonError: The server refused a value.
            StoreFullError: The disk of the server is full.
            StoreError: The statement does not fit this database.
        """
        self._usage.statements += 1
        if self.names is not None:
            statement = self.names.text(statement)
        return await self._run(opening + statement, values)

    async def _run(self, statements: str, values: Values | None) -> list[Row]:
        self._usage.round_trips += 1
        try:
            return await self._link.run(statements, values, self._statement_s)
        except TimeoutError:
            self._lose()
            raise NoAnswerError(f"no answer within {self._statement_s:.0f} s") from None
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
            return StoreRetryError(sentence)
        if (
            self._link.closed
            or state[:2] in ("08", "57")
            or (not state and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError))
        ):
            self._lose()
            return ConnectionLostError(sentence)
        if state in _NOT_AS_PREPARED:
            if not self._pooler.found:  # statements that were running at that moment fail in the same way
                self._pooler.found = True
                _log.info("pooler_found", sqlstate=state)
            return NotPreparedError(sentence)
        if state == "25006":  # read-only: the host was demoted, and another one is the primary now
            self._lose()
            return StoreRetryError(sentence)
        if state == _DISK_FULL:
            return StoreFullError(sentence)
        if state.startswith(_POISON):
            return StorePoisonError(sentence)
        if state.startswith(_WRONG):
            return StoreError(sentence)
        return StoreRetryError(sentence)

    def confirm_commit(self) -> None:
        """See that the commit just made reached the standby.

        COMMIT warns if its wait for a standby was cancelled. Every warning counts, since its text depends on
        the language of the server; nothing below a warning is sent (``client_min_messages``).

        Raises:
            StoreUnknownError: The server warned, or the connection ended.
        """
        if self._take_warnings():
            raise StoreUnknownError("the commit may not have reached the standby")

    async def roll_back(self) -> None:
        """End an open transaction without writing; a connection on which that fails is closed."""
        try:
            await self.run("ROLLBACK")
            self._take_warnings()  # of a transaction that had ended already: the next COMMIT starts clean
        except StoreError:
            self.close()

    def _take_warnings(self) -> bool:
        # The driver adds what came with the last result to its notices when it looks once more.
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
