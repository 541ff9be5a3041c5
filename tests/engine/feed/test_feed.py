"""The feed: pulls, backlogs, live pages, gaps and slow readers, over a store in memory."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine.feed import feed as feed_module
from engine.feed import gap_reader
from engine.feed.feed import Feed
from engine.feed.hub import FeedLimits
from engine.feed.ports import Page
from engine.feed.subscription import Subscription
from engine.model.rows import Record, RecordKey
from engine.runtime.ports import StoreError, StoreUnavailableError, StoreUnreadableError
from engine.runtime.read_limiter import Reader as Device
from engine.runtime.read_limiter import ReadLimiter
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe
from tests.harness.memory_store import MemoryStore

Json = dict[str, Any]
#: By domain and id: version, and whether it is a tombstone.
Held = dict[tuple[str, str], tuple[int, bool]]

#: Whatever is waited for comes long before.
PATIENCE_S = 20.0
ROOMY = FeedLimits(page_bytes=1 << 20, tail_changes=1000, tail_bytes=1 << 20, page_interval_s=0.0)


class StillClock:
    """Time does not pass."""

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return 0

    def monotonic_s(self) -> float:
        """Seconds since the start."""
        return 0.0


class Source(MemoryStore):
    """A store that others write to. ``reads`` counts pages read, ``failures`` how many of the next fail.

    They fail with ``failure``, else because the store is away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()
        self.reads = 0
        self.failures = 0
        self.failure: StoreError | None = None
        self.open = asyncio.Event()
        self.open.set()

    def commit(self, record_id: str, data: Json | None, domain: str = "task", tenant: int = 1) -> Record:
        """Write a new version of a record."""
        rows = self.rows
        key = RecordKey(tenant, domain, record_id)
        before = rows.records.get(key)
        seq = rows.seqs[tenant] = rows.seqs.get(tenant, 0) + 1
        version = 1 if before is None else before.version + 1
        body = None if data is None else json.dumps(data).encode()
        record = Record(tenant, domain, record_id, version, seq, 0, "phone", 1, body)
        rows.records[key] = record
        return record

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read a page, or fail as told."""
        self.reads += 1
        self.news.set()
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise self.failure or StoreUnavailableError("away")
        return await super().page(tenant_id, after_seq, domains, limit, max_bytes)


class Reader:
    """A device's end of a subscription: holds each page to the contract and applies it."""

    def __init__(self, news: asyncio.Event, session_id: str = "s-reader", feed: Feed | None = None) -> None:
        self._news = news
        self._feed = feed
        self.session_id = session_id
        #: How many pages more it has room for.
        self.room: float = math.inf
        self.refused = False
        self.pages: list[Json] = []
        self.bodies: list[bytes] = []
        self.failed: SyncError | None = None
        self.on_page: Callable[[], None] = lambda: None
        self.held: Held = {}
        #: Every cursor it was given, with what it held then.
        self.snapshots: list[tuple[str, Held]] = []
        self.last_seq = 0
        self.cursor: str | None = None
        self.subscription: Subscription | None = None

    def send(self, body: bytes, suffix: bytes) -> bool:
        """Take a page; the first always."""
        if self.room < 1 and self.pages:
            self.refused = True
            self._news.set()
            return False
        self.room -= 1
        page = json.loads(body + suffix)
        assert page["type"] == "changes"
        for change in page["changes"]:
            assert change["seq"] > self.last_seq, "ascending, over all pages"
            self.last_seq = change["seq"]
            self.apply(change)
        self.cursor = page["cursor"]
        self.snapshots.append((page["cursor"], dict(self.held)))
        self.pages.append(page)
        self.bodies.append(body)
        self._news.set()
        self.on_page()
        return True

    def apply(self, change: Json) -> None:
        """Take a change in as a device does: one that is not above what it holds is passed over."""
        key = (change["domain"], change["id"])
        if change["version"] > self.held.get(key, (0, False))[0]:
            self.held[key] = (change["version"], change["deleted"])

    def fail(self, request_id: str, error: SyncError) -> None:
        """Note why the subscription ended."""
        assert request_id == "9"
        self.failed = error
        self._news.set()

    def resume(self) -> None:
        """Have room again."""
        self.room = math.inf
        if self.refused and self.subscription is not None:
            self.refused = False
            assert self._feed is not None
            self._feed.resume(self.subscription)

    def end(self) -> None:
        """End the subscription."""
        assert self._feed is not None
        assert self.subscription is not None
        self._feed.end(self.subscription)

    @property
    def ids(self) -> list[str]:
        """Give the ids of all changes so far."""
        return [change["id"] for page in self.pages for change in page["changes"]]


