"""Redis servers of a test's own that listen on a port: alone, or as the nodes of a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import redis

from storage.embedded.account import Account
from storage.embedded.process import wait_until

_PATIENCE_S = 30.0
_SYSTEM_SINCE = 7


def system_redis() -> Path:
    """Find the system's Redis, which has sharded channels. Skips without one."""
    program = shutil.which("redis-server")
    if program is not None:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"v=(\d+)", said)
        if version is not None and int(version[1]) >= _SYSTEM_SINCE:
            return Path(program)
    pytest.skip(f"there is no redis-server {_SYSTEM_SINCE} here: install it (apt-get install redis-server)")


class RedisNode:
    """One server; ``settings`` are its command line's, without the dashes. It keeps its files in ``home``.

    With ``tls_port`` it speaks TLS alone. It has no command of ``withheld``, as a server older than they are.
    """

    def __init__(
        self,
        binary: Path,
        account: Account,
        home: Path,
        host: str,
        port: int,
        *,
        withheld: Iterable[str] = (),
        **settings: str,
    ) -> None:
        self.host = host
        self.port = port
        self.address = f"{host}:{port}"
        self._password = settings.get("requirepass")
        self._authority = settings.get("tls_ca_cert_file")
        told = {
            "bind": host,
            "port": "0" if "tls_port" in settings else str(port),
            "dir": str(account.directory(home)),
            "logfile": str(home / "redis.log"),
            "save": "",
            "appendonly": "no",
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        flags = [part for name, value in told.items() for part in (f"--{name}", value)]
        flags += [part for name in withheld for part in ("--rename-command", name, "")]
        self._command = [str(binary), *flags]
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, **self._account.spawning
            )
        assert wait_until(self._answers, _PATIENCE_S), f"the Redis at {self.address} does not start"

    def client(self) -> redis.Redis:
        """Talk to it."""
        return redis.Redis(
            self.host,
            self.port,
            password=self._password,
            decode_responses=True,
            ssl=self._authority is not None,
            ssl_ca_certs=self._authority,
        )

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
