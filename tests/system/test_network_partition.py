"""Two hosts with two workers each behind nginx, on one PostgreSQL and one Redis; one host is cut off."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from click.testing import CliRunner

from bench.harness.clusters import migrate_for_roles, role_variables
from compose.deployment import open_deployment
from run import cli
from storage.embedded.account import account_for
from storage.embedded.binaries import redis_binary
from tests.harness.admin import ensure_tenant
from tests.harness.numbered_edits import TENANTS, Editor, audit, editors_of, progressed
from tests.harness.servers.network_hosts import Network, network
from tests.harness.servers.redis_nodes import RedisNode
from tests.harness.services import cluster
from tests.harness.ws_device import SECRET, Closed, Json, connected, token

_ROOT = Path(__file__).parents[2]
_PORT = 8080
_WORKERS = (_PORT + 1, _PORT + 2)
#: Who asks from another host is told more than a status with an operator's token.
_OPERATOR = {"Authorization": f"Bearer {token(None, None, role='operator')}"}
_REDIS_PASSWORD = "known to the hosts"
DEVICES = 12
ACKS = 200
_OPEN = "tidemark_connections"


class Hosts:
    """Two hosts that serve one database, and nginx in front of them at ``url``."""

    def __init__(self, net: Network, dsn: str, redis_url: str, home: Path) -> None:
        self.net = net
        self.dsn = dsn
        self.url = f"http://{net.address}"
        self._home = home
        self._environment = {
            **os.environ,
            **role_variables(dsn),
            "TIDEMARK__REDIS__URL": redis_url,
            "TIDEMARK__DATA__DIR": str(home / "data"),
            "TIDEMARK__AUTH__SECRET": SECRET.decode(),
            "TIDEMARK__SERVER__TRUSTED_PROXIES": f'["{net.address}"]',
        }

    @contextmanager
    def serving(self, host: str) -> Iterator[None]:
        """Run the workers of a host, and have them drain in the end."""
        log = self._home / f"{host}.log"
        command = [sys.executable, str(_ROOT / "run.py"), "serve", "--workers", str(len(_WORKERS))]
        where = ["--host", self.net.addresses[host], "--port", str(_PORT)]
        with log.open("wb") as output, self.net.inside(host):
            process = subprocess.Popen([*command, *where], env=self._environment, stdout=output)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        assert status == 0, log.read_text()[-2000:]

    @contextmanager
    def nginx(self) -> Iterator[None]:
        """Run nginx with the site that the command prints for these hosts, without TLS."""
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("nginx is not installed")
        home = self._home / "nginx"
        home.mkdir()
        named = [part for address in self.net.addresses.values() for part in ("--host", address)]
        ports = ("--workers", str(len(_WORKERS)), "--port", str(_PORT))
        where = ("--address", self.net.address, "--https-port", "80")
        site = CliRunner().invoke(cli, ["nginx", *named, *ports, *where], obj=open_deployment).stdout
        assert re.findall(r"^    server (\S+) max_fails=0;$", site, re.MULTILINE) == [
            f"{address}:{port}" for port in _WORKERS for address in self.net.addresses.values()
        ]
        site = re.sub(r"^    ssl_.*\n", "", site, flags=re.MULTILINE)
        site = site.replace(f"listen {self.net.address}:80 ssl", f"listen {self.net.address}:80")
        (home / "site.conf").write_text(site)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
        (home / "nginx.conf").write_text(
            f"user root;\ndaemon off;\npid {home}/nginx.pid;\nworker_processes 1;\n"
            f"include {_ROOT}/deploy/nginx/main.conf;\nevents {{ worker_connections 512; }}\n"
            f"http {{\n    access_log off;\n    {temporary}\n    include {home}/site.conf;\n}}\n"
        )
        with self.net.inside():
            process = subprocess.Popen(
                [program, "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log"]
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)

    def client(self) -> ClientSession:
        """A client beside nginx, which reaches each worker by itself too."""
        return ClientSession(
            connector=TCPConnector(socket_factory=self.net.socket, force_close=True),
            timeout=ClientTimeout(total=10),
        )

    def workers(self, host: str) -> list[str]:
        """Where to reach the workers of a host, one by one."""
        return [f"http://{self.net.addresses[host]}:{port}" for port in _WORKERS]

    async def ready(self, session: ClientSession, *hosts: str) -> None:
        """Wait until all workers of the hosts let devices in and hear each other."""
        for url in [url for host in hosts for url in self.workers(host)]:
            async with asyncio.timeout(60):
                while not await _ready(session, url):  # noqa: ASYNC110  # it is in another process
                    await asyncio.sleep(0.05)

    async def gauge(self, session: ClientSession, url: str, name: str) -> float:
        """Read a metric of a worker."""
        async with session.get(f"{url}/metrics", headers=_OPERATOR) as response:
            text = await response.text()
        [value] = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return float(value)


async def _ready(session: ClientSession, url: str) -> bool:
    with suppress(ClientError, TimeoutError, OSError):
        async with session.get(f"{url}/readyz", headers=_OPERATOR) as response:
            return response.status == 200 and (await response.json())["status"] == "ready"
    return False


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Everything started, the workers maybe not ready yet."""
    with ExitStack() as stack:
        net = stack.enter_context(network(2))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidemark-hosts-")))
        home.chmod(0o711)  # the servers' accounts have to pass through it
        with net.inside():
            database = stack.enter_context(cluster("db", net.address, net.everybody))
            migrate_for_roles(database.dsn)
            for tenant in TENANTS:
                ensure_tenant(database.dsn, tenant)
            account = account_for(home / "redis")
            binary = redis_binary(home, account)
            node = RedisNode(binary, account, home / "redis", net.address, 6379, requirepass=_REDIS_PASSWORD)
            stack.callback(node.kill)
            node.start()
        password = _REDIS_PASSWORD.replace(" ", "%20")
        made = Hosts(net, database.dsn, f"redis://:{password}@{node.address}/0", home)
        for host in net.addresses:
            stack.enter_context(made.serving(host))
        stack.enter_context(made.nginx())
        yield made