@dataclass
class RunningFeed:
    """A feed that runs, with its store."""

    source: Source
    feed: Feed

    @property
    def news(self) -> asyncio.Event:
        """Set whenever something happens."""
        return self.source.news

    def reader(self, session_id: str = "s-reader") -> Reader:
        """Make a reader."""
        return Reader(self.news, session_id, self.feed)

    async def subscribe(
        self,
        reader: Reader,
        cursor: str | None = None,
        domains: list[str] | None = None,
        limit: int = 500,
        tenant: int = 1,
    ) -> Subscription:
        """Subscribe a reader."""
        request = Subscribe("9", cursor, domains, limit)
        reader.subscription = await self.feed.subscribe(
            reader, request, Device(tenant, "phone"), reader.session_id
        )
        return reader.subscription

    async def subscribed(self, **options: Any) -> Reader:
        """Make a reader that is subscribed."""
        reader = self.reader()
        await self.subscribe(reader, **options)
        return reader

    def publish(self, *records: Record, session_id: str = "s-writer") -> None:
        """Publish changes in the order given."""
        self.feed.publish([(record, session_id) for record in records])

    async def until(self, wanted: Any) -> None:
        """Wait for news until something holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not wanted():
                self.news.clear()
                await self.news.wait()

    async def pull(
        self, cursor: str | None, domains: list[str] | None, limit: int, tenant: int = 1
    ) -> list[Json]:
        """Pull to the end."""
        pages: list[Json] = []
        while not pages or pages[-1]["more"]:
            body = await self.feed.pull(Device(tenant, "phone"), cursor, domains, limit)
            pages.append(json.loads(body + b"}"))
            cursor = pages[-1]["cursor"]
        return pages


@asynccontextmanager
async def running_feed(limits: FeedLimits = ROOMY) -> AsyncIterator[RunningFeed]:
    """Run a feed, with waits that are as short as can be."""
    source = Source()
    feed = Feed(source, StillClock(), limits, ("task", "ticket"), ReadLimiter(2))
    await feed.refresh_epoch()
    with patch.object(feed_module, "GAP_WAIT_S", 0.001), patch.object(feed_module, "_RETRY_S", 0.001):
        task = asyncio.create_task(feed.run())
        await asyncio.sleep(0)
        try:
            yield RunningFeed(source, feed)
            await turns()
            assert not task.done(), "a reader would not have it"
        finally:
            task.cancel()
            await asyncio.wait({task})


async def turns(count: int = 20) -> None:
    """Let everything that can run do so, to show that something does not happen."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- pulls ------------------------------------------------------------------------------------------


async def test_pull_record_with_several_versions_shows_the_latest_once() -> None:
    async with running_feed() as one:
        for number in range(3):
            one.source.commit("a", {"n": number})
            one.source.commit(f"b{number}", {"n": number})
        one.source.commit("b1", None)
        (page,) = await one.pull(None, None, 500)
        assert [(change["id"], change["version"], change["seq"]) for change in page["changes"]] == [
            ("b0", 1, 2),
            ("a", 3, 5),
            ("b2", 1, 6),
            ("b1", 2, 7),
        ]
        assert [change["deleted"] for change in page["changes"]] == [False, False, False, True]
        assert page["more"] is False


async def test_pull_by_domain_over_a_long_feed_reads_pieces_up_to_a_change() -> None:
    async with running_feed() as one:
        one.source.piece_rows, one.source.few_rows = 3, -1
        for number in range(30):
            one.source.commit(f"t{number}", {})
            if number in (10, 11, 29):
                one.source.commit(f"k{number}", {}, "ticket")
        pages = await one.pull(None, ["ticket"], 500)
        assert [change["id"] for page in pages for change in page["changes"]] == ["k10", "k11", "k29"]
        assert all(page["changes"] for page in pages if page["more"])
        assert one.source.reads == 11, "33 rows, three at a time"
        one.source.reads = 0
        (page,) = await one.pull(pages[-1]["cursor"], ["ticket"], 500)
        assert (page["changes"], page["more"], one.source.reads) == ([], False, 1)
        one.source.reads = 0
        (page,) = await one.pull(None, ["journal"], 500)
        assert (page["changes"], page["more"], one.source.reads) == ([], False, 11)
        (page,) = await one.pull(page["cursor"], ["journal"], 500)
        assert page["more"] is False
        reader = one.reader()
        await one.subscribe(reader, None, ["ticket"])
        await one.until(lambda: len(reader.held) == 3)


