"""Logs: one JSON object a line, written by a thread of its own, so that a full pipe blocks nothing.

Exceptions are logged by type and place, without their text, which may have data of a device. The console
format has the text as well.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import orjson
import structlog
from aiohttp.http_exceptions import BadHttpMessage
from structlog.typing import EventDict, Processor, WrappedLogger

from engine.runtime.metrics import Metric, Value
from engine.runtime.rate_limit import TokenBucket
from engine.runtime.settings import Log
from handlers.operate.printing import plain

#: Lines that may wait for a slow reader of the log. Further lines are dropped and counted.
_WAITING_LINES: Final = 10_000
_FLUSH_S: Final = 2.0
#: Lines of one event in a minute, in the long run: a flood fills no disk, and the others stay readable.
LINES_PER_MINUTE: Final = 120
#: The length of a library's message: enough to recognise it, too little to carry a payload.
_MESSAGE_CHARACTERS: Final = 200
#: Messages that any client can cause at any rate: malformed requests and broken connections.
_OF_CLIENTS: Final = (BadHttpMessage, ConnectionResetError)
_ROOT: Final = f"{Path(__file__).parents[2]}{os.sep}"


class LogCounters(msgspec.Struct):
    """Counts since the start: lines of events that had too many, and lines that no reader took in time."""

    left_out: int = 0
    dropped: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        lines = {"flood": self.left_out, "slow_reader": self.dropped}
        text = "Lines that are missing in the log, by cause"
        yield Value("counter", "tidemark_log_lines_left_out", text, lines, "cause")


#: Of this process, which has one log.
counters: Final = LogCounters()


class LineWriter:
    """Writes lines to a file descriptor in order; ``put`` never waits."""

    def __init__(self, descriptor: int, waiting_lines: int = _WAITING_LINES) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(waiting_lines)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Write a line, or count it as dropped if too many wait."""
        try:
            self._lines.put_nowait(line + b"\n")
        except queue.Full:
            self._dropped += 1
            counters.dropped += 1

    def take_dropped(self) -> int:
        """Return how many lines were dropped since the last call."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """Write waiting lines, if the reader takes them within two seconds, and stop."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_FLUSH_S)
            self._thread.join(_FLUSH_S)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # the reader is gone
                while line:
                    line = line[os.write(self._descriptor, line) :]


def configure(log: Log, *, worker: int | None = None, descriptor: int = 1) -> LineWriter:
    """Send all logs of this process to a descriptor, and those of libraries from warnings on."""
    writer = LineWriter(descriptor)
    atexit.register(writer.close)
    processors: list[Processor] = [
        _BoundedEvents(),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _DroppedLines(writer),
    ]
    if worker is not None:
        processors.append(_Worker(worker))
    if log.format == "json":
        processors += [_exception_without_text, _as_json]
    else:
        processors.append(_without_controls)
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=os.isatty(descriptor), exception_formatter=structlog.dev.plain_traceback
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(log.level),
        logger_factory=lambda *_: _Sink(writer),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)
    return writer


class _Sink:
    """Receives rendered lines from structlog, with a method for each level."""

    def __init__(self, writer: LineWriter) -> None:
        self._put = writer.put
        self.debug = self.info = self.warning = self.error = self.critical = self.msg

    def msg(self, line: str | bytes) -> None:
        self._put(line.encode(errors="backslashreplace") if isinstance(line, str) else line)


class _Worker:
    def __init__(self, worker: int) -> None:
        self._worker = worker

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("worker", self._worker)
        return event


class _BoundedEvents:
    """Leaves out lines of an event that has too many, and adds their number to its next line."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lines: dict[str, TokenBucket] = {}
        self._left_out: Counter[str] = Counter()

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        name, now_s = event["event"], self._clock_s()
        bucket = self._lines.get(name)
        if bucket is None:
            bucket = self._lines[name] = TokenBucket(float(LINES_PER_MINUTE), now_s)
        if bucket.take(LINES_PER_MINUTE, now_s):
            self._left_out[name] += 1
            counters.left_out += 1
            raise structlog.DropEvent
        if left_out := self._left_out.pop(name, 0):
            event["left_out"] = left_out
        return event


class _DroppedLines:
    """Adds the number of dropped lines to the next line that is written."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        dropped = self._writer.take_dropped()
        if dropped:
            event["dropped_lines"] = dropped
        return event


def _without_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: plain(value) if isinstance(value, str) else value for name, value in event.items()}


def _exception_without_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    given = event.pop("exc_info", None)
    if isinstance(given, tuple):
        given = given[1]
    error = sys.exception() if given is True else given
    if isinstance(error, BaseException):
        event["exception"] = _described(error)
    return event


def _described(error: BaseException) -> dict[str, Any]:
    described: dict[str, Any] = {"type": type(error).__qualname__, "trace": _trace(error.__traceback__)}
    if isinstance(error, OSError) and error.errno is not None:
        described["errno"] = error.errno
    if isinstance(error, BaseExceptionGroup):
        described["of"] = [_described(inner) for inner in error.exceptions]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        described["cause"] = _described(cause)
    return described


def _trace(trace: TracebackType | None) -> list[str]:
    return [
        f"{frame.filename.removeprefix(_ROOT)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(trace)
    ]


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> bytes:
    head = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    line = {**head, **event}
    try:
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):  # a lone surrogate, an integer past 64 bits
        return json.dumps(line, default=repr, separators=(",", ":")).encode()


class _Libraries(logging.Handler):
    """Passes on log lines of libraries, as the event ``library_message``."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().partition("\n")[0][:_MESSAGE_CHARACTERS]
        level = "error" if record.levelno >= logging.ERROR else "warning"
        log = structlog.get_logger()
        error = record.exc_info[1] if record.exc_info else None
        if record.name == "aiohttp.server" and isinstance(error, _OF_CLIENTS):
            log.debug("library_message", logger=record.name, message=message, reason=type(error).__name__)
            return
        getattr(log, level)(
            "library_message", logger=record.name, message=message, exc_info=record.exc_info or None
        )
