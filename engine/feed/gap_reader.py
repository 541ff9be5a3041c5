"""What is missing of several tenants' feeds, read together: while one read is under way the next gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from engine.feed.ports import FeedStore, Page

#: Tenants of one read. What each may bring is bounded, and so what the read may.
_TENANTS: Final = 32
_CHANGES: Final = 1000

Start = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class _Question(NamedTuple):
    tenant_id: int
    after_seq: int
    answer: asyncio.Future[Page]


class GapReader:
    """Asks the store for news. ``start`` runs work in a task that somebody waits for."""

    def __init__(self, store: FeedStore, max_bytes: int, start: Start) -> None:
        self._store = store
        self._tenant_bytes = max(1, max_bytes // 8)
        self._start = start
        self._asked: list[_Question] = []
        self._reading = False

    async def pages_after(self, tenant_id: int, after_seq: int) -> Page:
        """Read a tenant's records behind ``after_seq``. Raises StoreError."""
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._asked.append(_Question(tenant_id, after_seq, answer))
        if not self._reading:
            self._reading = True
            self._start(self._read)
        return await answer

    async def _read(self) -> None:
        try:
            while self._asked:
                await self._answer(self._next())
        finally:
            self._reading = False

    def _next(self) -> list[_Question]:
        """Take one question of each tenant: one that was forgotten and came again asks twice at once."""
        taken: dict[int, _Question] = {}
        left: list[_Question] = []
        for question in self._asked:
            if len(taken) < _TENANTS and question.tenant_id not in taken:
                taken[question.tenant_id] = question
            else:
                left.append(question)
        self._asked = left
        return list(taken.values())

    async def _answer(self, asked: list[_Question]) -> None:
        afters = {question.tenant_id: question.after_seq for question in asked}
        try:
            pages = await self._store.pages_after(afters, _CHANGES, self._tenant_bytes)
        except Exception as error:
            for question in asked:
                if not question.answer.done():
                    question.answer.set_exception(error)
        else:
            for tenant_id, after_seq, answer in asked:
                if not answer.done():
                    # A tenant that is no more has no counter, and nothing behind.
                    answer.set_result(pages.get(tenant_id) or Page([], after_seq, more=False))