async def test_pull_of_a_rare_domain_reads_no_further_pieces() -> None:
    async with running_feed() as one:
        one.source.piece_rows = 3
        for number in range(30):
            one.source.commit(f"t{number}", {})
        one.source.commit("k", {}, "ticket")
        for number in range(30):
            one.source.commit(f"u{number}", {})
        (page,) = await one.pull(None, ["ticket"], 500)
        assert [change["id"] for change in page["changes"]] == ["k"]
        assert (page["more"], one.source.reads) == (False, 1)
        (page,) = await one.pull(page["cursor"], ["ticket"], 500)
        assert (page["changes"], page["more"]) == ([], False)


async def test_pull_by_domain_gives_the_connection_to_others_between_pieces() -> None:
    async with running_feed() as one:
        one.source.piece_rows, one.source.few_rows = 1, -1
        one.feed._read_limiter = ReadLimiter(1)
        for number in range(20):
            one.source.commit(f"t{number}", {})
        one.source.commit("theirs", {}, tenant=2)
        long = asyncio.create_task(one.feed.pull(Device(1, "phone"), None, ["ticket"], 500))
        await one.source.news.wait()
        page = await one.feed.pull(Device(2, "phone"), None, None, 500)
        assert b"theirs" in page
        assert not long.done()
        await long


async def test_pull_long_feed_is_cut_at_the_limits_with_more_set() -> None:
    limits = FeedLimits(page_bytes=4000, tail_changes=10, tail_bytes=10_000, page_interval_s=0.0)
    async with running_feed(limits) as one:
        for number in range(5):
            one.source.commit(f"r{number}", {"x": "x" * 1000})
        one.source.commit("huge", {"x": "x" * 10_000})
        pages = await one.pull(None, None, 2)
        assert [len(page["changes"]) for page in pages] == [2, 2, 1, 1]
        assert [page["more"] for page in pages] == [True, True, True, False]
        pages = await one.pull(None, None, 500)
        assert [len(page["changes"]) for page in pages] == [2, 2, 1, 1]
        for page in pages[:-1]:
            assert len(json.dumps(page)) <= 4000


@pytest.mark.parametrize("subscribing", [False, True])
async def test_feed_cursor_that_does_not_fit_is_refused(subscribing: bool) -> None:
    async with running_feed() as one:
        one.source.commit("a", {})
        cursor = (await one.pull(None, None, 500))[0]["cursor"]

        async def refusal(cursor: str, domains: list[str] | None = None, tenant: int = 1) -> str:
            asked = (
                one.subscribe(one.reader(), cursor, domains, tenant=tenant)
                if subscribing
                else one.feed.pull(Device(tenant, "phone"), cursor, domains, 500)
            )
            with pytest.raises(SyncError) as caught:
                await asked
            return caught.value.code

        assert await refusal("no cursor") == "invalid_message"
        assert await refusal(cursor, ["task"]) == "cursor_expired"
        assert await refusal(cursor, tenant=2) == "cursor_expired"
        one.source.rows.seqs[1] = 0
        assert await refusal(cursor) == "cursor_expired", "ahead of the feed"
        one.source.rows.seqs[1] = 1
        one.source.epoch_id = "e2"
        await one.feed.refresh_epoch()
        assert await refusal(cursor) == "cursor_expired", "of another epoch"


async def test_feed_new_epoch_ends_every_subscription() -> None:
    async with running_feed() as one:
        for number in range(5):
            one.source.commit(f"r{number}", {})
        readers = [await one.subscribed(), await one.subscribed(domains=["task"])]
        one.source.open.clear()
        opening = one.reader()
        task = asyncio.create_task(one.subscribe(opening))
        reads = one.source.reads
        await one.until(lambda: one.source.reads > reads)
        await one.feed.refresh_epoch()
        assert all(reader.failed is None for reader in readers), "the epoch is the same"

        one.source.epoch_id = "restored"
        one.source.rows.seqs.clear()
        one.source.rows.records.clear()
        await one.feed.refresh_epoch()
        one.source.open.set()
        await task
        for reader in [*readers, opening]:
            assert reader.failed is not None
            assert reader.failed.code == "cursor_expired"
        assert opening.pages == []

        fresh = await one.subscribed()
        one.publish(one.source.commit("new", {}))
        await one.until(lambda: fresh.ids == ["new"])
        assert [len(reader.ids) for reader in readers] == [5, 5]


# -- subscriptions ------------------------------------------------------------------------------------


