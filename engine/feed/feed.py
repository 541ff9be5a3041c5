"""The feed: pulls, and live subscriptions over a per-tenant tail in memory.

Page bodies are encoded once and shared by all subscriptions that want the same. A subscription that fell
behind the tail, or whose sink was full, is caught up from the store. A gap in the published changes is read
from the store once for all subscriptions of the tenant, and for several tenants in one read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

import anyio
import structlog
from anyio.abc import TaskGroup

from engine.feed.counters import FeedCounters
from engine.feed.cursor import Scope, expired
from engine.feed.gap_reader import GapReader
from engine.feed.hub import FeedLimits, Hub, live_pages
from engine.feed.pages import stored_page
from engine.feed.ports import FeedStore, Page
from engine.feed.subscription import Sink, Subscription
from engine.feed.tail import Entry
from engine.model.rows import Record
from engine.runtime.metrics import Metric, gauge
from engine.runtime.ports import Clock, StoreError
from engine.runtime.read_limiter import Reader, ReadLimiter
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe

#: A process often publishes its own seq n before it hears of seq n-1 of another process. It waits this long
#: for that before it asks the store.
GAP_WAIT_S: Final = 0.05
_RETRY_S: Final = 0.5
#: Pages sent before other work gets its turn on the loop.
_SENDS_PER_PASS: Final = 100
#: Tenants whose heads are read by one statement.
_HEADS_PER_READ: Final = 1000

_log = structlog.get_logger()


class _Slice:
    """The entries of the tail behind one position, with the page bodies made of them so far."""

    __slots__ = ("_entries", "_head", "_pages", "_sessions")

    def __init__(self, entries: list[Entry], head: int) -> None:
        self._entries = entries
        self._head = head
        self._sessions = {entry.session_id for entry in entries}
        self._pages: dict[tuple[frozenset[str] | None, int], list[tuple[bytes, int]]] = {}

    def pages(self, subscription: Subscription, max_bytes: int) -> list[tuple[bytes, int]]:
        """Return a subscription's page bodies, shared with all that want the same."""
        scope, limit, session_id = subscription.scope, subscription.limit, subscription.session_id
        if session_id in self._sessions:
            return live_pages(scope, limit, session_id, self._head, self._entries, max_bytes)
        key = (scope.domains, limit)
        shared = self._pages.get(key)
        if shared is None:
            shared = live_pages(scope, limit, session_id, self._head, self._entries, max_bytes)
            self._pages[key] = shared
        return shared


