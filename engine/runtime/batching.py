"""Batch many calls into one round trip: calls made while a round trip runs go together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from engine.runtime.backoff import Backoff
from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StoreRetryError,
    StoreUnavailableError,
    StoreUnknownError,
)

Request = TypeVar("Request")
Result = TypeVar("Result")

#: A batch is tried again for this long before its callers get the store's error.
RETRY_FOR_S: Final = 10.0
#: How often a process that ends tries its last write, and the pause between two attempts.
_LAST_ATTEMPTS: Final = 3
_LAST_PAUSE_S: Final = 0.1


class Batcher(Generic[Request, Result]):
    """Collects requests of many tasks and hands them to one call at a time.

    Args:
        call: Takes up to ``max_batch`` requests and returns their results in the same order. It may be
            called again with the same requests.
        max_batch: The largest number of requests in one call.
    """

    def __init__(
        self, call: Callable[[Sequence[Request]], Awaitable[list[Result]]], max_batch: int = 200
    ) -> None:
        self._call = call
        self._max_batch = max_batch
        self._queue: list[tuple[Request, asyncio.Future[Result]]] = []
        self._has_work = asyncio.Event()
        self._ended = False

    async def submit(self, request: Request) -> Result:
        """Wait for the result of one request.

        The request is carried out even if its caller is cancelled.

        Raises:
            StoreError: The store failed for longer than ``RETRY_FOR_S``, or it refuses this request.
        """
        if self._ended:
            raise _ending()
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((request, result))
        self._has_work.set()
        return await result

    async def run(self) -> None:
        """Carry requests out until cancelled; requests that are left then fail with StoreUnavailableError."""
        batch: list[tuple[Request, asyncio.Future[Result]]] = []
        try:
            while True:
                await self._has_work.wait()
                batch, self._queue = self._queue[: self._max_batch], self._queue[self._max_batch :]
                if not self._queue:
                    self._has_work.clear()
                await self._run_batch(batch)
                batch = []
        finally:
            self._ended = True
            for _, result in batch + self._queue:
                if not result.done():
                    result.set_exception(_ending())

    async def _run_batch(self, batch: list[tuple[Request, asyncio.Future[Result]]]) -> None:
        """Run a batch.

        A store that is away or full fails the whole batch. Any other error, such as a refused value or the
        lost key of a tenant, may be of one request: the batch is halved, until that one fails alone.
        """
        try:
            results = await with_retries(partial(self._call, [request for request, _ in batch]))
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError, StoreFullError) as error:
            _fail(batch, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            middle = len(batch) // 2
            await self._run_batch(batch[:middle])
            await self._run_batch(batch[middle:])
        else:
            for (_, result), value in zip(batch, results, strict=True):
                if not result.done():
                    result.set_result(value)


def _fail(batch: list[tuple[Request, asyncio.Future[Result]]], error: Exception) -> None:
    for _, result in batch:
        if not result.done():
            result.set_exception(error)


def _ending() -> StoreUnavailableError:
    return StoreUnavailableError("this process is ending")


async def with_retries(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a repeatable call until the store succeeds, with growing pauses.

    Returns:
        The result of the first call that succeeds.

    Raises:
        StoreError: The store was still unavailable after ``RETRY_FOR_S``, or it refuses the values.
    """
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + RETRY_FOR_S
    backoff = Backoff()
    while True:
        try:
            return await call()
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError):
            if loop.time() >= give_up_s:
                raise
        await backoff.pause()


async def write_last(write: Callable[[], Awaitable[None]]) -> StoreError | None:
    """Write what is left when the process ends; try again a few times if the store fails.

    Args:
        write: Writes everything; it may be called again after an error.

    Returns:
        The error of the last attempt; None if everything is written.
    """
    for attempt in range(1, _LAST_ATTEMPTS + 1):
        try:
            await write()
        except StoreError as error:
            if attempt == _LAST_ATTEMPTS:
                return error
        else:
            return None
        await asyncio.sleep(_LAST_PAUSE_S)
    raise AssertionError