async def test_subscribe_empty_feed_sends_an_empty_page_then_live_changes() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        assert [page["changes"] for page in reader.pages] == [[]]
        assert reader.pages[0]["id"] == "9"
        one.publish(one.source.commit("a", {"n": 1}))
        await one.until(lambda: reader.ids == ["a"])
        one.publish(one.source.commit("a", {"n": 2}), one.source.commit("b", None))
        await one.until(lambda: reader.ids == ["a", "a", "b"])
        assert reader.pages[-1]["id"] == "9"
        assert reader.pages[-1]["more"] is False
        assert one.source.reads == 1


async def test_subscribe_backlog_comes_in_pages_then_live_changes() -> None:
    async with running_feed() as one:
        for number in range(7):
            one.source.commit(f"r{number}", {"n": number})
        reader = await one.subscribed(limit=3)
        await one.until(lambda: len(reader.ids) == 7)
        assert [len(page["changes"]) for page in reader.pages] == [3, 3, 1]
        assert [page["more"] for page in reader.pages] == [True, True, False]
        one.publish(*[one.source.commit(f"s{number}", {"n": number}) for number in range(4)])
        await one.until(lambda: len(reader.ids) == 11)
        assert [len(page["changes"]) for page in reader.pages] == [3, 3, 1, 3, 1]
        assert [page["more"] for page in reader.pages[3:]] == [True, False]


async def test_subscribe_split_page_cursors_follow_their_changes() -> None:
    async with running_feed() as one:
        reader = await one.subscribed(limit=2)
        one.publish(*[one.source.commit(f"r{number}", {}) for number in range(5)])
        await one.until(lambda: len(reader.ids) == 5)
        for page, behind in zip(reader.pages, (5, 3, 1, 0), strict=True):
            (rest,) = await one.pull(page["cursor"], None, 500)
            assert len(rest["changes"]) == behind


async def test_subscribe_with_a_cursor_continues_after_it() -> None:
    async with running_feed() as one:
        one.source.commit("a", {})
        first = await one.subscribed()
        one.source.commit("b", {})
        again = await one.subscribed(cursor=first.cursor)
        assert (first.ids, again.ids) == (["a"], ["b"])


async def test_live_pages_omit_changes_of_the_own_session_and_a_backlog_does_not() -> None:
    async with running_feed() as one:
        mine, other = one.reader("s-mine"), one.reader("s-other")
        for reader in (mine, other):
            await one.subscribe(reader)
        start = mine.cursor
        one.publish(one.source.commit("own", {}), session_id="s-mine")
        await one.until(lambda: other.ids == ["own"])
        await turns()
        assert mine.ids == []
        assert mine.cursor == start
        one.publish(one.source.commit("more", {}), session_id="s-mine")
        one.publish(one.source.commit("theirs", {}), session_id="s-other")
        await one.until(lambda: mine.ids == ["theirs"] and other.ids == ["own", "more"])
        reinstalled = one.reader("s-mine")
        await one.subscribe(reinstalled)
        assert reinstalled.ids == ["own", "more", "theirs"]
        # The cursor has passed over them.
        later = one.reader("s-mine")
        await one.subscribe(later, mine.cursor)
        assert later.ids == []


async def test_subscribe_by_domain_gets_no_other_domain() -> None:
    async with running_feed() as one:
        one.source.commit("t1", {}, "task")
        one.source.commit("n1", {}, "note")
        tasks = await one.subscribed(domains=["task"])
        both = await one.subscribed(domains=["note", "task"])
        one.publish(one.source.commit("n2", {}, "note"), one.source.commit("t2", {}, "task"))
        await one.until(lambda: both.ids == ["t1", "n1", "n2", "t2"])
        await one.until(lambda: tasks.ids == ["t1", "t2"])
        assert one.feed.epoch == "e1"
        assert [len(page["changes"]) for page in await one.pull(tasks.cursor, ["task"], 500)] == [0]


async def test_subscribe_gets_no_other_tenant() -> None:
    async with running_feed() as one:
        acme, globex = await one.subscribed(tenant=1), await one.subscribed(tenant=2)
        one.publish(one.source.commit("a", {}, tenant=1), one.source.commit("g", {}, tenant=2))
        await one.until(lambda: acme.ids == ["a"] and globex.ids == ["g"])


async def test_live_page_body_is_encoded_once_for_equal_subscriptions() -> None:
    async with running_feed() as one:
        readers = [await one.subscribed() for _ in range(5)]
        others = [await one.subscribed(domains=["task"]) for _ in range(2)]
        one.publish(one.source.commit("a", {}))
        await one.until(lambda: all(reader.ids == ["a"] for reader in readers + others))
        assert len({id(reader.bodies[-1]) for reader in readers}) == 1
        assert len({id(reader.bodies[-1]) for reader in others}) == 1


