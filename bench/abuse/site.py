"""The server that is attacked: of this version or of one before, and with nginx in front of it or without."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import tomllib
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
from bench.harness.server import end, free_ports, started, variables
from bench.harness.stage import Options, remote
from compose.configuration import VARIABLE
from storage.postgres.blocking import connected

#: How long a command of another version may take.
_COMMAND_S: Final = 60.0
_STOP_S: Final = 5.0
_MIGRATE: Final = "import sys; from storage.postgres.migrate import migrate; migrate(sys.argv[1])"
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
        """Give what cuts the next day off the partitions at once, as the daily job does.

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

    def __init__(self, root: Path, port: int, environment: Mapping[str, str], *, before: bool) -> None:
        self._root = root
        self._config = root / "config.toml" if before else None
        self._port = port
        self._environment = environment
        self._bounds: Mapping[str, str] = {}
        self._running = AsyncExitStack()
        self.logged: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Wait for the first ``renew``."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the server if it runs."""
        await self.stop()

    async def stop(self) -> None:
        """Stop the server if it runs."""
        await self._running.aclose()

    async def renew(self, bounds: Mapping[str, int] | None = None) -> None:
        """Stop the server and start it anew, with other bounds of tenants where they are given."""
        await self.stop()
        if bounds is not None:
            self._bounds = {
                f"TIDEMARK__TENANT_LIMITS__{name.upper()}": str(bound) for name, bound in bounds.items()
            }
        command = [str(self._root / "run.py"), "serve", "--port", str(self._port), "--workers", "1"]
        environment = {**self._environment, **self._bounds}
        if self._config is not None:  # which may know of no bounds
            environment = known(self._config, environment)
        server = await self._running.enter_async_context(started(command, environment, root=self._root))
        self._running.callback(lambda: self.logged.update(server.logged))


@asynccontextmanager
async def site_of(
    environment: Environment, options: Options, tenant: str, commit: str | None = None
) -> AsyncIterator[Site]:
    """Have what a server of this version, or of that at ``commit``, needs to be started.

    Raises BenchError, StoreError.
    """
    name = "product" if commit is None else "before"
    home = environment.home / name
    home.mkdir()
    root = ROOT if commit is None else await asyncio.to_thread(_checked_out, commit, home / "tree")
    dsn = environment.database(name, migrated=commit is None)
    if commit is not None:
        await _python(root, _MIGRATE, dsn)
    secret = secrets.token_urlsafe(48)
    port = free_ports(2)
    target = Target(port=port, secret=secret, tenants=[tenant], audience=options.settings.auth.audience)
    given = variables(environment, dsn, secret, options.config)
    # The limits of a server as it is delivered are part of what is measured.
    chosen = {name: value for name, value in given.items() if "__LIMITS__" not in name}
    chosen |= {"TIDEMARK__SERVER__DRAIN_S": "1", "TIDEMARK__DATA__DIR": str(home)}
    if commit is not None:
        chosen = known(root / "config.toml", chosen)  # for the site of nginx, too
    async with AsyncExitStack() as stack:
        worker = Worker(root, port, chosen, before=commit is not None)
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
    """Give a server that runs already. Raises BenchError, EmbeddedError, StoreError."""
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


def known(config: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what a version's ``config.toml`` does not have: it refuses settings that it does not know."""
    sections = tomllib.loads(config.read_text("utf-8"))
    known = {f"TIDEMARK__{section}__{name}".upper() for section in sections for name in sections[section]}
    return {name: value for name, value in environment.items() if name in known} | {VARIABLE: str(config)}


def _checked_out(commit: str, tree: Path) -> Path:
    """Write the files of a commit into a directory. Raises BenchError."""
    tree.mkdir()
    archive = subprocess.run(
        ["/usr/bin/env", "git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        raise BenchError(f"--before {commit}: {archive.stderr.decode().strip()}")
    subprocess.run(["/usr/bin/env", "tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


async def _python(root: Path, code: str, *arguments: str) -> None:
    """Run a few lines in a version's directory, so that they import its modules. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *arguments, cwd=root)
    try:
        async with asyncio.timeout(_COMMAND_S):
            status = await process.wait()
    except TimeoutError:
        await end(process, 1.0)
        raise BenchError(f"a command in {root} does not end after {_COMMAND_S:.0f} s") from None
    if status:
        raise BenchError(f"a command in {root} failed: its last words are above")
