"""The bus over a real Redis: which messages arrive, also when Redis goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from engine.model.rows import Record
from storage.bus.bus_messages import (
    BusMessage,
    Connected,
    RequestedUpload,
    UnusableUrlError,
    announce,
    channel_of,
    decode,
    encode,
)
from storage.bus.redis_bus import RedisBus
from storage.bus.signing import MAX_CLOCK_SKEW_S, signed, unsigned
from storage.postgres.cell.dsn import schema_of
from storage.postgres.checkup.database import FAULT_APART_S
from tests.harness.admin import add_tenants
from tests.harness.servers.own_redis import OwnRedis, started_redis
from tests.harness.servers.redis_nodes import system_redis
from tests.harness.services import Databases, Serving, execute, rows
from tests.security.catalogue import against

Heard = tuple[Any, ...]


def changes(tenant_id: int, *seqs: int) -> list[tuple[Record, str]]:
    """Committed changes of a tenant."""
    return [(Record(tenant_id, "task", "a", 1, seq, 0, "phone", 1, b"{}"), "s") for seq in seqs]


class BusProcess:
    """One process on the bus, and all that it was told."""

    def __init__(self, url: str, dsn: str, epoch: str = "e") -> None:
        self.epoch = epoch
        self.heard: list[Heard] = []
        self.rejected: list[str] = []
        self._news = asyncio.Event()
        self._database = Serving(dsn, 1)
        self.bus = RedisBus(url, self._database, lambda: self.epoch, self.rejected.append)
        self._scope = anyio.CancelScope()
        self._task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        with self._scope:
            await self.bus.run(self)

    def generation_moved(self) -> None:
        """Note it."""
        self._note("generation")

    def feed_advanced(self, tenant_id: int, seq: int) -> None:
        """Note it."""
        self._note("feed_advanced", tenant_id, seq)

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Note it."""
        self._note("device_connected", tenant_id, device_id, session_id, at_us)

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Note it."""
        self._note("upload_requested", tenant_id, upload_id, lock_owner)

    def resync(self) -> None:
        """Note it."""
        self._note("resync")

    def _note(self, *heard: Any) -> None:
        self.heard.append(heard)
        self._news.set()

    async def hears(self, *wanted: Any) -> None:
        """Wait until it was told, and forget that."""
        await self._until(lambda: wanted in self.heard)
        self.heard.remove(wanted)

    async def is_on(self) -> None:
        """Wait until it is on the bus, which has everything looked up."""
        await self._until(lambda: self.bus.state.up)
        await self.hears("resync")

    async def is_off(self) -> None:
        """Wait until it noticed that the bus is away, which has everything looked up."""
        await self._until(lambda: not self.bus.state.up)
        await self.hears("resync")

    async def _until(self, settled: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not settled():
                self._news.clear()
                await self._news.wait()

    @property
    def ended(self) -> bool:
        """Whether it left the bus by itself, which it never should."""
        return self._task.done()

    async def close(self) -> None:
        """Leave the bus, as a service ends: a bare cancellation could come while connections are put away."""
        self._scope.cancel()
        await asyncio.wait({self._task})
        await self._database.close()


Join = Callable[..., Awaitable[BusProcess]]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def _own_redis(request: pytest.FixtureRequest) -> Iterator[OwnRedis]:
    """The embedded Valkey, and the system's Redis in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "redis":
            found = system_redis()
            patch.setattr("storage.embedded.redis.redis_binary", lambda *_: found)
        with started_redis() as made:
            yield made


