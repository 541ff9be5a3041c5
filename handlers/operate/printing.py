"""How commands, and logs for people, show what devices sent: it moves no cursor, and turns no line around."""

from __future__ import annotations

import re
from typing import Final

import click
import msgspec

#: C0 and C1, line feeds of all kinds, marks and overrides of direction, and what no encoding takes.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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
    return f"\\u{ord(found[0]):04x}"