async def test_publish_many_changes_at_once_gives_one_page() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        for number in range(100):
            one.publish(one.source.commit(f"r{number}", {}))
        await one.until(lambda: len(reader.ids) == 100)
        assert len(reader.pages) == 2


async def test_publish_during_a_delivery_follows_in_order() -> None:
    async with running_feed() as one:
        behind, level = await one.subscribed(), await one.subscribed()
        behind.room = 0
        one.publish(one.source.commit("r0", {}))
        await one.until(lambda: behind.refused and level.ids == ["r0"])
        meanwhile = iter(["r2"])

        def more() -> None:
            for record_id in meanwhile:
                one.publish(one.source.commit(record_id, {}))

        # They stand at different places, so that pages are made for each; between them comes another change.
        with patch.object(feed_module, "_SENDS_PER_PASS", 1):
            behind.on_page = level.on_page = more
            one.publish(one.source.commit("r1", {}))
            behind.resume()
            await one.until(lambda: behind.ids == level.ids == ["r0", "r1", "r2"])


async def test_subscription_ended_gets_no_page() -> None:
    async with running_feed() as one:
        reader, other = await one.subscribed(), await one.subscribed()
        one.publish(one.source.commit("a", {}))
        reader.end()
        await one.until(lambda: other.ids == ["a"])
        await turns()
        assert reader.ids == []
        assert reader.subscription is not None
        one.feed.resume(reader.subscription)
        one.publish(one.source.commit("b", {}))
        await one.until(lambda: other.ids == ["a", "b"])
        assert reader.ids == []


async def test_subscription_ended_during_a_read_gets_no_page() -> None:
    limits = FeedLimits(page_bytes=1 << 20, tail_changes=1, tail_bytes=1 << 20, page_interval_s=0.0)
    async with running_feed(limits) as one:
        slow, quick = await one.subscribed(), await one.subscribed()
        slow.room = 0
        for number in range(3):
            one.publish(one.source.commit(f"r{number}", {}))
            await one.until(lambda number=number: len(quick.ids) == number + 1)
        one.source.open.clear()
        reads = one.source.reads
        slow.resume()
        await one.until(lambda: one.source.reads > reads)
        slow.end()
        one.source.open.set()
        await turns()
        assert slow.ids == []


async def test_subscribe_after_the_last_subscription_ended_starts_again() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        reader.end()
        one.publish(one.source.commit("a", {}))
        again = await one.subscribed()
        assert again.ids == ["a"]
        one.publish(one.source.commit("b", {}))
        await one.until(lambda: again.ids == ["a", "b"])
        assert reader.ids == []


async def test_subscribe_changes_during_the_first_read_are_delivered() -> None:
    async with running_feed() as one:
        one.source.commit("before", {})
        one.source.open.clear()
        reader = one.reader()
        opening = asyncio.create_task(one.subscribe(reader))
        await turns()
        during = [one.source.commit(f"r{number}", {}) for number in range(3)]
        one.publish(during[1])
        one.source.open.set()
        await opening
        one.publish(during[2], during[0])
        one.publish(one.source.commit("after", {}))
        await one.until(lambda: "after" in reader.ids)
        assert reader.ids == ["before", "r0", "r1", "r2", "after"]


async def test_subscribe_store_unavailable_fails_and_leaves_nothing_behind() -> None:
    async with running_feed() as one:
        one.source.failures = 1
        reader = one.reader()
        with pytest.raises(StoreUnavailableError):
            await one.subscribe(reader)
        one.publish(one.source.commit("a", {}))
        await turns()
        assert reader.pages == []
        await one.subscribe(reader)
        assert reader.ids == ["a"]
        one.source.failures = 1
        refused = one.reader()
        with pytest.raises(StoreUnavailableError):
            await one.subscribe(refused)
        gone = weakref.ref(refused)
        del refused
        gc.collect()
        assert gone() is None


# -- gaps -------------------------------------------------------------------------------------------------


async def test_publish_out_of_order_is_delivered_in_order_without_a_read() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        changes = [one.source.commit(f"r{number}", {}) for number in range(4)]
        with patch.object(feed_module, "GAP_WAIT_S", 0.2):
            one.publish(changes[3], changes[1])
            await turns()
            assert reader.ids == []
            one.publish(changes[0])
            await one.until(lambda: reader.ids == ["r0", "r1"])
            one.publish(changes[2])
            await one.until(lambda: reader.ids == ["r0", "r1", "r2", "r3"])
        assert one.source.reads == 1


