"""The blocks of docs/scaling.md by which a cell is made, moved, renamed and removed, while devices work.

Two PostgreSQL servers, each with a superuser and without a right for everybody, as deployments have them. A
second server of the cell stands for a host that was forgotten: nobody stops it before the move.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from psycopg2.extensions import make_dsn

from bench.client.crew import DOMAINS, Crew, Setting, crew
from bench.faults.check import check
from bench.faults.device import FaultsDevice
from bench.faults.history import Event, History, Refused
from bench.faults.tables import Tables, read_tables
from bench.harness.clusters import PASSWORD, USER, Cluster
from bench.harness.load_run import Target
from bench.harness.server import Server, free_ports
from compose.configuration import VARIABLE
from storage.embedded.account import account_for
from storage.embedded.binaries import postgres_binaries
from storage.embedded.servers import Services
from storage.postgres.cell.dsn import with_schema
from tests.book.blocks import ROOT, read
from tests.harness.scratch import scratch
from tests.harness.services import cluster, execute, rows
from tests.harness.uploads.tus_uploader import Uploader, file_path, photo

PAGE: Final = "docs/scaling.md"
TENANTS: Final = ("acme", "globex")
DEVICES: Final = 4
#: A device that is refused during a pause tries again later and later.
_PATIENCE_S: Final = 180
_MARK: Final = "\x1e"
#: Servers of the page's unit; everything else that a block does is real.
_BEGIN: Final = """\
set -eu -o pipefail
trap '[ -z "$server" ] || kill "$server"' EXIT
server=
systemctl() {{
    case $1 in
    start | enable)
        rm -f {home}/said
        mkfifo {home}/said
        {python} run.py serve --workers 1 >{home}/said 2>>{home}/log &
        server=$!
        exec 9<{home}/said
        while read -r line <&9; do case $line in *'"listening"'*) break ;; esac; done
        cat <&9 >>{home}/log &
        ;;
    stop | disable)
        kill "$server"
        wait "$server" || :
        server=
        ;;
    esac
}}
"""


class Shell:
    """One shell for all blocks, as the page says. It ends at the first command that fails."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, text: str) -> str:
        """Run a block. Returns what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{text}\nprintf '\\036'\n".encode())
        printed = b""
        while not printed.endswith(_MARK.encode()):
            part = await self._process.stdout.read(65536)
            assert part, f"{text}\nended with:\n{printed.decode()}"
            printed += part
        return printed.decode().removesuffix(_MARK)


@asynccontextmanager
async def _shell(home: Path) -> AsyncIterator[Shell]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMARK_", "PG"))}
    binaries = postgres_binaries(home, account_for(home), None)
    process = await asyncio.create_subprocess_exec(
        "/bin/bash",
        cwd=ROOT,
        env=bare | {"PATH": f"{binaries}:{bare['PATH']}", "PGPASSWORD": PASSWORD},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    shell = Shell(process)
    try:
        await shell.run(_BEGIN.format(home=home, python=sys.executable))
        yield shell
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


class Site:
    """The folders and ports that the page's names stand for, and the devices of the cell."""

    def __init__(self, home: Path, old: Cluster, new: Cluster) -> None:
        self.home = home
        self.port = free_ports(2)
        self.cell = "north"
        self.history = History()
        self._replaced = (
            ("/etc/tidemark", f"{home}/etc"),
            ("/var/lib/tidemark", f"{home}/lib"),
            ("/var/backups", str(home)),
            ("/etc/systemd/system", str(home)),
            ("PGHOST=db2", f"PGHOST=127.0.0.1 PGPORT={new.port}"),
            ("PGPORT=5432 PGUSER=postgres", f"PGPORT={old.port} PGUSER={USER}"),
            ("port = 8180", f"port = {self.port}"),
            ("127.0.0.1:8180", f"127.0.0.1:{self.port}"),
            ("-g tidemark ", ""),
            ("runuser -u tidemark -- .venv/bin/python", sys.executable),
        )

    def blocks(self, heading: str) -> Iterator[str]:
        """Return the blocks of a section, written for this machine."""
        for block in read(PAGE):
            if block.heading == heading and "run.py bench" not in block.text:
                text = block.text
                for written, here in self._replaced:
                    text = text.replace(written, here)
                yield text

    @asynccontextmanager
    async def forgotten(self) -> AsyncIterator[None]:
        """Run another server of the cell, with the settings of now. In the end it is killed."""
        command = [str(ROOT / "run.py"), "serve", "--workers", "1", "--port", str(self.port + 1)]
        server = Server(command, {VARIABLE: str(self.home / "etc" / "north" / "config.toml")})
        async with server:
            yield
            await server.kill()

    def token(self, tenant: str, device: str) -> str:
        """Sign a token of the cell."""
        secret = (self.home / "etc" / "north" / "auth.secret").read_text()
        audience = f"tidemark/{self.cell}"
        return Target(port=0, secret=secret, tenants=TENANTS, audience=audience).token(tenant, device)

    def settings(self) -> Iterator[tuple[str, Setting]]:
        """Return the devices of both servers."""
        for index in range(DEVICES):
            tenant = TENANTS[index % len(TENANTS)]
            url = f"http://127.0.0.1:{self.port + index // len(TENANTS) % 2}"
            make = partial(FaultsDevice, self.history, tenant, None)
            sign = partial(self.token, tenant)
            yield (
                f"phone-{index}",
                Setting(url, sign, self.home, 1, DOMAINS, 4, 600.0, tenant=tenant, make=make),
            )

    def tables(self, at: Cluster) -> Tables:
        """Read the tables of the cell."""
        return read_tables(with_schema(at.dsn, self.cell), TENANTS)


