"""The Redis nodes that carry the bus: a single Redis or a cluster.

In a cluster, a plain message reaches every node, so that any node will do. From Redis 7 on there are sharded
channels: one node owns the channel, and each other node answers which one that is.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import Any, Final, NamedTuple

import redis
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisError, ResponseError
from redis.retry import Retry as BlockingRetry

_CLUSTER: Final = re.compile(
    r"(?P<scheme>rediss?)\+cluster://(?P<user>[^/?@]*@)?(?P<nodes>[^/?@]+)(?P<rest>(/0?)?(\?.*)?)"
)
_NODE: Final = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+):\d+")
#: How a Redis older than 7, which has no sharded channels, begins its answer.
_UNKNOWN: Final = "unknown command"


class Route(NamedTuple):
    """A connection to the node that carries the channel. ``sharded``: by a sharded channel."""

    client: Redis
    sharded: bool = False

    async def subscribe(self, subscription: PubSub, channel: str) -> None:
        """Subscribe to a channel. Raises RedisError, OSError."""
        await (subscription.ssubscribe if self.sharded else subscription.subscribe)(channel)

    async def publish(self, channel: str, body: bytes) -> None:
        """Publish a message.

        Raises:
            RedisError: The node refused it; MovedError if another node owns the channel now.
            OSError: The connection failed.
        """
        await (self.client.spublish if self.sharded else self.client.publish)(channel, body)

    async def close(self) -> None:
        """Close its connections."""
        with suppress(RedisError, OSError):
            await self.client.connection_pool.disconnect()


class Nodes:
    """The nodes that a URL names.

    Raises:
        ValueError: The URL is not one of a Redis or of a cluster.
    """

    def __init__(self, url: str) -> None:
        self.cluster = url.partition("://")[0].endswith("+cluster")
        self.urls = self._split(url) if self.cluster else [url]
        for one in self.urls:
            parse_url(one)
        random.shuffle(self.urls)  # spreads processes over the nodes

    def _split(self, url: str) -> list[str]:
        parts = _CLUSTER.fullmatch(url)
        nodes = parts["nodes"].split(",") if parts else []
        if parts is None or not all(map(_NODE.fullmatch, nodes)):
            raise ValueError(
                "the URL of a cluster has the form redis+cluster://host:port,host:port; for TLS rediss+cluster://"
            )
        self._before, self._rest = f"{parts['scheme']}://{parts['user'] or ''}", parts["rest"]
        return [self._before + node + self._rest for node in nodes]

    def owner(self, moved: MovedError) -> str:
        """Return the URL of the node that owns the channel, as another node answered."""
        host, port = moved.node_addr
        return f"{self._before}{f'[{host}]' if ':' in host else host}:{port}{self._rest}"

    async def route(self, channel: str, ping: bytes, timeout_s: float) -> Route:
        """Find the node that carries a channel.

        Args:
            channel: The channel's name.
            ping: A message to publish, which makes a cluster tell the owner of the channel.
            timeout_s: The longest wait for one node.

        Raises:
            RedisError: No node can be used; the error is the last one's.
            OSError: As RedisError.
            TimeoutError: As RedisError.
        """
        if not self.cluster:
            return _route(self.urls[0], timeout_s)
        failed: Exception = TimeoutError()
        for url in tuple(self.urls):
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._enter(url, channel, ping, timeout_s)
            except (RedisError, OSError, TimeoutError) as error:
                failed = error
                self.urls.remove(url)
                self.urls.append(url)  # tried last the next time
        raise failed

    async def _enter(self, url: str, channel: str, ping: bytes, timeout_s: float) -> Route:
        route = _route(url, timeout_s)
        try:
            # A Redis that is not part of a cluster refuses this command.
            await route.client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
            try:
                await route.client.spublish(channel, ping)
            except MovedError as moved:
                await route.close()
                route = _route(self.owner(moved), timeout_s)
                await route.client.spublish(channel, ping)
            except ResponseError as error:
                if not str(error).startswith(_UNKNOWN):
                    raise
                return route
        except BaseException:
            await route.close()
            raise
        return route._replace(sharded=True)


def publish_once(url: str, channel: str, body: bytes, timeout_s: float) -> None:
    """Publish a message without joining the bus. Raises RedisError, OSError, ValueError."""
    nodes = Nodes(url)
    if not nodes.cluster:
        _publish("PUBLISH", url, channel, body, timeout_s)
        return
    failed: Exception = TimeoutError()
    for node in nodes.urls:
        try:
            try:
                _publish("SPUBLISH", node, channel, body, timeout_s)
            except MovedError as moved:
                _publish("SPUBLISH", nodes.owner(moved), channel, body, timeout_s)
            except ResponseError as error:
                if not str(error).startswith(_UNKNOWN):
                    raise
                _publish("PUBLISH", node, channel, body, timeout_s)
        except (RedisError, OSError) as error:
            failed = error
        else:
            return
    raise failed


def _route(url: str, timeout_s: float) -> Route:
    return Route(Redis.from_url(url, socket_timeout=None, retry=Retry(NoBackoff(), 0), **_options(timeout_s)))


def _publish(command: str, url: str, channel: str, body: bytes, timeout_s: float) -> None:
    with redis.Redis.from_url(
        url, socket_timeout=timeout_s, retry=BlockingRetry(NoBackoff(), 0), **_options(timeout_s)
    ) as client:
        client.execute_command(command, channel, body)


def _options(timeout_s: float) -> dict[str, Any]:
    return {"socket_connect_timeout": timeout_s, "health_check_interval": 0, "protocol": 2}