async def test_gap_lost_change_is_read_once_for_all_subscribers() -> None:
    async with running_feed() as one:
        readers = [await one.subscribed() for _ in range(10)]
        reads = one.source.reads
        one.source.commit("lost", {})
        one.publish(one.source.commit("late", {}))
        await one.until(lambda: all(reader.ids == ["lost", "late"] for reader in readers))
        assert one.source.reads == reads + 1


async def test_gap_store_unavailable_is_closed_later() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        one.source.failures = 3
        one.source.commit("lost", {})
        one.publish(one.source.commit("late", {}))
        await one.until(lambda: reader.ids == ["lost", "late"])


async def test_gap_with_a_value_that_cannot_be_opened_is_logged_with_its_place() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        one.source.failures, one.source.failure = 1, StoreUnreadableError("records.data of task r1")
        with capture_logs() as logs:
            one.source.commit("lost", {})
            one.publish(one.source.commit("late", {}))
            await one.until(lambda: reader.ids == ["lost", "late"])
        (line,) = [line for line in logs if line["event"] == "gap_remains"]
        assert (line["tenant_id"], line["detail"]) == (1, "records.data of task r1")


async def test_catch_up_at_a_value_that_cannot_be_opened_is_logged_with_its_place() -> None:
    limits = FeedLimits(page_bytes=1 << 20, tail_changes=3, tail_bytes=1 << 20, page_interval_s=0.0)
    async with running_feed(limits) as one:
        slow = await one.subscribed()
        slow.room = 0
        for number in range(9):
            one.publish(one.source.commit(f"r{number}", {}))
            await turns()
        one.source.failures, one.source.failure = 1, StoreUnreadableError("records.data of task r2")
        with capture_logs() as logs:
            slow.resume()
            await one.until(lambda: slow.ids == [f"r{number}" for number in range(9)])
        (line,) = [line for line in logs if line["event"] == "catch_up_delayed"]
        assert (line["tenant_id"], line["detail"]) == (1, "records.data of task r2")


async def test_gap_too_wide_to_fill_sends_subscribers_to_the_store() -> None:
    async with running_feed() as one:
        reader = await one.subscribed(limit=3)
        with patch.object(gap_reader, "_CHANGES", 4):
            for number in range(9):
                one.source.commit(f"r{number}", {})
            one.publish(one.source.commit("late", {}))
            await one.until(lambda: "late" in reader.ids)
        assert reader.ids == [*(f"r{number}" for number in range(9)), "late"]


async def test_unknown_outcome_is_looked_up_without_another_change() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        one.source.commit("committed, and never published", {})
        one.source.failures = 1
        one.feed.note_unknown_outcome({1, 2})
        await one.until(lambda: reader.ids == ["committed, and never published"])


async def test_unknown_outcome_before_the_first_page_is_looked_up() -> None:
    async with running_feed() as one:
        one.source.open.clear()
        reader = one.reader()
        opening = asyncio.create_task(one.subscribe(reader))
        await turns()
        one.feed.note_unknown_outcome({1})
        one.source.open.set()
        await opening
        one.source.commit("a", {})
        await one.until(lambda: reader.ids == ["a"])


async def test_unknown_outcome_without_a_commit_changes_nothing() -> None:
    async with running_feed() as one:
        reader = await one.subscribed()
        reads = one.source.reads
        one.feed.note_unknown_outcome({1})
        await one.until(lambda: one.source.reads > reads)
        one.publish(one.source.commit("a", {}))
        await one.until(lambda: reader.ids == ["a"])
        assert len(reader.pages) == 2


# -- slow readers -------------------------------------------------------------------------------------------


async def test_slow_reader_refused_page_is_sent_once_there_is_room() -> None:
    async with running_feed() as one:
        slow, quick = await one.subscribed(), await one.subscribed()
        slow.room = 0
        for number in range(3):
            one.publish(one.source.commit(f"r{number}", {}))
            await one.until(lambda number=number: len(quick.ids) == number + 1)
        assert slow.ids == []
        slow.resume()
        await one.until(lambda: slow.ids == quick.ids)
        assert one.source.reads == 2, "the tail was enough"


@pytest.mark.parametrize("room", [1, 2])
async def test_slow_reader_refusing_between_split_pages_gets_all_changes(room: int) -> None:
    async with running_feed() as one:
        reader = await one.subscribed(limit=2)
        reader.room = room
        one.publish(*[one.source.commit(f"r{number}", {}) for number in range(6)])
        await one.until(lambda: reader.refused)
        assert len(reader.ids) == 2 * room
        reader.resume()
        await one.until(lambda: reader.ids == [f"r{number}" for number in range(6)])


