"""What the feed needs of the store. The docstrings state the duty of whoever fulfils them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from engine.model.rows import Record


class Page(msgspec.Struct, frozen=True):
    """Records ascending by seq, read in one snapshot with the tenant's counter ``high_seq``.

    ``more`` says that records after the last one were left out. ``read_to`` is the seq of the last row that
    was looked at, where the read ended there and not at the end of the feed or at ``more``.
    """

    records: list[Record]
    high_seq: int
    more: bool
    read_to: int | None = None


class FeedStore(Protocol):
    """Reads of the feed, always from the primary."""

    async def epoch(self) -> str:
        """Return the database's epoch; it changes after a restore."""

    async def heads(self, tenant_ids: list[int]) -> dict[int, int]:
        """Return how far tenants' feeds have come, in one round trip. Raises StoreError."""

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read records with seq above ``after_seq``.

        At most ``limit`` and about ``max_bytes`` of data, but one at least if there is any among the rows
        looked at. With ``domains`` these are bounded, and ``Page.read_to`` tells where they ended.
        Raises StoreUnavailableError.
        """

    async def page_of_rare_domains(
        self, tenant_id: int, after_seq: int, domains: list[str], limit: int, max_bytes: int
    ) -> Page | None:
        """Read as ``page`` does, to the end of the feed, where all domains together hold few records.

        None where they hold many. Raises StoreError.
        """

    async def pages_after(self, afters: Mapping[int, int], limit: int, max_bytes: int) -> dict[int, Page]:
        """Read a page of each tenant in one round trip, behind the seqs by tenant_id; bounds are of each.

        Tenants without a counter may be left out. Raises StoreUnavailableError.
        """
