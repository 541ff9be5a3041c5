"""What is missing of several tenants' feeds, read together: while one read is under way the next gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from engine.ports import FeedStore, Page

#: Tenants of one read. What each may bring is bounded, and so what the read may.
_TENANTS: Final = 32
_CHANGES: Final = 1000

Start = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class Gaps:
    """Asks the store for news. ``start`` runs work in a task that somebody waits for."""

    def __init__(self, store: FeedStore, max_bytes: int, start: Start) -> None:
        self._store = store
        self._tenant_bytes = max(1, max_bytes // 8)
        self._start = start
        self._asked: dict[int, tuple[int, asyncio.Future[Page]]] = {}
        self._reading = False

    async def behind(self, tenant_id: int, after_seq: int) -> Page:
        """Read a tenant's records behind ``after_seq``; a tenant asks once at a time. Raises StoreError."""
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._asked[tenant_id] = after_seq, answer
        if not self._reading:
            self._reading = True
            self._start(self._read)
        return await answer

    async def _read(self) -> None:
        try:
            while self._asked:
                asked = dict(list(self._asked.items())[:_TENANTS])
                for tenant_id in asked:
                    del self._asked[tenant_id]
                await self._answer(asked)
        finally:
            self._reading = False

    async def _answer(self, asked: dict[int, tuple[int, asyncio.Future[Page]]]) -> None:
        afters = {tenant_id: after_seq for tenant_id, (after_seq, _) in asked.items()}
        try:
            pages = await self._store.behind(afters, _CHANGES, self._tenant_bytes)
        except Exception as error:
            for _, answer in asked.values():
                if not answer.done():
                    answer.set_exception(error)
        else:
            for tenant_id, (after_seq, answer) in asked.items():
                if not answer.done():
                    # A tenant that is no more has no counter, and nothing behind.
                    answer.set_result(pages.get(tenant_id) or Page([], after_seq, more=False))