@pytest.fixture
async def join(own_redis: OwnRedis, dsn: str) -> AsyncIterator[Join]:
    """Let processes join the bus of one database; each is on it when it is given."""
    async with AsyncExitStack() as stack:

        async def place(at: str = dsn, epoch: str = "e") -> BusProcess:
            joined = BusProcess(own_redis.url, at, epoch)
            stack.push_async_callback(joined.close)
            await joined.is_on()
            return joined

        yield place


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a silent connection soon."""
    monkeypatch.setattr("storage.bus.redis_bus.PING_S", 0.05)
    monkeypatch.setattr("storage.bus.redis_bus.TIMEOUT_S", 0.5)


async def test_bus_message_reaches_the_others_and_not_its_sender(join: Join) -> None:
    one, two, three = await join(), await join(), await join()
    one.bus.committed(changes(7, 3, 5, 4))
    one.bus.device_connected(7, "phone", "s1", 99)
    for other in (two, three):
        await other.hears("feed_advanced", 7, 5)
        await other.hears("device_connected", 7, "phone", "s1", 99)
    two.bus.committed(changes(7, 6))
    await one.hears("feed_advanced", 7, 6)
    assert one.heard == []
    assert one.bus.state.round_trip_s > 0


async def test_bus_news_during_a_publish_travels_as_one_message(join: Join) -> None:
    one, two = await join(), await join()
    before = one.bus.state.published
    for seq in range(1, 1001):
        one.bus.committed(changes(seq % 3, seq))
    for tenant_id, seq in ((1, 1000), (2, 998), (0, 999)):
        await two.hears("feed_advanced", tenant_id, seq)
    assert one.bus.state.published - before <= 2


async def test_bus_commits_of_a_lone_process_wait_for_another_process(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.redis_bus.PING_S", 60.0)
    monkeypatch.setattr("storage.bus.redis_bus.OTHERS_HEARD_WITHIN_S", 0.0)
    one = await join()
    await one.bus.drain()
    before = one.bus.state.published
    for seq in range(1, 101):
        one.bus.committed(changes(seq % 2, seq))
        await one.bus.drain()
    assert one.bus.state.published == before
    two = await join()
    await two.hears("feed_advanced", 0, 100)
    await two.hears("feed_advanced", 1, 99)
    assert one.bus.state.published == before + 1


async def test_bus_commits_of_a_lone_process_are_told_with_the_ping(
    join: Join, own_redis: OwnRedis, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.redis_bus.PING_S", 0.05)
    monkeypatch.setattr("storage.bus.redis_bus.OTHERS_HEARD_WITHIN_S", 0.0)
    one = await join()
    channel, _ = bus_of(dsn)
    async with redis.asyncio.from_url(own_redis.url) as stranger, stranger.pubsub() as subscription:
        await subscription.subscribe(channel)
        one.bus.committed(changes(7, 5))
        async for message in subscription.listen():
            news = decode(message["data"])
            if news is not None and news.feed_seqs:
                assert news.feed_seqs == {7: 5}
                break


async def test_bus_too_many_feeds_to_tell_ask_for_a_resync(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.redis_bus._MAX_TENANTS", 10)
    one, two = await join(), await join()
    for tenant_id in range(25):
        one.bus.committed(changes(tenant_id, 1))
    await two.hears("resync")
    one.bus.committed(changes(99, 1))
    await two.hears("feed_advanced", 99, 1)


async def test_bus_databases_on_one_redis_do_not_hear_each_other(
    join: Join, databases: Databases, template: str
) -> None:
    with databases.copy(template) as other_dsn:
        one, two = await join(), await join()
        strangers = [await join(other_dsn), await join(epoch="another")]
        for stranger in strangers:
            stranger.bus.committed(changes(1, 1))
            await stranger.bus.drain()
        one.bus.committed(changes(2, 2))
        await two.hears("feed_advanced", 2, 2)
        assert two.heard == []
        assert [stranger.heard for stranger in strangers] == [[], []]
        await strangers[0].close()


@pytest.mark.usefixtures("hasty")
async def test_bus_new_epoch_moves_all_to_a_new_channel(join: Join) -> None:
    one, two = await join(), await join()
    for place in (one, two):
        place.epoch = "restored"
        await place.is_off()
        await place.is_on()
    one.bus.committed(changes(1, 1))
    await two.hears("feed_advanced", 1, 1)


GARBAGE = (
    b"",
    b"\xff\xfe",
    b"[" * 100_000,
    b"{}",
    b'{"sender":1}',
    b'{"sender":"x","moved":{"a":1}}',
    b'{"sender":"x","moved":{"1":-1}}',
    b'{"sender":"x","moved":{"1":99999999999999999999}}',
    b'{"sender":"x","opened":[[1,"phone"]]}',
)


def bus_of(dsn: str) -> tuple[str, bytes]:
    """The channel of a database, and the key of its messages."""
    ((name, key),) = rows(dsn, "SELECT current_database()::text, encode(bus_key, 'hex') FROM cluster_state")
    return channel_of(str(name), "e", schema_of(dsn)), bytes.fromhex(str(key))


def forged(tenant_id: int, at_us: int, sent_at_us: int = 0) -> bytes:
    """A message that sends the older connection of a phone away."""
    return encode(BusMessage("x", sent_at_us, connected=[Connected(tenant_id, "phone", "s1", at_us)]))


@against("API10:2023", "V1.5")
async def test_bus_message_with_a_wrong_signature_or_time_is_rejected(
    join: Join, own_redis: OwnRedis, dsn: str
) -> None:
    one, two = await join(), await join()
    channel, key = bus_of(dsn)
    now_us, hour_us = time.time_ns() // 1000, 3_600_000_000
    lies = [
        forged(1, now_us, now_us),
        signed(forged(1, now_us, now_us), bytes(32), channel),
        signed(forged(1, now_us, now_us), key, "tidemark:other:e"),
        signed(forged(1, now_us, now_us), key, channel).replace(b"phone", b"other"),
        signed(forged(1, now_us, now_us - hour_us), key, channel),  # told again, later
        signed(forged(1, now_us, now_us + hour_us), key, channel),
        signed(forged(1, now_us + hour_us, now_us), key, channel),
    ]
    with capture_logs() as logs:
        async with redis.asyncio.from_url(own_redis.url) as stranger:
            for lie in lies:
                assert await stranger.publish(channel, lie) == 2
            told = signed(forged(7, now_us, now_us), key, channel)
            assert await stranger.publish(channel, told) == 2
        for place in (one, two):
            await place.hears("device_connected", 7, "phone", "s1", now_us)
            assert (place.heard, place.bus.state.rejected) == ([], len(lies))
            assert Counter(place.rejected) == {"signature": 4, "time": 2, "time of a connection": 1}
    assert [line["event"] for line in logs] == ["bus_message_rejected"] * 2
    assert MAX_CLOCK_SKEW_S > 2 * FAULT_APART_S


async def test_bus_unsigned_messages_are_accepted_until_none_came_for_a_while(
    join: Join, own_redis: OwnRedis, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(dsn, "UPDATE cluster_state SET bus_unsigned_until = now() + interval '1 hour'")
    one = await join()
    channel, key = bus_of(dsn)
    async with redis.asyncio.from_url(own_redis.url) as of_before:
        await of_before.publish(channel, forged(1, 99))
        await one.hears("device_connected", 1, "phone", "s1", 99)
        later_us = time.time_ns() // 1000 + 3_600_000_000
        await of_before.publish(channel, forged(1, later_us))
        monkeypatch.setattr("storage.bus.redis_bus.ALL_SIGNED_FOR_S", 0.0)
        two = await join()
        while rows(dsn, "SELECT bus_unsigned_until > now() FROM cluster_state") != [(False,)]:
            one.bus.committed(changes(1, 1))
            await two.hears("feed_advanced", 1, 1)
        await of_before.publish(channel, forged(2, 99))
        await of_before.publish(channel, signed(forged(3, 99, time.time_ns() // 1000), key, channel))
        await one.hears("device_connected", 3, "phone", "s1", 99)
    assert one.heard == []
    assert one.bus.state.rejected >= 1


async def test_bus_signed_message_is_readable_without_the_signature(dsn: str) -> None:
    channel, key = bus_of(dsn)
    body = encode(BusMessage("x", 1, 2, feed_seqs={1: 2}))
    assert decode(signed(body, key, channel)) == decode(body)
    assert unsigned(signed(body, key, channel), key, channel) == (body, "right")


def test_bus_message_names_on_the_wire_stay_for_older_processes() -> None:
    body = encode(
        BusMessage(
            "x",
            rejoined=True,
            feed_seqs={1: 2},
            connected=[Connected(1, "phone", "s1", 9)],
            requested_uploads=[RequestedUpload(1, "u1", "owner")],
        )
    )
    assert body == (
        b'{"sender":"x","back":true,"moved":{"1":2},"opened":[[1,"phone","s1",9]],"wanted":[[1,"u1","owner"]]}'
    )
    assert encode(BusMessage("x", 1, 2)) == b'{"sender":"x","at_us":1,"number":2}'


@against("API10:2023", "V1.5")
async def test_bus_malformed_message_is_counted_and_ignored(
    join: Join, own_redis: OwnRedis, dsn: str
) -> None:
    one, two = await join(), await join()
    channel, key = bus_of(dsn)
    async with redis.asyncio.from_url(own_redis.url) as stranger:
        for body in GARBAGE:
            told = signed(body, key, channel) if body.endswith(b"}") else body
            assert await stranger.publish(channel, told) == 2
    one.bus.committed(changes(1, 1))
    await two.hears("feed_advanced", 1, 1)
    assert two.bus.state.malformed + two.bus.state.rejected == len(GARBAGE)
    assert two.bus.state.malformed > 0
    assert two.heard == []


async def test_bus_restart_of_redis_rejoins_and_resyncs_everybody(join: Join, own_redis: OwnRedis) -> None:
    with capture_logs() as logs:
        one, two = await join(), await join()
        two.bus.device_connected(1, "tablet", "s0", 1)
        await one.hears("device_connected", 1, "tablet", "s0", 1)
        own_redis.kill()
        for place in (one, two):
            await place.is_off()
        one.bus.committed(changes(1, 1))
        one.bus.device_connected(1, "phone", "s1", 99)
        await asyncio.wait_for(one.bus.drain(), 10)
        own_redis.start()
        for place in (one, two):
            await place.is_on()
        await two.hears("device_connected", 1, "phone", "s1", 99)
        one.bus.committed(changes(1, 2))
        await two.hears("feed_advanced", 1, 2)
    events = [one["event"] for one in logs]
    assert sorted(events) == ["bus_back"] * 2 + ["bus_lost"] * 2
    assert one.bus.state.losses == 1


async def test_bus_news_that_could_not_be_told_asks_for_a_resync(join: Join) -> None:
    """Only the connection of one breaks: the others would never know that they missed anything."""
    one, two = await join(), await join()
    one.bus._open = False
    one.bus.committed(changes(1, 1))
    one.bus._open = True
    two.heard.clear()
    one.bus.device_connected(1, "phone", "s1", 99)
    await two.hears("resync")
    await two.hears("device_connected", 1, "phone", "s1", 99)


async def test_bus_process_that_rejoins_late_is_told_who_connected(
    join: Join, own_redis: OwnRedis, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.redis_bus._MAX_CONNECTIONS", 2)
    one = await join()
    for number in range(3):
        one.bus.device_connected(1, f"d{number}", "s", number)
    one.bus.device_connected(1, "d1", "t", 9)
    await one.bus.drain()
    late = BusProcess(own_redis.url, dsn)
    late.bus.device_connected(1, "d1", "late", 5)
    await one.hears("device_connected", 1, "d1", "late", 5)
    await late.hears("device_connected", 1, "d1", "t", 9)
    await late.is_on()
    assert late.heard == [("device_connected", 1, "d2", "s", 2)]
    await late.close()


@pytest.mark.usefixtures("hasty")
async def test_bus_silent_redis_is_noticed(join: Join, own_redis: OwnRedis) -> None:
    one, two = await join(), await join()
    own_redis.freeze()
    try:
        await one.is_off()
        one.bus.committed(changes(1, 1))
    finally:
        own_redis.thaw()
    for place in (one, two):
        await place.is_on()
    one.bus.committed(changes(1, 2))
    await two.hears("feed_advanced", 1, 2)


class Relay:
    """Between a bus and Redis. While it is ``deaf``, what is published elsewhere does not get through."""

    def __init__(self, redis_path: str) -> None:
        self._redis_path = redis_path
        self.deaf = False

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes in both directions."""
        from_redis, to_redis = await asyncio.open_unix_connection(self._redis_path)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, to_redis, heeds=False))
                group.create_task(self._carry(from_redis, writer, heeds=True))
        finally:
            writer.close()
            to_redis.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, heeds: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            if not (heeds and self.deaf and b"message" in data):
                writer.write(data)
        writer.close()


