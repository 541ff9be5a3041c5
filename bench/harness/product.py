"""The product as a server of a benchmark: of this version, or of a commit before it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.harness import sealed
from bench.harness.child import ROOT
from bench.harness.clusters import role_variables
from bench.harness.environment import BenchError, Environment
from bench.harness.server import Server, free_ports
from compose.configuration import DEFAULTS, VARIABLE

_MIGRATE_S: Final = 60.0
_MIGRATE: Final = """import sys
try:
    from bench.harness.clusters import migrate_for_roles as migrate
except ImportError:
    try:
        from storage.postgres.migrate import migrate
    except ImportError:
        from storage.migrate import migrate
migrate(sys.argv[1])"""

_OWNER: Final = "TIDEMARK__POSTGRES__OWNER_DSN"
#: What a benchmark lifts: one device, and one tenant, may send as much as the server can take, and be silent
#: for as long as a slow schedule leaves it.
LIFTED: Final[Mapping[str, str]] = {
    "TIDEMARK__LIMITS__MESSAGES_PER_MINUTE": "1000000000",
    "TIDEMARK__LIMITS__TENANT_MESSAGES_PER_MINUTE": "1000000000",
    "TIDEMARK__SERVER__IDLE_S": "86400",
    "TIDEMARK__LOG__FORMAT": "json",
}


class Version(msgspec.Struct, frozen=True):
    """The product in a directory. ``commit`` is None of this version."""

    root: Path = ROOT
    commit: str | None = None

    async def database(self, environment: Environment, name: str) -> str:
        """Create a database with this version's schema. Returns its DSN. Raises BenchError, StoreError."""
        dsn = environment.database(name, migrated=self.commit is None)
        if self.commit is not None:
            command = [sys.executable, "-c", _MIGRATE, dsn]
            try:
                await asyncio.to_thread(
                    subprocess.run, command, cwd=self.root, check=True, timeout=_MIGRATE_S
                )
            except subprocess.SubprocessError:
                raise BenchError(
                    f"the migrations of {self.commit} failed: the last words are above"
                ) from None
        return dsn

    def known(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Leave out the settings that this version does not have, since it refuses what it does not know."""
        if self.commit is None:
            return dict(variables)
        config = self.root / "config.toml"
        sections = tomllib.loads(config.read_text("utf-8"))
        known = {f"TIDEMARK__{section}__{name}".upper() for section in sections for name in sections[section]}
        if _OWNER in variables and _OWNER not in known:  # it has one role, which owns the tables
            variables = {**variables, "TIDEMARK__POSTGRES__DSN": variables[_OWNER]}
        return {name: value for name, value in variables.items() if name in known} | {VARIABLE: str(config)}

    def server(self, variables: Mapping[str, str], workers: int = 1, port: int = 0, **more: Any) -> Server:
        """Make a server of this version, which is to be started; ``more`` is for ``Server``."""
        command = [str(self.root / "run.py"), "serve", "--port", str(port), "--workers", str(workers)]
        return Server(command, self.known(variables), workers, root=self.root, **more)


HERE: Final = Version()


def checked_out(commit: str, tree: Path) -> Version:
    """Write the files of a commit into a new directory. Raises BenchError if there is no such commit."""
    archive = subprocess.run(
        ["/usr/bin/env", "git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        raise BenchError(f"{commit} is no commit: {archive.stderr.decode().strip()}")
    tree.mkdir(parents=True)
    subprocess.run(["/usr/bin/env", "tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return Version(tree, commit)


def product(
    environment: Environment,
    dsn: str,
    secret: str,
    config: Path | None = None,
    workers: int = 1,
    version: Version = HERE,
    **more: Any,
) -> Server:
    """Make a server on a database of ``environment``; ``more`` is for ``Server``. Raises BenchError."""
    port = 0 if workers == 1 else free_ports(workers + 1)
    return version.server(variables(environment, dsn, secret, config), workers, port, **more)


def variables(environment: Environment, dsn: str, secret: str, config: Path | None) -> dict[str, str]:
    """Return the environment of a server on ``environment``, whatever services the settings name.

    ``dsn`` is the owner's.
    """
    return {
        **LIFTED,
        # Without one it would take the settings of this machine, which are of another server.
        VARIABLE: str(config or os.environ.get(VARIABLE) or DEFAULTS),
        **role_variables(dsn),
        **{f"TIDEMARK__POSTGRES__{name}_FILE": "" for name in ("DSN", "OWNER_DSN", "JOBS_DSN")},
        "TIDEMARK__REDIS__URL": environment.redis_url,
        "TIDEMARK__REDIS__URL_FILE": "",
        "TIDEMARK__AUTH__SECRET": secret,
        "TIDEMARK__AUTH__SECRET_FILE": "",
        "TIDEMARK__AUTH__KEY_FILE": "",
        "TIDEMARK__DATA__DIR": str(environment.home),
        **sealed.variables(),
    }
