"""Where the bus is: at one Redis, or at a cluster, whose nodes pass on to each other what they are told.

In a cluster a plain message goes to every node, so that any will do. Where there are sharded channels
(Redis 7) one node has the channel, and each of the others tells which.
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
#: What a Redis says that knows of no sharded channels.
_UNKNOWN: Final = "unknown command"


class Way(NamedTuple):
    """A way onto the bus."""

    client: Redis
    sharded: bool = False

    async def subscribe(self, subscription: PubSub, channel: str) -> None:
        """Ask to be told. Raises RedisError, OSError."""
        await (subscription.ssubscribe if self.sharded else subscription.subscribe)(channel)

    async def publish(self, channel: str, body: bytes) -> None:
        """Tell. Raises RedisError, a MovedError where another node has the channel by now, and OSError."""
        await (self.client.spublish if self.sharded else self.client.publish)(channel, body)

    async def close(self) -> None:
        """Let go of its connections."""
        with suppress(RedisError, OSError):
            await self.client.connection_pool.disconnect()


class Nodes:
    """What a URL names. Raises ValueError."""

    def __init__(self, url: str) -> None:
        self.cluster = url.partition("://")[0].endswith("+cluster")
        self.urls = self._split(url) if self.cluster else [url]
        for one in self.urls:
            parse_url(one)
        random.shuffle(self.urls)  # not everybody goes to the same node

    def _split(self, url: str) -> list[str]:
        parts = _CLUSTER.fullmatch(url)
        nodes = parts["nodes"].split(",") if parts else []
        if parts is None or not all(map(_NODE.fullmatch, nodes)):
            raise ValueError(
                "a cluster's URL is redis+cluster://host:port,host:port, with rediss+cluster: for TLS"
            )
        self._before, self._rest = f"{parts['scheme']}://{parts['user'] or ''}", parts["rest"]
        return [self._before + node + self._rest for node in nodes]

    def owner(self, moved: MovedError) -> str:
        """Give the URL of the node that another said has the channel."""
        host, port = moved.node_addr
        return f"{self._before}{f'[{host}]' if ':' in host else host}:{port}{self._rest}"

    async def way(self, channel: str, greeting: bytes, patience_s: float) -> Way:
        """Find the way to a channel, at a node that answers in time; ``greeting`` may be published by that.

        Raises RedisError, OSError, TimeoutError.
        """
        if not self.cluster:
            return _way(self.urls[0], patience_s)
        failed: Exception = TimeoutError()
        for url in tuple(self.urls):
            try:
                async with asyncio.timeout(patience_s):
                    return await self._enter(url, channel, greeting, patience_s)
            except (RedisError, OSError, TimeoutError) as error:
                failed = error
                self.urls.remove(url)
                self.urls.append(url)  # tried last from now on
        raise failed

    async def _enter(self, url: str, channel: str, greeting: bytes, patience_s: float) -> Way:
        way = _way(url, patience_s)
        try:
            # One that is alone refuses it.
            await way.client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
            try:
                await way.client.spublish(channel, greeting)
            except MovedError as moved:
                await way.close()
                way = _way(self.owner(moved), patience_s)
                await way.client.spublish(channel, greeting)
            except ResponseError as error:
                if not str(error).startswith(_UNKNOWN):
                    raise
                return way
        except BaseException:
            await way.close()
            raise
        return way._replace(sharded=True)


def publish_once(url: str, channel: str, body: bytes, patience_s: float) -> None:
    """Publish from a program that is not on the bus. Raises RedisError, OSError, ValueError."""
    nodes = Nodes(url)
    if not nodes.cluster:
        _publish("PUBLISH", url, channel, body, patience_s)
        return
    failed: Exception = TimeoutError()
    for node in nodes.urls:
        try:
            try:
                _publish("SPUBLISH", node, channel, body, patience_s)
            except MovedError as moved:
                _publish("SPUBLISH", nodes.owner(moved), channel, body, patience_s)
            except ResponseError as error:
                if not str(error).startswith(_UNKNOWN):
                    raise
                _publish("PUBLISH", node, channel, body, patience_s)
        except (RedisError, OSError) as error:
            failed = error
        else:
            return
    raise failed


def _way(url: str, patience_s: float) -> Way:
    return Way(Redis.from_url(url, socket_timeout=None, retry=Retry(NoBackoff(), 0), **_options(patience_s)))


def _publish(command: str, url: str, channel: str, body: bytes, patience_s: float) -> None:
    with redis.Redis.from_url(
        url, socket_timeout=patience_s, retry=BlockingRetry(NoBackoff(), 0), **_options(patience_s)
    ) as client:
        client.execute_command(command, channel, body)


def _options(patience_s: float) -> dict[str, Any]:
    return {"socket_connect_timeout": patience_s, "health_check_interval": 0, "protocol": 2}
