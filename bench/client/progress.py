"""A crew on a terminal: a table that is drawn again and again, or lines where nobody looks."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from typing import Final

import click

from bench.client.crew import OUTCOMES, Crew, Member

_REDRAW_S: Final = 0.3
_LINE_S: Final = 5.0
_HEADING: Final = ("DEVICE", "LINE", "MADE", "WAITING", "RECORDS", *(name.upper() for name in OUTCOMES))
_UP: Final = "\x1b[{}F\x1b[J"


def status_table(members: list[Member], lines: int) -> list[str]:
    """Make a table of at most so many lines: the heading, devices while there is room, all together."""
    shown = members[: max(1, lines - 3)]
    rows = [_HEADING, *map(_row, shown)]
    if len(members) > 1:
        online = sum(member.device.online for member in members)
        name = "all" if len(shown) == len(members) else f"all {len(members)}"
        numbers = [_numbers(member) for member in members]
        rows.append((name, f"{online} online", *(str(sum(column)) for column in zip(*numbers, strict=True))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _row(member: Member) -> tuple[str, ...]:
    line = "online" if member.device.online else "offline"
    return member.name, line, *map(str, _numbers(member))


def _numbers(member: Member) -> list[int]:
    told = [member.outcomes[outcome] for outcome in OUTCOMES]
    return [member.made, member.waiting, member.store.count, *told]


async def watch(crew: Crew) -> None:
    """Show a crew on stderr until cancelled, and once more then."""
    if sys.stderr.isatty():
        await _table(crew)
    else:
        await _lines(crew)


async def _table(crew: Crew) -> None:
    drawn = 0
    try:
        while True:
            drawn = _draw(crew, drawn)
            await asyncio.sleep(_REDRAW_S)
    finally:
        _draw(crew, drawn)


def _draw(crew: Crew, drawn: int) -> int:
    size = shutil.get_terminal_size()
    lines = [line[: size.columns - 1] for line in status_table(crew.members, size.lines - 2)]
    click.echo((_UP.format(drawn) if drawn else "") + "\n".join(lines), err=True, color=True)
    return len(lines)


async def _lines(crew: Crew) -> None:
    began_s = time.monotonic()
    while True:
        online = sum(member.device.online for member in crew.members)
        waiting = sum(member.waiting for member in crew.members)
        click.echo(
            f"{time.monotonic() - began_s:.0f} s: {online} of {len(crew.members)} online,"
            f" {crew.made} edits made, {waiting} wait",
            err=True,
        )
        await asyncio.sleep(_LINE_S)
