"""The server that is attacked: of this version or of one before, and with nginx in front of it or without."""

from __future__ import annotations

import asyncio
import secrets
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from bench.abuse.frames import Bus
from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment
from bench.harness.load_run import Target
from bench.harness.nginx import Nginx, certify, nginx_program, printed
from bench.harness.product import HERE, Version, checked_out, variables
from bench.harness.server import Server, end, free_ports
from bench.harness.stage import Options, remote
from storage.postgres.blocking import connected

_STOP_S: Final = 5.0
_CUT: Final = (
    "import sys; from datetime import datetime as d, timezone as z;"
    "from storage.postgres.partitions import ensure_partitions; print(flush=True); sys.stdin.readline();"
    "ensure_partitions(sys.argv[1], d.now(z.utc).date(), int(sys.argv[2]))"
)
#: Days that a server gives partitions when it starts.
_DAYS_AHEAD: Final = 14


class Site(msgspec.Struct):
    """Where others and attackers go: ``target`` past nginx, ``way`` through it where there is one.

    ``worker`` is None of a server that was not started here, ``redis_url`` empty.
    """

    target: Target
    way: Target
    dsn: str
    root: Path
    before: bool = False
    certificate: Path | None = None
    redis_url: str = ""
    worker: Worker | None = None
    cuts: int = 0

    @asynccontextmanager
    async def cutting(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Yield a call that makes the next day's partitions at once, as the daily job does.

        It raises BenchError.
        """
        self.cuts += 1
        arguments = _CUT, self.dsn, str(_DAYS_AHEAD + self.cuts)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", *arguments, cwd=self.root, stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()

        async def cut() -> None:
            _, _ = await process.communicate(b"\n")
            if process.returncode:
                raise BenchError("the partitions were not cut: the last words of the command are above")

        try:
            yield cut
        finally:
            await end(process, _STOP_S)

    def bus(self, tenant: str, devices: list[str]) -> Bus | None:
        """Return what forged messages to devices need, None where Redis is not this site's own."""
        if not self.redis_url:
            return None
        with connected(self.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_database()::text, epoch::text FROM cluster_state")
            ((database, epoch),) = cursor.fetchall()
            cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (tenant,))
            ((tenant_id,),) = cursor.fetchall()
        victims = [(int(tenant_id), device) for device in devices]
        return Bus(self.redis_url, f"tidemark:{database}:{epoch}", victims)


class Worker:
    """A server of our own, started anew for each attack, and where it is busy with what one left."""

    def __init__(self, version: Version, port: int, environment: Mapping[str, str]) -> None:
        self._version = version
        self._port = port
        self._environment = environment
        self._bounds: Mapping[str, str] = {}
        self._server: Server | None = None
        self.logged: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Wait for the first ``renew``."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the server if it runs."""
        await self.stop()

    async def stop(self) -> None:
        """Stop the server if it runs."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
            self.logged.update(server.logged)

    async def renew(self, bounds: Mapping[str, int] | None = None) -> None:
        """Stop the server and start it anew, with other bounds of tenants where they are given."""
        await self.stop()
        if bounds is not None:
            self._bounds = {
                f"TIDEMARK__TENANT_LIMITS__{name.upper()}": str(bound) for name, bound in bounds.items()
            }
        self._server = self._version.server({**self._environment, **self._bounds}, port=self._port)
        await self._server.start()


@asynccontextmanager
async def site_of(
    environment: Environment, options: Options, tenant: str, commit: str | None = None
) -> AsyncIterator[Site]:
    """Prepare a server of this version, or of a commit, with all that it needs to be started.

    Raises BenchError, StoreError.
    """
    name = "product" if commit is None else "before"
    home = environment.home / name
    home.mkdir()
    version = HERE if commit is None else await asyncio.to_thread(checked_out, commit, home / "tree")
    root, dsn = version.root, await version.database(environment, name)
    secret = secrets.token_urlsafe(48)
    port = free_ports(2)
    target = Target(port=port, secret=secret, tenants=[tenant], audience=options.settings.auth.audience)
    given = variables(environment, dsn, secret, options.config)
    # The limits of a server as it is delivered are part of what is measured.
    chosen = {name: value for name, value in given.items() if "__LIMITS__" not in name}
    chosen |= {"TIDEMARK__SERVER__DRAIN_S": "1", "TIDEMARK__DATA__DIR": str(home)}
    chosen = version.known(chosen)  # for the site of nginx, too
    async with AsyncExitStack() as stack:
        worker = Worker(version, port, chosen)
        await stack.enter_async_context(worker)
        site = Site(
            target, target, dsn, root, commit is not None, redis_url=environment.redis_url, worker=worker
        )
        if options.through_nginx:
            site.certificate = certify(home)
            site.way = msgspec.structs.replace(target, port=port + 1)
            nginx = _nginx(root, chosen, site.certificate, target, port + 1)
            await stack.enter_async_context(nginx)
        yield site


@asynccontextmanager
async def site_at(options: Options, url: str) -> AsyncIterator[Site]:
    """Yield a server that runs already. Raises BenchError, EmbeddedError, StoreError."""
    with remote(msgspec.structs.replace(options, tenants=1), url) as (target, dsn):
        yield Site(target, target, dsn, ROOT)


@asynccontextmanager
async def _nginx(
    root: Path, environment: Mapping[str, str], certificate: Path, target: Target, port: int
) -> AsyncIterator[None]:
    program = nginx_program()
    if program is None:
        raise BenchError("nginx is not installed: apt-get install nginx-light, or leave --through-nginx out")
    site = await printed(root, environment, certificate, target.port, 1, port)
    nginx = Nginx(program, certificate.parent, site, port, connections=8192)
    await nginx.start()
    try:
        yield
    finally:
        await nginx.stop()
