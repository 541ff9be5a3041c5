"""Reads of changes that tenants' tails miss: requests that come during one read share the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.feed.ports import FeedStore, Page
from engine.runtime.batching import Batcher

#: Bounds of one read: tenants, and changes of each. So one read brings at most 32,000 changes.
_TENANTS: Final = 32
_CHANGES: Final = 1000

_Request = tuple[int, int]


class GapReader:
    """Reads pages of several tenants in one round trip.

    Args:
        store: Where pages are read.
        page_bytes: The bound of a page that is sent; a page read here has at most an eighth of it.
    """

    def __init__(self, store: FeedStore, page_bytes: int) -> None:
        self._store = store
        self._tenant_bytes = max(1, page_bytes // 8)
        self._batcher: Batcher[_Request, Page] = Batcher(self._read, _TENANTS)
        self.run = self._batcher.run

    async def page_after(self, tenant_id: int, after_seq: int) -> Page:
        """Read a tenant's records after ``after_seq``; some before it may come too. Raises StoreError."""
        return await self._batcher.submit((tenant_id, after_seq))

    async def _read(self, requests: Sequence[_Request]) -> list[Page]:
        # A tenant can be there twice: its last subscription ended during a read, and another one came.
        afters: dict[int, int] = {}
        for tenant_id, after_seq in requests:
            afters[tenant_id] = min(after_seq, afters.get(tenant_id, after_seq))
        pages = await self._store.pages_after(afters, _CHANGES, self._tenant_bytes)
        # A tenant that was removed has no counter, and no changes.
        return [pages.get(tenant_id) or Page([], after_seq, more=False) for tenant_id, after_seq in requests]