@pytest.mark.usefixtures("hasty")
async def test_bus_missing_echo_is_noticed(own_redis: OwnRedis, dsn: str, tmp_path: Path) -> None:
    """Publishing is answered as ever, and nothing says that the subscription is dead."""
    relay = Relay(own_redis.url.removeprefix("unix://"))
    async with await asyncio.start_unix_server(relay.connected, tmp_path / "relay.sock"):
        one = BusProcess(f"unix://{tmp_path / 'relay.sock'}", dsn)
        await one.is_on()
        relay.deaf = True
        await one.is_off()
        relay.deaf = False
        await one.is_on()
        await one.close()


async def test_announce_tells_what_a_command_changed(join: Join, own_redis: OwnRedis, dsn: str) -> None:
    add_tenants(dsn, "acme")
    execute(dsn, "UPDATE tenant_counters SET seq = 12")
    ((tenant_id, epoch),) = rows(dsn, "SELECT tenant_id, epoch FROM tenants, cluster_state")
    one = await join(epoch=str(epoch))
    announce(own_redis.url, dsn, {int(str(tenant_id)), 999})
    await one.hears("generation")
    await one.hears("feed_advanced", tenant_id, 12)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "unix:///nowhere/redis.sock", "http://x", "redis://x:y"]
)
def test_announce_redis_unavailable_is_ignored(url: str, dsn: str, empty_dsn: str) -> None:
    for at in (dsn, empty_dsn):
        announce(url, at, set())


@pytest.mark.parametrize("url", ["http://x", "redis://x:y", "nonsense"])
async def test_bus_url_of_something_else_is_refused(url: str, dsn: str) -> None:
    with pytest.raises(UnusableUrlError):
        RedisBus(url, Serving(dsn, 1), lambda: "e")


@pytest.mark.parametrize("said", [b":1\r\n:1\r\n", b"+OK\r\n*2\r\n$7\r\nmessage\r\n$1\r\na\r\n"])
async def test_bus_answer_that_is_not_redis_ends_no_process(said: bytes, dsn: str) -> None:
    callers = 0
    again = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal callers
        callers += 1
        if callers == 3:
            again.set()
        while await reader.read(1 << 16):
            writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        place = BusProcess(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", dsn)
        async with asyncio.timeout(10):
            await again.wait()
        await place.close()