async def test_slow_reader_behind_the_tail_is_caught_up_from_the_store() -> None:
    limits = FeedLimits(page_bytes=1 << 20, tail_changes=3, tail_bytes=1 << 20, page_interval_s=0.0)
    async with running_feed(limits) as one:
        slow, quick = await one.subscribed(limit=4), await one.subscribed()
        slow.room = 0
        for number in range(10):
            one.publish(one.source.commit(f"r{number % 6}", {"n": number}))
            await one.until(lambda number=number: len(quick.ids) == number + 1)
        one.source.failures = 1
        slow.resume()
        await one.until(lambda: slow.held == quick.held)
        assert slow.ids == ["r4", "r5", "r0", "r1", "r2", "r3"], "each at its latest version"
        one.publish(one.source.commit("last", {}))
        await one.until(lambda: slow.ids[-1] == "last")


async def test_slow_reader_refusing_within_its_backlog_gets_all_changes() -> None:
    async with running_feed() as one:
        for number in range(6):
            one.source.commit(f"r{number}", {})
        reader = one.reader()
        reader.room = 0
        await one.subscribe(reader, limit=2)
        assert reader.ids == ["r0", "r1"], "the first page is the answer"
        await one.until(lambda: reader.refused)
        reader.resume()
        await one.until(lambda: reader.ids == [f"r{number}" for number in range(6)])


async def test_subscription_feed_that_went_back_ends_with_an_error() -> None:
    limits = FeedLimits(page_bytes=1 << 20, tail_changes=1, tail_bytes=1 << 20, page_interval_s=0.0)
    async with running_feed(limits) as one:
        slow, quick = await one.subscribed(), await one.subscribed()
        one.publish(one.source.commit("a", {}))
        await one.until(lambda: slow.ids == quick.ids == ["a"])
        slow.room = 0
        for number in range(3):
            one.publish(one.source.commit(f"r{number}", {}))
            await one.until(lambda number=number: len(quick.ids) == number + 2)
        one.source.rows.seqs[1] = 0
        one.source.rows.records.clear()
        slow.resume()
        await one.until(lambda: slow.failed is not None)
        assert slow.failed is not None
        assert slow.failed.code == "cursor_expired"
        assert slow.ids == ["a"]


# -- everything at once -------------------------------------------------------------------------------------


_TENANTS = (1, 2)
_DOMAINS = ("task", "note")

