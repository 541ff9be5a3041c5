"""The store, as the feed uses it. The docstrings state the duties of an implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from engine.model.rows import Record


class Page(msgspec.Struct, frozen=True):
    """Records ascending by seq, read in one snapshot with the tenant's counter ``high_seq``.

    ``more``: records after the last one were left out. ``read_to``: if the read ended before the end of the
    feed and without ``more``, the seq of the last row that it looked at; otherwise None.
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
        """Return the highest seq of each tenant's feed, in one round trip. Raises StoreError."""

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read records with seq above ``after_seq``.

        Args:
            tenant_id: The tenant.
            after_seq: The seq after which to read.
            domains: The domains to read; None for all. With domains, the number of rows that one call looks
                at is bounded, and ``Page.read_to`` tells the last one.
            limit: The most records.
            max_bytes: About the most bytes of data. One record is returned even if it is larger.

        Raises:
            StoreUnavailableError: The store failed.
        """

    async def page_of_rare_domains(
        self, tenant_id: int, after_seq: int, domains: list[str], limit: int, max_bytes: int
    ) -> Page | None:
        """Read as ``page`` does, but without a bound of rows, if all domains together hold few records.

        Returns:
            The page; None if the domains hold many records.

        Raises:
            StoreError: The store failed.
        """

    async def pages_after(self, afters: Mapping[int, int], limit: int, max_bytes: int) -> dict[int, Page]:
        """Read a page of each of several tenants in one round trip.

        Args:
            afters: By tenant_id, the seq after which to read.
            limit: The most records of each tenant.
            max_bytes: About the most bytes of data of each tenant.

        Returns:
            Pages by tenant_id; tenants without a counter may be left out.

        Raises:
            StoreUnavailableError: The store failed.
        """
