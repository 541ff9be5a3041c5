"""psycopg2's asynchronous mode on the event loop: one connection, one statement at a time.

libpq closes its sockets itself: when a host refuses it, and when it begins anew without TLS. The system gives
the number of a closed descriptor to the next one that is opened. An event loop that watched the number still
holds what belonged to the closed socket, and uvloop then raises RuntimeError for whatever is to be watched
under that number next. So the loop watches a duplicate of the descriptor, which is closed here alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE

if TYPE_CHECKING:
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
    raw = psycopg2.connect(dsn, async_=True, **parameters)
    try:
        # Each turn may be with another socket: without TLS, or after it was refused, libpq opens a new one.
        while (state := raw.poll()) != POLL_OK:
            await _event(raw.fileno(), state)
        return Link(raw)
    except BaseException:
        raw.close()
        raise


async def _event(descriptor: int, state: int) -> None:
    """Wait until libpq can read from its socket, or write to it."""
    loop = asyncio.get_running_loop()
    event = loop.create_future()
    watched = os.dup(descriptor)
    try:
        if state == POLL_WRITE:
            loop.add_writer(watched, _set, event)
        else:
            loop.add_reader(watched, _set, event)
        try:
            await event
        finally:
            if state == POLL_WRITE:
                loop.remove_writer(watched)
            else:
                loop.remove_reader(watched)
    finally:
        os.close(watched)


def _set(event: asyncio.Future[None]) -> None:
    if not event.done():
        event.set_result(None)


class Link:
    """One connection. Its end is noticed while nothing is asked, too."""

    def __init__(self, raw: Connection) -> None:
        self._raw = raw
        self._cursor = raw.cursor()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[None] | None = None
        self._give_up_s = 0.0
        self._looking: asyncio.TimerHandle | None = None
        self._writing = False
        self._watched: int | None = os.dup(raw.fileno())
        self._loop.add_reader(self._watched, self._told)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._watched is None

    @property
    def notices(self) -> list[str]:
        """What the server remarked, oldest first; the caller empties it."""
        return self._raw.notices

    async def run(self, statements: str, values: Values | None, patience_s: float) -> list[Row]:
        """Run statements in one round trip and return the rows of the last one, none for a command.

        A statement that is given up, or cancelled with its task, ends the connection; the server may still
        carry it out. Raises psycopg2.Error, TimeoutError, and ValueError for a value that is none of
        PostgreSQL's.
        """
        assert self._answer is None, "another statement is under way"
        self._cursor.execute(statements, values)
        loop = self._loop
        answer = self._answer = loop.create_future()
        self._give_up_s = loop.time() + patience_s
        if self._looking is None:  # else that of a statement before this one goes on: a timer costs 2 µs
            self._looking = loop.call_later(min(_LOOK_S, patience_s), self._look)
        try:
            self.advance()
            await answer
        except (asyncio.CancelledError, TimeoutError):
            self.close()
            if answer.done() and not answer.cancelled():
                answer.exception()  # it came together with the end of its task, and is nobody's
            raise
        finally:
            self._answer = None
        return self._cursor.fetchall() if self._cursor.description is not None else []

    def advance(self) -> None:
        """Have libpq take in what has come, and send what it could not send yet."""
        answer = self._answer
        try:
            state = self._raw.poll()
        except Exception as error:  # of whatever kind: whoever waits has to hear of it
            if answer is not None and not answer.done():
                answer.set_exception(error)
            if self._raw.closed or not isinstance(error, psycopg2.Error):
                self.close()
            return
        if state == POLL_WRITE:
            self._watch_writing()
        elif self._writing:
            self._unwatch_writing()
        if state == POLL_OK and answer is not None and not answer.done():
            answer.set_result(None)

    def _told(self) -> None:
        """Take in what came. While an answer is waited for, ``_look`` sees to it that more is told of."""
        self.advance()
        if self._answer is None:
            self._watch_anew()

    def _look(self) -> None:
        """Look for an answer, or an end, that nobody told of."""
        answer, now_s = self._answer, self._loop.time()
        self._looking = None
        if answer is None:
            return
        self.advance()
        if answer.done():
            return
        self._watch_anew()
        if now_s >= self._give_up_s:
            answer.set_exception(TimeoutError())
        else:
            self._looking = self._loop.call_later(min(_LOOK_S, self._give_up_s - now_s), self._look)

    def _watch_anew(self) -> None:
        """Have the loop tell of what comes next, though the last event may have been an error, in 40 µs."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._loop.add_reader(self._watched, self._told)

    def _watch_writing(self) -> None:
        if not self._writing and self._watched is not None:
            self._writing = True
            self._loop.add_writer(self._watched, self._told)

    def _unwatch_writing(self) -> None:
        if self._writing and self._watched is not None:
            self._writing = False
            self._loop.remove_writer(self._watched)

    def close(self) -> None:
        """Cut the connection; the server rolls back what was open."""
        if self._watched is None:
            return
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if not self._loop.is_closed():
            self._unwatch_writing()
            self._loop.remove_reader(self._watched)
        os.close(self._watched)
        self._watched = None
        self._raw.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(psycopg2.InterfaceError("the connection was closed"))
