"""Hosts of a test's own: network namespaces on a bridge, of which each can be cut off.

They have no way out: the addresses in them mean nothing elsewhere, and nothing outside reaches them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

#: Where ``ip netns`` keeps its names.
_NAMES = Path("/run/netns")
_NEW_NETWORK = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """A host that everybody reaches, ``address``, and others on its bridge by their names."""

    address = "10.77.0.1"
    everybody = "10.77.0.0/24"

    def __init__(self, hosts: int) -> None:
        name = f"tidemark-{uuid.uuid4().hex[:8]}"
        self._hub = f"{name}-hub"
        self._hosts = {f"host{number}": f"{name}-host{number}" for number in range(1, hosts + 1)}
        self.addresses = {host: f"10.77.0.{number}" for number, host in enumerate(self._hosts, 11)}

    def make(self) -> None:
        """Make the namespaces and what connects them. Raises CalledProcessError where that is not allowed."""
        for namespace in (self._hub, *self._hosts.values()):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._hub, "address", "add", f"{self.address}/24", "dev", "bridge")
        _ip("-n", self._hub, "link", "set", "bridge", "up")
        for host, namespace in self._hosts.items():
            _ip("-n", self._hub, "link", "add", host, "type", "veth", "peer", "eth0", "netns", namespace)
            _ip("-n", namespace, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", self._hub, "link", "set", host, "master", "bridge", "up")

    def cut(self, host: str) -> None:
        """Pull the host's cable: its connections stay open, and nothing arrives any more."""
        _ip("-n", self._hub, "link", "set", host, "down")

    def heal(self, host: str) -> None:
        """Put the cable back."""
        _ip("-n", self._hub, "link", "set", host, "up")

    @contextmanager
    def inside(self, host: str | None = None) -> Iterator[None]:
        """Have this thread on a host, the one that all reach for None: what it starts and opens is there."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(_NAMES / (self._hub if host is None else self._hosts[host]))
            try:
                yield
            finally:
                _switch(outside)
        finally:
            os.close(outside)

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Open a socket on the host that all reach; aiohttp's ``socket_factory``."""
        family, kind, protocol, *_ = info
        with self.inside():
            return socket.socket(family, kind, protocol)

    def remove(self) -> None:
        """End what is left on the hosts, and remove them; their links go with them."""
        for namespace in (self._hub, *self._hosts.values()):
            if (_NAMES / namespace).exists():
                for pid in _ip("netns", "pids", namespace).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "delete", namespace)


@contextmanager
def network(hosts: int) -> Iterator[Network]:
    """Give a network of so many hosts. Skips where namespaces cannot be made."""
    made = Network(hosts)
    try:
        try:
            made.make()
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"network namespaces cannot be made here: {said.strip()}")
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> str:
    program = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise FileNotFoundError("the program ip (iproute2) is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def _enter(name: Path) -> None:
    descriptor = os.open(name, os.O_RDONLY)
    try:
        _switch(descriptor)
    finally:
        os.close(descriptor)


def _switch(descriptor: int) -> None:
    if _libc.setns(descriptor, _NEW_NETWORK) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
