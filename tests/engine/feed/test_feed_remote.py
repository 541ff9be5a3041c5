"""Commits of other processes: the feed is told of them or polls, and reads once for all subscriptions."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from engine.feed import feed as feed_module
from tests.engine.feed.test_feed import Source, running_feed, turns


async def test_feed_remote_commits_catch_all_subscribers_up_with_one_read() -> None:
    async with running_feed() as one:
        readers = [await one.subscribed() for _ in range(50)]
        reads = one.source.reads
        for number in range(5):
            one.source.commit(f"r{number}", {})
        for seq in (3, 4, 5):
            one.feed.note_remote_commit(1, seq)
        await one.until(lambda: all(len(reader.ids) == 5 for reader in readers))
        assert one.source.reads == reads + 1


async def test_feed_gap_of_a_remote_commit_is_read_without_a_wait() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        missing, own = one.source.commit("elsewhere", {}), one.source.commit("here", {})
        with patch.object(feed_module, "GAP_WAIT_S", 3600.0):
            one.publish(own)
            await turns()
            assert reader.ids == []
            one.feed.note_remote_commit(1, missing.seq)
            await one.until(lambda: reader.ids == ["elsewhere", "here"])


async def test_feed_remote_commit_known_or_without_subscribers_is_not_read() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        one.publish(one.source.commit("a", {}))
        await one.until(lambda: reader.ids == ["a"])
        reads = one.source.reads
        for tenant, seq in ((1, 1), (1, 0), (2, 99)):
            one.feed.note_remote_commit(tenant, seq)
        await turns()
        assert one.source.reads == reads


async def test_feed_remote_commit_of_a_false_seq_costs_one_read() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        reads = one.source.reads
        one.feed.note_remote_commit(1, (1 << 63) - 1)
        await one.until(lambda: one.source.reads == reads + 1)
        await turns(100)
        assert one.source.reads == reads + 1
        one.publish(one.source.commit("a", {}))
        await one.until(lambda: reader.ids == ["a"])


async def test_feed_remote_commit_before_the_first_page_is_delivered() -> None:
    async with running_feed() as one:
        one.source.open.clear()
        reader = one.reader()
        opening = asyncio.create_task(one.subscribe(reader))
        await turns()
        one.feed.note_remote_commit(1, 1)
        one.source.open.set()
        await opening
        one.source.commit("a", {})
        await one.until(lambda: reader.ids == ["a"])


async def test_feed_poll_heads_finds_every_feed_that_advanced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_HEADS_PER_READ", 2)
    asked: list[list[int]] = []

    async def heads(self: Source, tenant_ids: list[int]) -> dict[int, int]:
        asked.append(tenant_ids)
        return {tenant: self.rows.seqs[tenant] for tenant in tenant_ids if tenant in self.rows.seqs}

    monkeypatch.setattr(Source, "heads", heads)
    async with running_feed() as one:
        readers = {tenant: await one.subscribed(tenant=tenant) for tenant in range(1, 6)}
        for tenant in (2, 5, 9):
            one.source.commit(f"r{tenant}", {}, tenant=tenant)
        reads = one.source.reads
        await one.feed.poll_heads()
        await one.until(lambda: readers[2].ids == ["r2"] and readers[5].ids == ["r5"])
        assert one.source.reads == reads + 2
        assert asked == [[1, 2], [3, 4], [5]]
        asked.clear()
        await one.feed.poll_heads()
        await turns()
        assert one.source.reads == reads + 2