async def _goes_on(working: Crew) -> None:
    """Wait until each device was told of edits that it makes from now on."""
    due = [(member, member.made + 5) for member in working.members]
    async with asyncio.timeout(_PATIENCE_S):
        while not all(len(member.settled) >= made for member, made in due):  # noqa: ASYNC110  # of every device
            await asyncio.sleep(0.05)


def _but_expired(events: list[Event]) -> list[Event]:
    """A renewed epoch has cursors expire, which the checker takes for a fault."""
    return [one for one in events if not (isinstance(one, Refused) and one.code == "cursor_expired")]


@pytest.mark.slow
async def test_cell_is_made_moved_renamed_and_removed_by_the_page(services: Services) -> None:
    with scratch("tidemark-cell-") as home, cluster("old") as old, cluster("new") as new:
        for name in ("etc", "lib"):
            (home / name).mkdir()
        (home / "etc" / "redis.url").write_text(services.redis_url)
        execute(old.dsn, "REVOKE ALL ON DATABASE tidemark FROM PUBLIC")
        execute(make_dsn(new.dsn, dbname="postgres"), "DROP DATABASE tidemark")
        site = Site(home, old, new)
        async with _shell(home) as shell:
            (beside,) = site.blocks("### On another database server")
            await shell.run(f"(export PGUSER={USER}\n{beside})")
            (made,) = site.blocks("### Make a cell")
            said = await shell.run(f"{made}{sys.executable} run.py tenant add globex")
            assert "fault" not in said, said
            await _worked(shell, site, new)
            (removing,) = site.blocks("### Remove a cell")
            await shell.run(removing)
        for one in (old, new):
            assert rows(one.dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^north_'") == []
            assert rows(one.dsn, "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(north|harbor)'") == []
        assert list((home / "lib").iterdir()) == [home / "lib" / "cells"]


async def _worked(shell: Shell, site: Site, new: Cluster) -> None:
    """Move and rename the cell, while its devices work."""
    before, moving, behind, cleaning = site.blocks("### Move a cell")
    (renaming,) = site.blocks("### Rename a cell")
    file = photo(3000)
    async with crew(dict(site.settings())) as working, asyncio.TaskGroup() as group:

        def asking() -> Uploader:
            return Uploader(working.session, f"http://127.0.0.1:{site.port}", site.token("acme", "phone-0"))

        async with site.forgotten():
            tasks = [group.create_task(member.work(float("inf"), iter(()))) for member in working.members]
            await _goes_on(working)
            path = await asking().begun(len(file), file)
            await shell.run(before)
            await shell.run(moving)
        async with site.forgotten():
            await _goes_on(working)
            said = await shell.run(behind)
            assert "fault" not in said, said
            await shell.run(cleaning)
        site.cell = "harbor"
        said = await shell.run(renaming)
        assert "fault" not in said, said
        async with site.forgotten():
            await _goes_on(working)
            for task in tasks:
                task.cancel()
            assert await working.converge(_PATIENCE_S)
        assert check(_but_expired(site.history.events), site.tables(new), whole=False) == []
        assert (await asking().ask("GET", file_path(path), {})).body == file
