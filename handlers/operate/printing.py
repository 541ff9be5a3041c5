"""How commands, and logs for people, show what devices sent: it moves no cursor, and turns no line around."""

from __future__ import annotations

import re
from typing import Final

import click
import msgspec

#: C0 and C1, line feeds of all kinds, marks and overrides of direction, what nobody sees, so that two ids
#: would look the same (the joiners U+200C and U+200D stay: scripts need them), and what no encoding takes.
_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    r"""Write control characters as JSON does, ``\u001b``, so that a text is one line and does nothing."""
    return _CONTROLS.sub(_escaped, text)


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line, on stderr if ``err``."""
    click.echo(plain(text), err=err)


def json_text(document: bytes) -> str:
    """Format a JSON document of UTF-8 for a person, and for programs, who read the same in it."""
    # Between its texts a document has no control character but line feeds, and in them they are escaped.
    lines = msgspec.json.format(document).decode().split("\n")
    return "\n".join(map(plain, lines))


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