class Watcher:
    """A device that follows its tenant at one address; ``held`` are the versions it was shown, by record."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.held: dict[str, int] = {}
        self.seq = 0
        self._moved = asyncio.Condition()

    async def run(self, session: ClientSession) -> None:
        """Follow until cancelled; a connection that ends is made again where the last page ended."""
        cursor = None
        while True:
            with suppress(Closed, ClientError, TimeoutError, OSError):
                async with connected(self.url, session, signed=token(TENANTS[0], self.name)) as device:
                    await device.send({"type": "subscribe", "id": "s", "cursor": cursor})
                    while True:
                        page = await device.receive()
                        assert page["type"] == "changes", page
                        cursor = page["cursor"]
                        await self._take(page["changes"])
            await asyncio.sleep(0.05)

    async def _take(self, changes: list[Json]) -> None:
        for change in changes:
            assert change["seq"] > self.seq
            self.seq = change["seq"]
            assert change["version"] > self.held.get(change["id"], 0)
            self.held[change["id"]] = change["version"]
        async with self._moved:
            self._moved.notify_all()

    async def holds(self, versions: Mapping[str, int]) -> None:
        """Wait until it was shown these versions of records, or later ones."""
        async with asyncio.timeout(60), self._moved:
            while any(self.held.get(name, 0) < version for name, version in versions.items()):
                await self._moved.wait()


def _settled(editors: list[Editor]) -> dict[str, int]:
    """What was acknowledged to the watchers' tenant: versions by record."""
    return {
        f"record of {editor.name}": len(editor.acknowledged)
        for editor in editors
        if editor.tenant == TENANTS[0]
    }


async def _all_progressed(editors: list[Editor], progress: asyncio.Condition) -> None:
    """Wait until each device has had more answered."""
    before = [len(editor.acknowledged) for editor in editors]
    async with asyncio.timeout(60), progress:
        while not all(len(one.acknowledged) > count for one, count in zip(editors, before, strict=True)):
            await progress.wait()


async def test_network_partition_host_cut_off_loses_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.ws_device.PATIENCE_S", 3.0)  # a device gives up what has fallen silent
    progress = asyncio.Condition()
    editors = editors_of(DEVICES, progress)
    everywhere = [url for host in hosts.net.addresses for url in hosts.workers(host)]
    watchers = [Watcher(f"watcher-{number}", url) for number, url in enumerate(everywhere)]
    async with hosts.client() as session:
        await hosts.ready(session, "host1", "host2")
        following = [asyncio.create_task(watcher.run(session)) for watcher in watchers]
        async with asyncio.TaskGroup() as group:
            for editor in editors:
                group.create_task(editor.run(hosts, session))
            await progressed(editors, progress, ACKS)
            for host in hosts.net.addresses:
                open_there = [await hosts.gauge(session, url, _OPEN) for url in hosts.workers(host)]
                assert sum(open_there) > len(open_there), "nginx sends devices to both hosts"
            for watcher in watchers:
                await watcher.holds(_settled(editors))

            hosts.net.cut("host2")
            await _all_progressed(editors, progress)
            for watcher in watchers[: len(_WORKERS)]:
                await watcher.holds(_settled(editors))
            hosts.net.heal("host2")
            await hosts.ready(session, "host2")
            await _all_progressed(editors, progress)
            for editor in editors:
                editor.stopping = True
        assert [editor.wrong for editor in editors if editor.wrong] == []
        with hosts.net.inside():
            audit(hosts.dsn, editors)
        for watcher in watchers:
            await watcher.holds(_settled(editors))
            assert watcher.held == _settled(editors)
        assert not any(task.done() for task in following)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for url in everywhere:
            async with asyncio.timeout(30):
                # What the cut left behind goes too; it is in another process.
                for name in ("tidemark_queued_messages", _OPEN):
                    while await hosts.gauge(session, url, name):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
