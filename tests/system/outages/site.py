"""A host as the book deploys it: PostgreSQL, Redis, Tidemark, Prometheus with our rules, and devices."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from secrets import token_bytes
from typing import Final, NamedTuple

from aiohttp import ClientSession, TCPConnector

from bench.harness.clusters import (
    PASSWORD,
    USER,
    Cluster,
    cluster_in,
    free_port,
    role_variables,
)
from compose.configuration import VARIABLE
from storage.embedded.account import account_for
from tests.deploy.own_prometheus import Prometheus, prometheus
from tests.deploy.promtool import ROOT
from tests.harness.admin import ensure_tenant
from tests.harness.scratch import scratch
from tests.harness.servers.redis_nodes import RedisNode, system_redis
from tests.harness.services import execute
from tests.harness.small_disk import small_disk
from tests.harness.supervised import Supervised
from tests.harness.ws_device import SECRET, token
from tests.system.outages.devices import TENANT, Fleet
from tests.system.outages.edge import Edge, edge
from tests.system.outages.lasting import assert_fires
from tests.system.outages.roles import OWNER, plain_owner, superuser_variables
from tests.system.outages.services import PostgresUnit, RedisUnit, ServerUnit
from tests.system.outages.stand_ins import Unit, stand_ins

#: The longest that a block of the page may take.
_BLOCK_S: Final = 180
_PATIENCE_S: Final = 60
_LOOK_S: Final = 0.1
_REQUEST_S: Final = 0.5
_REFUSALS: Final = 3
_SITE: Final = ROOT / "deploy" / "systemd" / "config.toml"

Say = Callable[[str], None]


class Layout(NamedTuple):
    """How a site differs from others.

    Args:
        watched: Whether a Prometheus scrapes it. Without one, promtool judges a page of its metrics.
        workers: Of the server.
        devices: How many work.
        settings: Variables of the server and of commands, with the places that the page names.
        sealed: Whether it has a master key.
        disk_bytes: The size of PostgreSQL's own disk, 0 for none of its own.
        archived: Whether PostgreSQL archives its WAL, for restores.
        standby: Whether PostgreSQL has a standby.
        synchronous: Whether the standby confirms each commit.
        own_checkout: Whether the server runs from a copy of this checkout, which names its release before.
        edge: Whether devices come by TLS, through nginx.
        scrape: The time between two scrapes, and the longest that one may take.
    """

    watched: bool = True
    workers: int = 1
    devices: int = 3
    settings: Mapping[str, str] = {}
    sealed: bool = False
    disk_bytes: int = 0
    archived: bool = False
    standby: bool = False
    synchronous: bool = True
    own_checkout: bool = False
    edge: bool = False
    scrape: str = "200ms"


class Site:
    """A site that runs.

    Its files are those that the book names: ``/etc/tidemark`` is ``home / "etc"``. ``dsn`` is the owner's,
    who is no superuser where PostgreSQL is the site's own.
    """

    def __init__(self, home: Path, dsn: str, layout: Layout, say: Say) -> None:
        self.home = home
        self.dsn = dsn
        self.say = say
        self.layout = layout
        self.etc = home / "etc"
        self.checkout = ROOT
        self.units: dict[str, Unit] = {}
        self.replaced: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.postgres: PostgresUnit
        self.standby: Cluster
        self.redis: RedisUnit
        self.server: Supervised
        self.edge: Edge
        self.fleet: Fleet
        self.http: ClientSession
        self.stack: AsyncExitStack
        self.prometheus: Prometheus

    @property
    def url(self) -> str:
        """Where probes go."""
        return self.server.url

    @property
    def front(self) -> str:
        """Where devices go."""
        return self.edge.url if self.layout.edge else self.url

    async def readiness(self) -> tuple[int, str]:
        """Ask ``/readyz``. Raises ClientError while nobody listens."""
        async with self.http.get(f"{self.url}/readyz") as answer:
            return answer.status, await answer.text()

    async def until_readiness(self, status: int, words: str = "") -> str:
        """Wait until ``/readyz`` answers so, and give its body."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                with suppress(OSError):  # ClientError of a connection that is refused is one
                    seen, body = await self.readiness()
                    if seen == status and re.search(words, body):
                        return body
                await asyncio.sleep(_LOOK_S)

    async def ready(self) -> None:
        """Wait until the server takes devices and needs nothing."""
        await self.until_readiness(200, '"status": *"ready"')

    async def refusals(self, path: str) -> str:
        """Ask as a device until some are refused: of one alone a counter is not seen to grow.

        Returns:
            The last answer.
        """
        headers = {"Authorization": f"Bearer {token(TENANT, 'tablet')}"}
        refused, body = 0, ""
        async with asyncio.timeout(_PATIENCE_S):
            while refused < _REFUSALS:
                async with self.http.get(self.url + path, headers=headers) as answer:
                    refused += answer.status == 503
                    body = await answer.text()
                await asyncio.sleep(_REQUEST_S)
        return body

    async def alert(self, name: str) -> None:
        """Wait until the product's rule of that name finds something, by a Prometheus of the site.

        Prometheus has the alert as pending from then on, and would send it after the time of ``for``.
        """
        if not self.layout.watched:
            async with self.http.get(f"{self.url}/metrics") as answer:
                page = await answer.text()
            await asyncio.to_thread(assert_fires, name, page, self.home)
            self.say(f"{name}: sent, if the metrics stay as they are (promtool)")
            return
        rule = (await self.prometheus.alerts())[name]
        await self.prometheus.until(rule["query"])
        value = (await self.prometheus.query(rule["query"]))[0]
        await self.prometheus.until(f'ALERTS{{alertname="{name}"}}')
        labels = ", ".join(f"{key}={text}" for key, text in rule["labels"].items())
        waited = (
            f"sent after {rule['duration']:.0f} s, which were not waited for" if rule["duration"] else "sent"
        )
        self.say(f"{name}: {value:g} ({labels}; {waited})")

    async def run(self, block: str, *, strict: bool) -> str:
        """Run a block of the page as it stands, and give all that it printed.

        Args:
            block: Lines of shell.
            strict: Whether each command has to succeed. Those that find a fault tell it by their status.
        """
        path = self.home / "block.sh"
        path.write_text(self.placed(block), "utf-8")
        flags = ["-v", *(("-e", "-o", "pipefail") if strict else ())]
        process = await asyncio.create_subprocess_exec(
            *("/bin/bash", *flags, str(path)),
            cwd=self.checkout,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_BLOCK_S):
                said, _ = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        text = said.decode()
        self.say(text)
        assert not (strict and process.returncode), f"a command of the page failed:\n{text}"
        return text

    def git(self, *arguments: str) -> str:
        """Run git in the checkout of the server, and give what it printed."""
        command = ["/usr/bin/env", "git", "-c", "user.name=Ana", "-c", "user.email=ana@example.org"]
        command += ["-C", str(self.checkout), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> None:
        """Make a version of what is in the checkout of the server."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def placed(self, text: str) -> str:
        """A text of the page with the places and the ports of this site."""
        for named, ours in self.replaced.items():
            text = text.replace(named, ours)
        return text


def _configure(site: Site, redis: RedisNode) -> None:
    """Write the settings that ``deploy/systemd`` has, and the files of secrets that they name."""
    site.etc.mkdir()
    variables = role_variables(site.dsn)
    secrets = {
        "serving.dsn": variables["TIDEMARK__POSTGRES__DSN"],
        "owner.dsn": variables["TIDEMARK__POSTGRES__OWNER_DSN"],
        "jobs.dsn": variables["TIDEMARK__POSTGRES__JOBS_DSN"],
        "redis.url": f"redis://{redis.address}",
        "auth.secret": SECRET.decode(),
    }
    if site.layout.sealed:
        secrets["master.key"] = b64encode(token_bytes(32)).decode()
    text = site.placed(_SITE.read_text("utf-8"))
    served = f"[server]\nport = {site.server.port}\n"
    text = text.replace("[server]\n", served).replace("workers = 1 ", f"workers = {site.layout.workers} ")
    if site.layout.sealed:
        text += f'[sealing]\nmaster_key_file = "{site.etc / "master.key"}"\n'
    for name, content in {"config.toml": text, **secrets}.items():
        path = site.etc / name
        path.write_text(content, "utf-8")
        path.chmod(0o600)


@contextmanager
def _database(home: Path, layout: Layout, dsn: str | None) -> Iterator[tuple[str, PostgresUnit | None]]:
    if dsn is not None:
        yield dsn, None
        return
    with ExitStack() as stack:
        place = home / "disk"
        if layout.disk_bytes:
            stack.enter_context(small_disk(place, f"size={layout.disk_bytes}", "mode=0755"))
        else:
            place.mkdir()
        cluster = stack.enter_context(cluster_in(place / "postgresql", "north"))
        postgres = PostgresUnit(cluster, home)
        if layout.archived:
            postgres.archive()
        yield plain_owner(cluster), postgres


@contextmanager
def _standby(primary: Cluster, *, synchronous: bool) -> Iterator[Cluster]:
    """Run a standby, without which the primary confirms no commit if it is synchronous."""
    copy = primary.copy("south")
    if synchronous:
        setting = "ALTER SYSTEM SET synchronous_standby_names = 'south'"
        execute(primary.dsn, setting, "SELECT pg_reload_conf()")
    copy.start()
    try:
        yield copy
    finally:
        copy.stop()


def _own_checkout(site: Site) -> None:
    """Copy what serves into a repository of its own, which names its own commit as the release before."""
    site.checkout = site.server.checkout = site.home / "opt"
    unwanted = shutil.ignore_patterns("__pycache__")
    for room in ("bench", "compose", "engine", "handlers", "storage"):
        shutil.copytree(ROOT / room, site.checkout / room, ignore=unwanted)
    for name in ("run.py", "config.toml", "pyproject.toml"):
        shutil.copy2(ROOT / name, site.checkout)
    (site.checkout / ".gitignore").write_text("__pycache__\n", "utf-8")
    site.git("init", "--quiet")
    site.commit("The version before")
    before = site.git("rev-parse", "HEAD")
    (site.checkout / "deploy").mkdir()
    (site.checkout / "deploy" / "previous-release.toml").write_text(f'commit = "{before}"\n', "utf-8")
    site.commit("Name the release before")


@asynccontextmanager
async def running(layout: Layout, say: Say = print, dsn: str | None = None) -> AsyncIterator[Site]:
    """Run a site with devices at work.

    Args:
        layout: What it is like.
        say: Takes what is to be shown.
        dsn: A migrated database, which is not to be stopped; None makes a PostgreSQL of the site's own.
    """
    superuser: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        home = stack.enter_context(scratch("tidemark-outage-"))
        owner, postgres = stack.enter_context(_database(home, layout, dsn))
        site = Site(home, owner, layout, say)
        if postgres is not None:
            site.postgres = site.units["postgresql"] = postgres
            site.replaced |= postgres.places
            clusters = [postgres.cluster]
            if layout.standby:
                standby = _standby(postgres.cluster, synchronous=layout.synchronous)
                site.standby = stack.enter_context(standby)
                clusters.append(site.standby)
                hosts = f"{postgres.cluster.address},{site.standby.address}"
                site.dsn = f"postgresql://{OWNER}:{PASSWORD}@{hosts}/{USER}?target_session_attrs=read-write"
            superuser = superuser_variables(*clusters)
        account = account_for(home / "redis")
        node = RedisNode(system_redis(), account, home / "redis", "127.0.0.1", free_port())
        stack.callback(node.kill)
        node.start()
        site.redis = site.units["redis-server"] = RedisUnit(node, home / "redis")
        site.replaced["/etc/tidemark"] = str(site.etc)
        settings = {name: site.placed(text) for name, text in layout.settings.items()}
        site.server = Supervised(layout.workers, {VARIABLE: str(site.etc / "config.toml"), **settings})
        site.units["tidemark"] = ServerUnit(site.server)
        if layout.own_checkout:
            _own_checkout(site)
        site.replaced |= {
            "/opt/tidemark": str(site.checkout),
            "/var/lib/tidemark": str(home / "lib"),
            **{
                f"127.0.0.1:{8080 + number}": f"127.0.0.1:{site.server.port + number}"
                for number in range(layout.workers + 1)
            },
            ".venv/bin/python": sys.executable,
        }
        _configure(site, node)
        ensure_tenant(owner, TENANT)
        programs = str(await stack.enter_async_context(stand_ins(home, site.units, superuser)))
        if postgres is not None:
            programs += f":{postgres.binaries}"
        site.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("TIDEMARK_")},
            **settings,
            VARIABLE: str(site.etc / "config.toml"),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        site.stack = stack
        await _begin(site, stack)
        yield site


async def _begin(site: Site, stack: AsyncExitStack) -> None:
    """Start the server, Prometheus and the devices."""
    site.http = await stack.enter_async_context(ClientSession())
    # It begins to scrape five seconds after its start, whatever the interval is.
    target = site.server.url.removeprefix("http://")
    folder = site.home / "prometheus"
    if site.layout.watched:
        folder.mkdir()
        watching = prometheus(folder, target, token(), site.layout.scrape)
        site.prometheus = await stack.enter_async_context(watching)
    await site.server.launch()
    stack.push_async_callback(site.server.stop)
    await site.server.until("listening", site.layout.workers)
    await site.until_readiness(200)
    (site.home / "devices").mkdir()
    session = site.http
    if site.layout.edge:
        site.edge = edge(site.home, site.server.port, site.etc / "config.toml")
        site.units |= {"nginx": site.edge, "certbot": site.edge.certificates}
        site.replaced["127.0.0.1:443"] = f"127.0.0.1:{site.edge.port}"
        await site.edge.start()
        stack.push_async_callback(site.edge.stop)
        trusting = TCPConnector(ssl=site.edge.certificates.trusting)
        session = await stack.enter_async_context(ClientSession(connector=trusting))
    site.fleet = Fleet(site.home / "devices", site.front, site.layout.devices, session)
    await stack.enter_async_context(site.fleet.at_work())
    await site.fleet.progress()
    if site.layout.watched:
        # A counter is known to have grown if its value before is known.
        await site.prometheus.until("up == 1")
    site.say(
        f"{site.layout.devices} devices edit at {site.front}, {site.fleet.acknowledged} edits acknowledged"
    )
