"""A Redis of a test's own, to be killed and stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.embedded.servers import embedded, servers
from tests.harness.scratch import scratch


class OwnRedis:
    """A Redis that runs; ``url`` stays the same whatever becomes of it."""

    def __init__(self, data_dir: Path, url: str) -> None:
        self._data_dir = data_dir
        self.url = url

    def kill(self) -> None:
        """Kill it as a power cut would."""
        servers(self._data_dir).redis.stop(signal.SIGKILL)

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        servers(self._data_dir).redis.start()

    def freeze(self) -> None:
        """Have it do nothing more, its connections being open: what a dead host looks like."""
        os.kill(self._pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        os.kill(self._pid(), signal.SIGCONT)

    def _pid(self) -> int:
        return int((self._data_dir / "redis" / "redis.pid").read_text())


@contextmanager
def started_redis() -> Iterator[OwnRedis]:
    """Run one in a directory of its own."""
    with scratch("tidemark-redis-") as home, embedded(home / "data", postgres=False) as running:
        yield OwnRedis(home / "data", running.redis_url)


@pytest.fixture(scope="session")
def _own_redis() -> Iterator[OwnRedis]:
    with started_redis() as made:
        yield made


@pytest.fixture
def own_redis(_own_redis: OwnRedis) -> OwnRedis:
    """A Redis that nobody else uses, running whatever the test before did to it."""
    _own_redis.start()
    return _own_redis