class Feed:
    """Pulls and subscriptions of every tenant. Nothing else moves a cursor.

    Args:
        store: Where pages are read.
        clock: For the pause between pages.
        limits: Bounds of pages and tails.
        domains: The domains that hold records. A page names the domains of its scope that are not among them.
        read_limiter: Limits the reads of devices.
    """

    def __init__(
        self,
        store: FeedStore,
        clock: Clock,
        limits: FeedLimits,
        domains: Collection[str],
        read_limiter: ReadLimiter,
    ) -> None:
        self.counters = FeedCounters()
        self._store = store
        self._read_limiter = read_limiter
        self._clock = clock
        self._limits = limits
        self._domains = domains
        self._epoch = ""
        self._hubs: dict[int, Hub] = {}
        self._due: deque[Hub] = deque()
        self._wake = asyncio.Event()
        self._gap_reader = GapReader(store, limits.page_bytes)
        self._group: TaskGroup | None = None

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of pages, and the number of subscriptions."""
        count = sum(len(hub.subscriptions) for hub in self._hubs.values())
        yield gauge("tidemark_subscriptions", "Subscriptions that are open", count)
        yield from self.counters.metrics()

    @property
    def epoch(self) -> str:
        """The epoch that cursors carry."""
        return self._epoch

    async def refresh_epoch(self) -> None:
        """Read the epoch. To be called before serving, and whenever the generation or the epoch changed.

        Another epoch means another feed, whose seqs may be lower: every subscription ends ``cursor_expired``.
        Raises StoreError.
        """
        epoch = await self._store.epoch()
        if epoch == self._epoch:
            return
        self._epoch = epoch
        for hub in list(self._hubs.values()):
            for subscription in list(hub.subscriptions):
                self._fail(subscription, expired())

    async def pull(self, reader: Reader, cursor: str | None, domains: list[str] | None, limit: int) -> bytes:
        """Read a page for one device.

        Returns:
            The page's JSON without its end: ``with_id`` closes it.

        Raises:
            SyncError: The cursor is malformed or does not fit; or ``overloaded``.
            StoreError: The store failed.
        """
        scope = Scope(self._epoch, reader.tenant_id, domains, self._domains)
        page = await self._page(reader, scope, scope.seq(cursor), limit)
        self.counters.pulls += 1
        return stored_page(scope, page, self._limits.page_bytes)[0]

    async def _page(self, reader: Reader, scope: Scope, after_seq: int, limit: int) -> Page:
        """Read the feed in pieces, each in a slot of its own, up to the first page with changes or the end.

        If the domains hold few records, these are read directly: the pieces would go through the whole feed.
        """
        domains = None if scope.domains is None else sorted(scope.domains)
        pieces = 0
        while True:
            async with self._read_limiter.slot(reader):
                page = await self._store.page(
                    reader.tenant_id, after_seq, domains, limit, self._limits.page_bytes
                )
            if after_seq > page.high_seq:
                raise expired()
            if page.records or page.read_to is None:
                return page
            after_seq = page.read_to
            pieces += 1
            if pieces == 1 and domains is not None:
                async with self._read_limiter.slot(reader):
                    rare = await self._store.page_of_rare_domains(
                        reader.tenant_id, after_seq, domains, limit, self._limits.page_bytes
                    )
                if rare is not None:
                    return rare

    async def subscribe(
        self, sink: Sink, request: Subscribe, reader: Reader, session_id: str
    ) -> Subscription:
        """Send the first page, even an empty one, then the rest of the backlog, then every change.

        Returns:
            The subscription. The first page was sent, unless the subscription has ended already.

        Raises:
            SyncError: The cursor is malformed or does not fit; or ``overloaded``. Nothing was sent.
            StoreError: The store failed. Nothing was sent.
        """
        tenant_id = reader.tenant_id
        scope = Scope(self._epoch, tenant_id, request.domains, self._domains)
        after_seq = scope.seq(request.cursor)
        hub = self._hubs.get(tenant_id)
        if hub is None:
            hub = self._hubs[tenant_id] = Hub(tenant_id, self._limits)
        subscription = Subscription(sink, scope, request, session_id, reader)
        hub.subscriptions.add(subscription)
        try:
            page = await self._page(reader, scope, after_seq, request.limit)
        except BaseException:
            self.end(subscription)
            raise
        if subscription.state == "ended":
            return subscription
        hub.start(page.high_seq)
        body, seq = stored_page(scope, page, self._limits.page_bytes)
        sink.send(body, subscription.page_suffix)
        subscription.position = seq
        if subscription.state == "reading":
            self._join_tail(hub, subscription)
        return subscription

    def resume(self, subscription: Subscription) -> None:
        """Send a subscription pages again, after its sink refused one."""
        if subscription.state == "blocked":
            self._join_tail(self._hubs[subscription.tenant_id], subscription)

    def end(self, subscription: Subscription) -> None:
        """End a subscription: no page is sent after this returns. It may have ended before."""
        subscription.state = "ended"
        hub = self._hubs.get(subscription.tenant_id)
        if hub is not None:
            hub.subscriptions.discard(subscription)
            if not hub.subscriptions:
                del self._hubs[hub.tenant_id]

    def _fail(self, subscription: Subscription, error: SyncError) -> None:
        """End a subscription with an error, unless it has ended already."""
        if subscription.state != "ended":
            self.end(subscription)
            subscription.sink.fail(subscription.request_id, error)

    def _join_tail(self, hub: Hub, subscription: Subscription) -> None:
        """Bring a subscription back to the tail, through the store if the tail does not reach it."""
        if hub.tail.covers(subscription.position):
            subscription.state = "live"
            self._schedule(hub)
        else:
            subscription.state = "reading"
            self._start(self._catch_up, hub, subscription)

    def publish(self, changes: list[tuple[Record, str]]) -> None:
        """Deliver committed changes, in any order of seq, each with the session that pushed it."""
        hubs = self._hubs
        if not hubs:
            return
        for record, session_id in changes:
            hub = hubs.get(record.tenant_id)
            if hub is not None:
                hub.tail.publish(record, session_id)
                if not hub.is_scheduled:
                    self._schedule(hub)

    def note_unknown_outcome(self, tenants: Iterable[int]) -> None:
        """Have tenants' feeds reread: changes may be committed that this process never publishes."""
        for tenant_id in tenants:
            hub = self._hubs.get(tenant_id)
            if hub is not None:
                hub.note_missed()
                self._schedule(hub)

    def note_remote_commit(self, tenant_id: int, seq: int) -> None:
        """Catch a tenant's subscriptions up with changes of another process, at least up to ``seq``."""
        hub = self._hubs.get(tenant_id)
        if hub is not None and hub.note_remote_commit(seq):
            self._schedule(hub)

    async def poll_heads(self) -> None:
        """Ask the store which tenants' feeds are ahead of their tails. Raises StoreError."""
        tenants = list(self._hubs)
        for start in range(0, len(tenants), _HEADS_PER_READ):
            heads = await self._store.heads(tenants[start : start + _HEADS_PER_READ])
            for tenant_id, seq in heads.items():
                self.note_remote_commit(tenant_id, seq)

    def _schedule(self, hub: Hub) -> None:
        if hub.is_scheduled:
            return
        hub.is_scheduled = True
        hub.due_since_s = now_s = self._clock.monotonic_s()
        wait_s = hub.sent_at_s + self._limits.page_interval_s - now_s
        if wait_s <= 0:
            self._enqueue(hub)
        else:
            asyncio.get_running_loop().call_later(wait_s, self._enqueue, hub)

    def _enqueue(self, hub: Hub) -> None:
        self._due.append(hub)
        self._wake.set()

    async def run(self) -> None:
        """Send live pages, and catch up subscriptions that fell behind, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._gap_reader.run)
            while True:
                while self._due:
                    await self._deliver(self._due.popleft())
                self._wake.clear()
                await self._wake.wait()

    def _start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        assert self._group is not None, "the feed runs before anyone subscribes"
        self._group.start_soon(work, *arguments)

    async def _deliver(self, hub: Hub) -> None:
        hub.is_scheduled = False
        now_s = self._clock.monotonic_s()
        if hub.begin_reread():
            self._start(self._reread, hub)
        head, since_s = hub.tail.head, hub.due_since_s
        if head is None:
            return
        slices: dict[int, _Slice] = {}
        for sent, subscription in enumerate(list(hub.subscriptions), start=1):
            if subscription.state == "live" and subscription.position < head:
                # Set only when a page is sent, so that a page filled from the store is not delayed by
                # page_interval.
                hub.sent_at_s = now_s
                self._send_live(hub, head, subscription, slices)
            if sent % _SENDS_PER_PASS == 0:
                await asyncio.sleep(0)
        if hub.sent_at_s == now_s:
            self.counters.delays.add(self._clock.monotonic_s() - since_s)

    def _send_live(self, hub: Hub, head: int, subscription: Subscription, slices: dict[int, _Slice]) -> None:
        """Bring one subscription to ``head``, with page bodies that are shared if possible."""
        position = subscription.position
        part = slices.get(position)
        if part is None:
            if not hub.tail.covers(position):
                self._join_tail(hub, subscription)
                return
            part = slices[position] = _Slice(
                [entry for entry in hub.tail.after(position) if entry.seq <= head], head
            )
        for body, seq in part.pages(subscription, self._limits.page_bytes):
            if not subscription.send(body, seq):
                self.counters.blocked += 1
                return
            self.counters.live_pages += 1
        subscription.position = head

    async def _catch_up(self, hub: Hub, subscription: Subscription) -> None:
        """Read the store for a subscription until the tail covers its position."""
        while subscription.state == "reading":
            try:
                page = await self._page(
                    subscription.reader, subscription.scope, subscription.position, subscription.limit
                )
            except StoreError as error:
                reason = type(error).__name__
                _log.warning("catch_up_delayed", tenant_id=hub.tenant_id, reason=reason, detail=error.detail)
                await asyncio.sleep(_RETRY_S)
                continue
            except SyncError as error:
                if error.code == "overloaded":
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._fail(subscription, error)
                return
            if subscription.state != "reading":
                return
            body, seq = stored_page(subscription.scope, page, self._limits.page_bytes)
            if not page.records:
                subscription.position = seq
            elif not subscription.send(body, seq):
                self.counters.blocked += 1
                return
            else:
                self.counters.stored_pages += 1
            if hub.tail.covers(subscription.position):
                self._join_tail(hub, subscription)

    async def _reread(self, hub: Hub) -> None:
        """Read the changes after the tail's head from the store, once for the whole tenant."""
        try:
            while hub.needs_reread:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GAP_WAIT_S):
                        await hub.remote_commit.wait()
                after_seq = hub.begin_read()
                if after_seq is None:
                    break
                hub.end_read(await self._gap_reader.page_after(hub.tenant_id, after_seq))
                self._schedule(hub)
                await asyncio.sleep(self._limits.page_interval_s)
        except StoreError as error:
            reason = type(error).__name__
            _log.warning("gap_remains", tenant_id=hub.tenant_id, reason=reason, detail=error.detail)
            hub.note_missed()
            await asyncio.sleep(_RETRY_S)
        hub.end_reread()
        self._schedule(hub)
