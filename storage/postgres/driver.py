"""aiopg's connections on descriptors of our own: one statement at a time, and no wait that is not bounded.

libpq closes its sockets itself: when a host refuses it, and when it begins anew without TLS. The system gives
the number of a closed descriptor to the next one that is opened. An event loop that watched the number still
holds what belonged to the closed socket, and uvloop then raises RuntimeError for whatever is to be watched
under that number next. So the loop watches a duplicate of the descriptor, which is closed here alone.

aiopg keeps the connection, its cursor, and who waits. How it waits is replaced: see
docs/adr/0009-aiopg-on-own-descriptors.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

import aiopg
import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE
from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

Row = tuple[Any, ...]
Values = Mapping[str, object]

#: How often the driver looks for an answer that nobody told it of: after an error on a descriptor, libuv
#: tells of nothing more that happens on it.
_LOOK_S: Final = 0.5


async def connect(dsn: str, **parameters: Any) -> Link:
    """Connect to one host at one address. The caller bounds the time.

    Raises psycopg2.Error, OSError.
    """
    link = Link(dsn, **parameters)
    await link
    return link


class _Duplicated(Connection):
    """psycopg2's connection, whose descriptor is a duplicate of libpq's under one number all its life."""

    _duplicate: int | None = None

    def fileno(self) -> int:
        """Return the duplicate, of the socket that libpq has now. Nobody may watch it at that moment."""
        try:
            if self._duplicate is None:
                self._duplicate = os.dup(super().fileno())
            else:
                os.dup2(super().fileno(), self._duplicate, inheritable=False)
        except OSError:  # no descriptor is left: aiopg would leave the connection open
            self.close()
            raise
        return self._duplicate

    def close(self) -> None:
        """Cut the connection. Nobody may watch the duplicate any more."""
        super().close()
        if self._duplicate is not None:
            os.close(self._duplicate)
            self._duplicate = None


class Link(aiopg.Connection):
    """One connection. Its end is noticed while nothing is asked, too."""

    #: The number of the duplicate; None once it is closed.
    _fileno: Any = None
    _give_up_s = 0.0
    _looking: asyncio.TimerHandle | None = None

    def __init__(self, dsn: str, **parameters: Any) -> None:
        super().__init__(
            dsn,
            timeout=None,  # type: ignore[arg-type]  # it is for aiopg's own ways to wait, which are replaced
            enable_json=False,
            enable_hstore=False,
            enable_uuid=False,
            connection_factory=_Duplicated,
            **parameters,
        )

    async def _connect(self) -> Link:
        """Have libpq connect; aiopg awaits the connection by this."""
        self._loop.remove_reader(self._fileno)
        self._waiter = None
        try:
            # Each turn may be with another socket: to begin anew without TLS, libpq opens a new one.
            while (state := self._conn.poll()) != POLL_OK:
                await self._event(state)
            self._fileno = self._conn.fileno()
            self._loop.add_reader(self._fileno, self._ready, self._weakref)
            self._statement = await self.cursor()
        except BaseException:
            self.close()
            raise
        return self

    async def _event(self, state: int) -> None:
        """Wait until libpq can read from its socket, or write to it."""
        loop, event = self._loop, asyncio.Event()
        watched = self._conn.fileno()
        if state == POLL_WRITE:
            watch, unwatch = loop.add_writer, loop.remove_writer
        else:
            watch, unwatch = loop.add_reader, loop.remove_reader
        watch(watched, event.set)
        try:
            await event.wait()
        finally:
            unwatch(watched)

    async def run(self, statements: str, values: Values | None, patience_s: float) -> list[Row]:
        """Run statements in one round trip and return the rows of the last one, none for a command.

        A statement that is given up, or cancelled with its task, ends the connection; the server may still
        carry it out. Raises psycopg2.Error, TimeoutError, and ValueError for a value that is none of
        PostgreSQL's.
        """
        self._give_up_s = self._loop.time() + patience_s
        if self._looking is None:  # else that of a statement before this one goes on: a timer costs 2 µs
            self._looking = self._loop.call_later(min(_LOOK_S, patience_s), self._look)
        await self._statement.execute(statements, values)
        rows = self._statement.raw
        return rows.fetchall() if rows.description is not None else []

    async def _poll(self, waiter: asyncio.Future[None], timeout: float) -> None:  # noqa: ARG002, ASYNC109
        """Wait for the answer. A cancellation is heeded, also if it comes with the answer."""
        try:
            self.advance()
            await waiter
        except (asyncio.CancelledError, TimeoutError):
            self.close()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # it came together with the end of its task, and is nobody's
            raise
        finally:
            self._waiter = None

    def advance(self, *, anew: bool = False) -> None:
        """Have libpq take in what has come, and send what it could not send yet.

        ``anew`` has the loop tell of what comes next, though the last event may have been an error, in 40 µs.
        """
        waiter = self._waiter
        try:
            state = self._conn.poll()
            if (state == POLL_WRITE) != self._writing:
                self._watch_writing(on=not self._writing)
            if state == POLL_OK and waiter is not None and not waiter.done():
                waiter.set_result(None)
            elif anew:
                self._loop.remove_reader(self._fileno)
                self._loop.add_reader(self._fileno, self._ready, self._weakref)
        except Exception as error:  # of whatever kind: whoever waits has to hear of it
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
            if self._conn.closed or not isinstance(error, psycopg2.Error):
                self.close()

    @staticmethod
    def _ready(weak_self: Any) -> None:
        """Take in what came. While an answer is waited for, ``_look`` sees to it that more is told of."""
        self = weak_self()
        if self is not None:
            self.advance(anew=self._waiter is None)

    def _look(self) -> None:
        """Look for an answer, or an end, that nobody told of."""
        waiter, now_s = self._waiter, self._loop.time()
        self._looking = None
        if waiter is None:
            return
        self.advance(anew=True)
        if waiter.done():
            return
        if now_s >= self._give_up_s:
            waiter.set_exception(TimeoutError())
        else:
            self._looking = self._loop.call_later(min(_LOOK_S, self._give_up_s - now_s), self._look)

    def _watch_writing(self, *, on: bool) -> None:
        self._writing = on
        if on:
            self._loop.add_writer(self._fileno, self._ready, self._weakref)
        else:
            self._loop.remove_writer(self._fileno)

    def _close(self) -> None:
        """Cut the connection; the server rolls back what was open."""
        if self._fileno is None:  # closed before: the number may be another's
            return
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        super()._close()
        self._fileno = None
