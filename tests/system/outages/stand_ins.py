"""Programs of a host that a test does not have, ``systemctl`` and others, for services of its own.

They are found before those of the system, and pass what they were told on to the test. ``pg_verifybackup`` is
one because that of the wheel of PostgreSQL 18 crashes, also when it is asked for its version.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

PROGRAMS: Final = ("systemctl", "journalctl", "certbot")
_PROGRAM: Final = """#!{python} -IS
import json, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({socket!r})
line.sendall(json.dumps(sys.argv).encode() + b"\\n")
answer = json.loads(line.makefile("rb").readline())
sys.stdout.write(answer["text"])
sys.exit(answer["status"])
"""
_VERIFY_BACKUP: Final = """#!{python} -IS
import hashlib, json, pathlib, sys
place = pathlib.Path(sys.argv[-1])
wrong = [
    one["Path"]
    for one in json.loads((place / "backup_manifest").read_text())["Files"]
    if hashlib.sha256((place / one["Path"]).read_bytes()).hexdigest() != one["Checksum"]
]
for path in wrong:
    print(f'pg_verifybackup: error: checksum mismatch for file "{{path}}"')
if wrong:
    sys.exit(1)
print("backup successfully verified")
"""
#: All is one account here. That of PostgreSQL, ``postgres``, connects as its superuser.
_RUNUSER: Final = """#!{python} -IS
import os, sys
if sys.argv[1:4:2] != ["-u", "--"] or sys.argv[2] not in ("postgres", "tidemark"):
    sys.exit("runuser: no stand-in for this: " + " ".join(sys.argv[1:]))
if sys.argv[2] == "postgres":
    os.environ.update({superuser!r})
os.execvp(sys.argv[4], sys.argv[4:])
"""
#: What the journal puts before each line.
_STAMP: Final = "Nov 29 09:00:00 north python[4711]: "
#: As much as ``journalctl`` shows.
_LINES: Final = 2000


class Unit(Protocol):
    """A service that can be started and stopped."""

    @property
    def active(self) -> bool:
        """Whether it runs."""

    async def start(self) -> None:
        """Start it. A service that cannot start raises OSError."""

    async def stop(self) -> None:
        """Stop it as a service manager does."""

    def log(self) -> list[str]:
        """What it said so far, line by line."""


@runtime_checkable
class Reloading(Protocol):
    """A service that reads its settings again while it serves."""

    async def reload(self) -> None:
        """Have it do so."""


@runtime_checkable
class HasProcess(Protocol):
    """A service with a main process."""

    @property
    def main_pid(self) -> int:
        """The number of that process."""


async def _systemctl(units: Mapping[str, Unit], verb: str, name: str) -> tuple[int, str]:
    unit = units[name.removesuffix(".service")]
    if verb == "status":
        state = "active (running)" if unit.active else "failed (Result: exit-code)"
        last = "".join(f"{line}\n" for line in unit.log()[-3:])
        return 0 if unit.active else 3, f"{name}.service\n     Active: {state}\n{last}"
    if verb == "show" and isinstance(unit, HasProcess):
        return 0, f"{unit.main_pid}\n"
    if verb == "is-active":
        return (0, "active\n") if unit.active else (3, "failed\n")
    if verb == "reload" and isinstance(unit, Reloading):
        await unit.reload()
    if verb in {"stop", "restart"} and unit.active:
        await unit.stop()
    if verb in {"start", "restart"} and not unit.active:
        try:
            await unit.start()
        except OSError as error:
            return 1, f"Job for {name}.service failed: {error}\n"
    return 0, ""


async def _answer(units: Mapping[str, Unit], told: list[str]) -> tuple[int, str]:
    program, *arguments = Path(told[0]).name, *told[1:]
    words = [word for word in arguments if not word.startswith("-")]
    if program == "certbot":
        await units[program].start()
        return 0, ""
    if program == "systemctl":
        return await _systemctl(units, words[0], words[1])
    unit = units[arguments[arguments.index("-u") + 1]]
    return 0, "".join(f"{_STAMP}{line}\n" for line in unit.log()[-_LINES:])


@asynccontextmanager
async def stand_ins(
    place: Path, units: Mapping[str, Unit], superuser: Mapping[str, str]
) -> AsyncIterator[Path]:
    """Yield a directory of programs that act on ``units``.

    Args:
        place: Where the directory is made.
        units: The services by their names.
        superuser: Variables by which ``runuser -u postgres -- psql`` connects.
    """
    path = place / "stand-ins.socket"

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = json.loads(await reader.readline())
        try:
            status, text = await _answer(units, told)
        except (KeyError, ValueError) as error:
            status, text = 1, f"{shlex.join(told)}: no stand-in for this: {error!r}\n"
        writer.write(json.dumps({"status": status, "text": text}).encode() + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, path)
    directory = place / "bin"
    directory.mkdir()
    texts = {**dict.fromkeys(PROGRAMS, _PROGRAM), "pg_verifybackup": _VERIFY_BACKUP, "runuser": _RUNUSER}
    for name, text in texts.items():
        program = directory / name
        program.write_text(
            text.format(python=sys.executable, socket=str(path), superuser=dict(superuser)), "utf-8"
        )
        program.chmod(0o700)  # one has a password
    try:
        yield directory
    finally:
        server.close()