_commits = st.tuples(
    st.just("commit"),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from(_DOMAINS),
    st.sampled_from("abcd"),
    st.sampled_from(["s0", "s1", "s2", "elsewhere"]),
    st.sampled_from([0, 0, 0, 700, None]),
)
_actions = st.one_of(
    _commits,
    _commits,
    _commits,
    st.tuples(st.just("publish"), st.permutations(range(4)), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("publish"), st.permutations(range(4)), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("lose"), st.integers(0, 5)),
    st.tuples(
        st.just("subscribe"),
        st.integers(0, 3),
        st.sampled_from([None, None, ["task"], ["note", "task"]]),
        st.sampled_from([1, 2, 500]),
    ),
    st.tuples(st.just("refuse"), st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.just("resume"), st.integers(0, 3)),
    st.tuples(st.just("end"), st.integers(0, 3)),
    st.tuples(st.just("fail"), st.integers(1, 2)),
    st.tuples(st.just("turns"), st.integers(1, 8)),
    st.tuples(st.just("turns"), st.integers(1, 8)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(_actions, min_size=5, max_size=60),
    tail_changes=st.sampled_from([1, 2, 5, 100]),
    page_bytes=st.sampled_from([1500, 1 << 20]),
    heal_changes=st.sampled_from([2, 1000]),
    by_unknown_outcome=st.booleans(),
)
def test_feed_any_sequence_of_actions_delivers_every_change(
    actions: list[tuple[Any, ...]],
    tail_changes: int,
    page_bytes: int,
    heal_changes: int,
    by_unknown_outcome: bool,
) -> None:
    limits = FeedLimits(page_bytes, tail_changes, 1 << 20, page_interval_s=0.0)
    with (
        patch.object(gap_reader, "_CHANGES", heal_changes),
        patch.object(feed_module, "_SENDS_PER_PASS", 1),
    ):
        asyncio.run(_run_actions(actions, limits, by_unknown_outcome=by_unknown_outcome))


class _Place:
    """A device's place: it reads, goes away, comes back with its cursor, and pushes under its session."""

    def __init__(self, number: int) -> None:
        self.session_id = f"s{number}"
        self.tenant = _TENANTS[number == 3]
        self.domains: list[str] | None = None
        self.reader: Reader | None = None
        self.cursor: str | None = None
        self.held: Held = {}


async def _run_actions(
    actions: Sequence[tuple[Any, ...]], limits: FeedLimits, *, by_unknown_outcome: bool
) -> None:
    async with running_feed(limits) as one:
        places = [_Place(number) for number in range(4)]
        pending: list[tuple[Record, str]] = []
        for action in actions:
            match action:
                case ("commit", tenant, domain, record_id, session_id, size):
                    data = None if size is None else {"x": "x" * size}
                    record = one.source.commit(record_id, data, domain, tenant)
                    pending.append((record, session_id))
                    _answered(places, record, session_id)
                case ("publish", order, count, again):
                    chosen = [pending[place] for place in order[:count] if place < len(pending)]
                    one.feed.publish(chosen)
                    if not again:
                        pending = [change for change in pending if change not in chosen]
                case ("lose", place) if place < len(pending):
                    del pending[place]
                case ("subscribe", number, domains, limit):
                    await _subscribe(one, places[number], domains, limit)
                case ("refuse", number, room) if places[number].reader is not None:
                    places[number].reader.room = room
                case ("resume", number) if places[number].reader is not None:
                    places[number].reader.resume()
                case ("end", number):
                    _end(places[number])
                case ("fail", count):
                    one.source.failures = count
                case ("turns", count):
                    await turns(count)
        await _read_to_the_end(one, places, pending, by_unknown_outcome=by_unknown_outcome)


def _answered(places: list[_Place], record: Record, session_id: str) -> None:
    """Whoever pushed it knows its version from the answer, whatever the feed does."""
    for place in places:
        if place.session_id == session_id and place.tenant == record.tenant_id:
            told = {
                "domain": record.domain,
                "id": record.id,
                "version": record.version,
                "deleted": record.data is None,
            }
            holder = place.reader or Reader(asyncio.Event())
            holder.held = place.held
            holder.apply(told)


async def _subscribe(one: RunningFeed, place: _Place, domains: list[str] | None, limit: int) -> None:
    """Begin, or begin again with the cursor where the domains are the same ones."""
    _end(place)
    if domains != place.domains:
        place.domains, place.cursor = domains, None
    reader = one.reader(place.session_id)
    reader.held = place.held
    try:
        await one.subscribe(reader, place.cursor, domains, limit, place.tenant)
    except StoreUnavailableError:
        return
    place.reader = reader


def _end(place: _Place) -> None:
    reader = place.reader
    if reader is not None and reader.subscription is not None:
        reader.end()
        place.cursor = reader.cursor
        place.reader = None


async def _read_to_the_end(
    one: RunningFeed, places: list[_Place], pending: list[tuple[Record, str]], *, by_unknown_outcome: bool
) -> None:
    """Let everyone read on; what was lost for good shows at the next change, or after an unknown outcome."""
    one.source.failures = 0
    for place in places:
        if place.reader is None:
            await _subscribe(one, place, place.domains, 500)
    one.feed.publish(pending)
    if by_unknown_outcome:
        one.feed.note_unknown_outcome(_TENANTS)
    else:
        for tenant in _TENANTS:
            for domain in _DOMAINS:
                one.publish(one.source.commit("last", {}, domain, tenant))
    for place in places:
        assert place.reader is not None
        place.reader.resume()

    def behind() -> list[str]:
        return [
            place.session_id
            for place in places
            if place.reader is not None and _wanted(one, place) != _of_its_domains(place, place.held)
        ]

    try:
        await one.until(lambda: not behind())
    except TimeoutError:
        pytest.fail(f"{behind()} never got everything")
    await turns()
    for place in places:
        reader = place.reader
        assert reader is not None
        assert reader.failed is None
        assert not behind()
        for cursor, held in reader.snapshots[-20:]:
            late = Reader(asyncio.Event())
            late.held = held
            for page in await one.pull(cursor, place.domains, 3, place.tenant):
                late.send(json.dumps(page).encode(), b"")
            assert _of_its_domains(place, late.held) == _wanted(one, place), "the cursor promised too much"


def _wanted(one: RunningFeed, place: _Place) -> Held:
    return {
        (record.domain, record.id): (record.version, record.data is None)
        for record in one.source.rows.records.values()
        if record.tenant_id == place.tenant and (place.domains is None or record.domain in place.domains)
    }


def _of_its_domains(place: _Place, held: Held) -> Held:
    return {key: one for key, one in held.items() if place.domains is None or key[0] in place.domains}
