"""Threads that wait for the disk and hash, so that the event loop does neither."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

import anyio

from engine.uploads.blobs import BlobMissingError, BlobsError, BlobsFullError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Syncs wait for nobody's photo: where the processor is short, the event loop comes first.
_NICENESS: Final = 10


class BlobThreads:
    """A number of threads at a lower priority than the event loop."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "blobs", _give_way)

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Have something done in a thread. Raises BlobsError for an OSError of it.

        A caller that is cancelled is let go when the thread is done, so that nothing of it happens after
        something that is begun later. What no thread has begun yet is not done.
        """
        job = self._executor.submit(work, *args, **kwargs)
        try:
            return await asyncio.wrap_future(job)
        except OSError as error:
            raise _told(error) from error
        except asyncio.CancelledError:
            while not job.done():
                with anyio.CancelScope(shield=True), suppress(Exception, asyncio.CancelledError):
                    await asyncio.wrap_future(job)
            raise

    def begin(self, work: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Have something done that nobody waits for, and that does not fail."""
        with suppress(RuntimeError):  # no thread is left at the end of the process, which does it as well
            self._executor.submit(work, *args, **kwargs)

    async def each(self, items: Generator[_T, None, None]) -> AsyncIterator[_T]:
        """Iterate in threads, one item a hop. Raises as ``run``."""
        try:
            while (item := await self.run(_next, items)) is not None:
                yield item
        finally:
            self.begin(items.close)

    def close(self) -> None:
        """Let the threads go when they are done with what they have; waits for none of them."""
        self._executor.shutdown(wait=False)


def _next(items: Iterator[_T]) -> _T | None:
    return next(items, None)


def _give_way() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _told(error: OSError) -> BlobsError:
    if error.errno in _FULL:
        return BlobsFullError(f"no room for more: {error.strerror}")
    if isinstance(error, FileNotFoundError):
        return BlobMissingError("there are no such bytes")
    return BlobsError(str(error))
