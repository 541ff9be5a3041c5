"""A server with its settings, keys and files in a directory, as in an installation, and its commands."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bench.harness.child import ROOT
from bench.harness.clusters import as_role
from bench.harness.server import Server
from compose.configuration import VARIABLE
from deploy.recovery.postgres import Tell

_COPY: Final = Path(__file__).with_name("copy_files.sh")
_KEYS: Final = ("auth.secret", "master.key")
_CONFIG: Final = """\
[server]
port = {port}

[data]
dir = "{home}/data"

[postgres]
dsn_file = "{home}/serving.dsn"
owner_dsn_file = "{home}/owner.dsn"
jobs_dsn_file = "{home}/jobs.dsn"

[redis]
url = "{redis_url}"

[auth]
secret_file = "{home}/auth.secret"

[sealing]
master_key_file = "{home}/master.key"
"""


class Site:
    """The machine of a server.

    Args:
        home: Its directory, which is made.
        dsn: The owner's.
        redis_url: Its Redis.
        port: Where it serves.
        tell: Is told each command.
    """

    def __init__(self, home: Path, dsn: str, redis_url: str, port: int, tell: Tell) -> None:
        self._home = home
        self._tell = tell
        home.mkdir(mode=0o711)
        (home / "data").mkdir(mode=0o711)
        (home / "config.toml").write_text(_CONFIG.format(home=home, port=port, redis_url=redis_url))
        for name, text in (
            ("owner.dsn", dsn),
            ("serving.dsn", as_role(dsn, "serving")),
            ("jobs.dsn", as_role(dsn, "jobs")),
        ):
            self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        place = self._home / name
        place.touch(0o600, exist_ok=False)
        place.write_text(text)

    def make_keys(self) -> None:
        """Make the key of tokens and the master key."""
        self._write("auth.secret", secrets.token_urlsafe(48))
        self._write("master.key", base64.b64encode(secrets.token_bytes(32)).decode())

    def copy_keys(self, place: Path) -> None:
        """Copy the keys to a directory, which is made."""
        place.mkdir(mode=0o700)
        for name in _KEYS:
            shutil.copy2(self._home / name, place / name)

    def restore_keys(self, place: Path) -> None:
        """Take the keys from their copy."""
        for name in _KEYS:
            shutil.copy2(place / name, self._home / name)

    def copy_files(self, place: Path) -> None:
        """Copy the files that are not in the copy yet: a file is never changed."""
        self._copy(self._home / "data", place)

    def restore_files(self, place: Path) -> None:
        """Take the files from their copy. Unfinished uploads are not in it."""
        self._copy(place, self._home / "data")

    def _copy(self, source: Path, target: Path) -> None:
        command = ["bash", str(_COPY), str(source), str(target)]
        self._tell(" ".join(command))
        subprocess.run(["/usr/bin/env", *command], check=True)

    @property
    def secret(self) -> str:
        """The key of tokens."""
        return (self._home / "auth.secret").read_text()

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command of ``run.py``. Returns its status, and what it wrote on stdout."""
        self._tell(" ".join(["run.py", *command]))
        ended = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *command],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout

    def asked(self, *command: str) -> Any:
        """Run a command with ``--json``. Returns its status and the document."""
        status, said = self.run(*command, "--json")
        return status, json.loads(said or "null")

    def _environment(self) -> dict[str, str]:
        """Return an environment with the settings of the site alone: those of the drill's own would win."""
        bare = {name: text for name, text in os.environ.items() if not name.startswith("TIDEMARK")}
        return {**bare, VARIABLE: str(self._home / "config.toml")}

    def server(self) -> Server:
        """Return its server, which is to be started."""
        self._tell("run.py serve")
        server = Server([str(ROOT / "run.py"), "serve"], {})
        server.environment = {**self._environment(), "TIDEMARK__LOG__FORMAT": "json"}
        return server
