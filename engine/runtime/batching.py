"""Many questions as one: what is asked while one round trip is under way goes together in the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from engine.runtime.ports import StorePoisonError, StoreRetryError, StoreUnavailableError, StoreUnknownError

Asked = TypeVar("Asked")
Given = TypeVar("Given")

#: How long a round is tried again before those who wait are told that the store is away.
PATIENCE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.25


class Gatherer(Generic[Asked, Given]):
    """``together`` answers up to ``most`` questions in their order, and may be run again on the same."""

    def __init__(
        self, together: Callable[[Sequence[Asked]], Awaitable[list[Given]]], most: int = 200
    ) -> None:
        self._together = together
        self._most = most
        self._waiting: list[tuple[Asked, asyncio.Future[Given]]] = []
        self._called = asyncio.Event()
        self._ended = False

    async def ask(self, question: Asked) -> Given:
        """Wait for the answer to one question. Raises StoreError.

        What was asked is seen through also when nobody waits for it any more.
        """
        if self._ended:
            raise _ending()
        answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._called.set()
        return await answer

    async def run(self) -> None:
        """Answer until cancelled; who asks after that is told so."""
        taken: list[tuple[Asked, asyncio.Future[Given]]] = []
        try:
            while True:
                await self._called.wait()
                taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                if not self._waiting:
                    self._called.clear()
                await self._answer(taken)
                taken = []
        finally:
            self._ended = True
            for _, answer in taken + self._waiting:
                if not answer.done():
                    answer.set_exception(_ending())

    async def _answer(self, taken: list[tuple[Asked, asyncio.Future[Given]]]) -> None:
        """Answer a round. Where the store refuses a value each is asked alone: only the culprit fails."""
        try:
            given = await patiently(partial(self._together, [question for question, _ in taken]))
        except StorePoisonError as error:
            if len(taken) > 1:
                for one in taken:
                    await self._answer([one])
            else:
                _fail(taken, error)
        except Exception as error:
            _fail(taken, error)
        else:
            for (_, answer), one_given in zip(taken, given, strict=True):
                if not answer.done():
                    answer.set_result(one_given)


def _fail(taken: list[tuple[Asked, asyncio.Future[Given]]], error: Exception) -> None:
    for _, answer in taken:
        if not answer.done():
            answer.set_exception(error)


def _ending() -> StoreUnavailableError:
    return StoreUnavailableError("this process is ending")


async def patiently(call: Callable[[], Awaitable[Given]]) -> Given:
    """Do something that may be done again, until the store has done it. Raises StoreError."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + PATIENCE_S
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError):
            if loop.time() >= give_up_s:
                raise
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
