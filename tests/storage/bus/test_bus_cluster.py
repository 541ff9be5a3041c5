"""The bus over a real Redis Cluster of three nodes, with sharded channels and without."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from storage.bus.bus_messages import UnusableUrlError, announce, channel_of
from storage.bus.checkup import bus_findings
from storage.bus.redis_bus import RedisBus
from storage.embedded.account import account_for
from storage.embedded.binaries import redis_binary
from storage.embedded.process import wait_until
from storage.postgres.cell.dsn import schema_of
from tests.harness.servers.redis_nodes import RedisNode, system_redis
from tests.harness.services import Serving, rows
from tests.storage.bus.test_bus import BusProcess, changes

_SLOTS = 16384
_NODES = 3
_SHARDED = ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")


class RedisCluster:
    """Nodes that share the slots; ``sharded`` where they have sharded channels."""

    def __init__(self, nodes: list[RedisNode], *, sharded: bool) -> None:
        self.nodes = nodes
        self.sharded = sharded

    def url(self, *nodes: RedisNode) -> str:
        """Name some of its nodes, or all."""
        return "redis+cluster://" + ",".join(node.address for node in nodes or self.nodes)

    def form(self) -> None:
        """Make the nodes one cluster, and wait until each knows that."""
        for number, node in enumerate(self.nodes):
            _told(node, "CLUSTER SET-CONFIG-EPOCH", number + 1)
            _told(node, "CLUSTER ADDSLOTS", *range(number, _SLOTS, len(self.nodes)))
            if number:
                _told(node, "CLUSTER MEET", node.host, self.nodes[0].port)
        self.start()

    def start(self) -> None:
        """Start the nodes that do not run, and wait until each sees all of them."""
        for node in self.nodes:
            node.start()
        assert wait_until(lambda: all(map(self._whole, self.nodes)), 30), "the nodes form no cluster"

    def _whole(self, node: RedisNode) -> bool:
        said = _told(node, "CLUSTER INFO")
        return (said["cluster_known_nodes"], said["cluster_state"]) == (str(len(self.nodes)), "ok")

    def owner(self, channel: str) -> RedisNode:
        """Which node has a sharded channel from the start."""
        slot: int = _told(self.nodes[0], "CLUSTER KEYSLOT", channel)
        return self.nodes[slot % len(self.nodes)]

    def move(self, channel: str, to: RedisNode) -> None:
        """Give the slot of a channel to another node."""
        slot, name = _told(to, "CLUSTER KEYSLOT", channel), _told(to, "CLUSTER MYID")
        for node in (to, *(node for node in self.nodes if node is not to)):
            _told(node, "CLUSTER SETSLOT", slot, "NODE", name)


def _told(node: RedisNode, *command: Any) -> Any:
    with node.client() as client:
        return client.execute_command(*command)


def _free_ports() -> list[int]:
    """Find ports for nodes; each talks to the others at a port that is higher by 10,000."""
    while True:
        first = random.SystemRandom().randrange(20_000, 22_000)
        ports = list(range(first, first + _NODES))
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in ports:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                held.enter_context(socket.create_server(("127.0.0.1", port + 10_000)))
            return ports


@pytest.fixture(scope="module", params=["plain", "redis", pytest.param("valkey", marks=pytest.mark.slow)])
def formed(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """Valkey without sharded channels, as before Redis 7; the system's Redis; and Valkey with all it has."""
    sharded = request.param != "plain"
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        home = Path(name)
        home.chmod(0o711)  # the servers' account has to pass through it
        account = account_for(home / "nodes")
        binary = system_redis() if request.param == "redis" else redis_binary(home, account)
        withheld = () if sharded else _SHARDED
        as_node = {"cluster_enabled": "yes", "cluster_node_timeout": "1000"}
        nodes = [
            RedisNode(binary, account, home / str(port), "127.0.0.1", port, withheld=withheld, **as_node)
            for port in _free_ports()
        ]
        for node in nodes:
            stack.callback(node.kill)
            node.start()
        made = RedisCluster(nodes, sharded=sharded)
        made.form()
        yield made


@pytest.fixture
def redis_cluster(formed: RedisCluster) -> RedisCluster:
    """The cluster, whole whatever the test before did to it."""
    formed.start()
    return formed


@pytest.fixture
def channel(dsn: str) -> str:
    """The channel of the test's database."""
    [(database,)] = rows(dsn, "SELECT current_database()::text")
    return channel_of(str(database), "e", schema_of(dsn))


Join = Callable[[str], Awaitable[BusProcess]]


@pytest.fixture
async def join(dsn: str) -> AsyncIterator[Join]:
    """Let processes join the bus of one database at a URL; each is on it when it is given."""
    async with AsyncExitStack() as stack:

        async def place(url: str) -> BusProcess:
            joined = BusProcess(url, dsn)
            stack.push_async_callback(joined.close)
            await joined.is_on()
            return joined

        yield place


