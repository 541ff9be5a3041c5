"""Many questions as one: what is asked while one round trip is under way goes together in the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from engine.ports import StoreRetryError, StoreUnavailableError, StoreUnknownError

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

    async def ask(self, question: Asked) -> Given:
        """Wait for the answer to one question. Raises StoreError.

        What was asked is seen through also when nobody waits for it any more.
        """
        answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._called.set()
        return await answer

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._called.wait()
            taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not self._waiting:
                self._called.clear()
            try:
                given = await patiently(partial(self._together, [question for question, _ in taken]))
            except Exception as error:
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), one in zip(taken, given, strict=True):
                if not answer.done():
                    answer.set_result(one)


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
