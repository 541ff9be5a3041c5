"""Threads for disk I/O and hashing, so that the event loop does neither."""

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
#: The threads' nice value: if the processor is short, the event loop, and so every sync, comes first.
_NICENESS: Final = 10


class BlobThreads:
    """Threads at a lower priority than the event loop."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "blobs", _lower_priority)

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function in a thread and wait for its result.

        A cancelled caller continues only when the thread is done, so that nothing of the call happens after
        a call that was made later. A call that no thread has begun is dropped.

        Raises:
            BlobsError: The function raised OSError; BlobsFullError or BlobMissingError by its errno.
        """
        job = self._executor.submit(work, *args, **kwargs)
        try:
            return await asyncio.wrap_future(job)
        except OSError as error:
            raise _blobs_error(error) from error
        except asyncio.CancelledError:
            while not job.done():
                with anyio.CancelScope(shield=True), suppress(Exception, asyncio.CancelledError):
                    await asyncio.wrap_future(job)
            raise

    def begin(self, work: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Call a function that cannot fail in a thread, without waiting for it."""
        with suppress(RuntimeError):  # the executor is closed: the process ends and does the same
            self._executor.submit(work, *args, **kwargs)

    async def each(self, items: Generator[_T, None, None]) -> AsyncIterator[_T]:
        """Iterate over a generator in threads, one call an item. Raises as ``run``."""
        try:
            while (item := await self.run(_next, items)) is not None:
                yield item
        finally:
            self.begin(items.close)

    def close(self) -> None:
        """End the threads after their current calls, without waiting for them."""
        self._executor.shutdown(wait=False)


def _next(items: Iterator[_T]) -> _T | None:
    return next(items, None)


def _lower_priority() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _blobs_error(error: OSError) -> BlobsError:
    if error.errno in _FULL:
        return BlobsFullError(f"no room for more: {error.strerror}")
    if isinstance(error, FileNotFoundError):
        return BlobMissingError("there are no such bytes")
    return BlobsError(str(error))