async def _hear_each_other(one: BusProcess, two: BusProcess, seq: int) -> None:
    one.bus.committed(changes(7, seq))
    await two.hears("feed_advanced", 7, seq)
    two.bus.device_connected(7, f"device {seq}", "s1", 99)
    await one.hears("device_connected", 7, f"device {seq}", "s1", 99)


async def test_bus_cluster_processes_at_different_nodes_hear_each_other(
    redis_cluster: RedisCluster, join: Join, channel: str
) -> None:
    places = [await join(redis_cluster.url(node)) for node in redis_cluster.nodes]
    for seq, (one, two) in enumerate(zip(places, [*places[1:], places[0]], strict=True), 1):
        await _hear_each_other(one, two, seq)
    kind = "SHARDCHANNELS" if redis_cluster.sharded else "CHANNELS"
    listening = [channel in _told(node, f"PUBSUB {kind}") for node in redis_cluster.nodes]
    assert sum(listening) == (1 if redis_cluster.sharded else _NODES)


async def test_bus_cluster_announce_reaches_processes_from_any_node(
    redis_cluster: RedisCluster, dsn: str, join: Join
) -> None:
    [(epoch,)] = rows(dsn, "SELECT epoch FROM cluster_state")
    place = await join(redis_cluster.url())
    place.epoch = str(epoch)
    await place.is_off()
    await place.is_on()
    for node in redis_cluster.nodes:
        announce(redis_cluster.url(node), dsn, set())
        await place.hears("generation")


async def test_bus_cluster_lost_node_is_replaced_or_waited_for(
    redis_cluster: RedisCluster, join: Join, channel: str
) -> None:
    """Any node carries a plain message; only the one that has a sharded channel carries that."""
    node = redis_cluster.owner(channel)
    one = await join(redis_cluster.url(node, *redis_cluster.nodes))
    two = await join(redis_cluster.url(*redis_cluster.nodes))
    only_there = await join(redis_cluster.url(node))
    node.kill()
    await only_there.is_off()
    if redis_cluster.sharded:
        await one.is_off()
        await two.is_off()
    else:
        await _hears_again(one, two, 1)
    node.start()
    await only_there.is_on()
    for other in (one, two):
        await _hears_again(other, only_there, 2)


async def _hears_again(one: BusProcess, two: BusProcess, seq: int) -> None:
    """Wait until what one tells reaches the other; what was told while it was away is looked up."""
    async with asyncio.timeout(10):
        while ("feed_advanced", 7, seq) not in two.heard:
            one.bus.committed(changes(7, seq))
            await asyncio.sleep(0.02)
    two.heard.clear()


async def test_bus_cluster_moved_channel_is_followed_to_its_new_node(
    redis_cluster: RedisCluster, join: Join, channel: str
) -> None:
    one, two = await join(redis_cluster.url()), await join(redis_cluster.url())
    old = redis_cluster.owner(channel)
    new = next(node for node in redis_cluster.nodes if node is not old)
    redis_cluster.move(channel, new)  # for good: it is the channel of this test alone
    if redis_cluster.sharded:
        await _came_back(one)
        await _came_back(two)
        assert channel in _told(new, "PUBSUB SHARDCHANNELS")
    await _hear_each_other(one, two, 1)


async def _came_back(place: BusProcess) -> None:
    state = place.bus.state
    await place._until(lambda: state.losses == 1 and state.up)


def test_checkup_cluster_asks_every_node(redis_cluster: RedisCluster) -> None:
    def levels(*, alone: bool = False) -> list[str]:
        return [finding.level for finding in bus_findings(redis_cluster.url(), alone=alone)]

    assert levels() == ["ok"]
    redis_cluster.nodes[1].kill()
    assert levels() == ["warning"]
    for node in redis_cluster.nodes:
        node.kill()
    assert (levels(), levels(alone=True)) == (["fault"], ["warning"])


async def test_bus_cluster_url_of_a_single_redis_is_refused(dsn: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o711)
        account = account_for(home / "node")
        node = RedisNode(redis_binary(home, account), account, home / "node", "127.0.0.1", _free_ports()[0])
        try:
            node.start()
            with capture_logs() as logs:
                place = BusProcess(f"redis+cluster://{node.address}", dsn)
                try:
                    async with asyncio.timeout(10):
                        while not logs:  # noqa: ASYNC110  # it happens in Redis
                            await asyncio.sleep(0.02)
                finally:
                    await place.close()
        finally:
            node.kill()
    assert not place.bus.state.up
    assert logs[0]["event"] == "bus_lost"


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://host",
        "redis+cluster://a:1,b",
        "redis+cluster://a:1,b:2/1",
        "unix+cluster://a:1",
        "redis+cluster://a:1,,b:2",
        "redis+cluster://a:99999",
    ],
)
async def test_bus_cluster_malformed_url_is_refused_in_a_sentence(url: str, dsn: str) -> None:
    with pytest.raises(UnusableUrlError) as refused:
        RedisBus(url, Serving(dsn, 1), lambda: "e")
    assert str(refused.value)
