"""Tables of commands. On a terminal they fit its width; what reads them otherwise gets whole cells."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import Final

import click

from handlers.operate.printing import plain

#: The narrowest wrapped column. On a narrower terminal its lines are too long, but words stay whole.
_LEAST_WRAPPED_CHARS: Final = 24
#: No cell is cut to fewer characters. With many columns on a narrow terminal lines are too long.
_LEAST_CHARS: Final = 8
_GAP: Final = "  "


def table(rows: list[tuple[str, ...]], heading: tuple[str, ...], *, wrapped: bool = False) -> None:
    """Print rows under their heading, in columns; control characters are escaped.

    On a terminal the widest cells are cut, with ``…`` at their end, so that no line is wider than it.

    Args:
        rows: The cells of each row, which with ``wrapped`` may hold several lines in the last column.
        heading: The names of the columns.
        wrapped: Whether the last column is wrapped and not cut, also where there is no terminal.
    """
    rows = [(*map(plain, row), last if wrapped else plain(last)) for *row, last in rows]
    natural = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    columns = shutil.get_terminal_size().columns
    room = columns - len(_GAP) * (len(heading) - 1)
    if wrapped:
        last_chars = min(natural[-1], _LEAST_WRAPPED_CHARS)
        natural = natural[:-1]
        widths = fitted(natural, room - last_chars) if sys.stdout.isatty() else natural
        widths.append(max(_LEAST_WRAPPED_CHARS, room - sum(widths)))
    else:
        widths = fitted(natural, room) if sys.stdout.isatty() else natural
    for *row, last in (heading, *rows):
        lines = _wrapped(last, widths[-1]) if wrapped else [_cut(last, widths[-1])]
        cells = [_cut(cell, width).ljust(width) + _GAP for cell, width in zip(row, widths[:-1], strict=True)]
        before = "".join(cells)
        click.echo((before + lines[0]).rstrip())
        for line in lines[1:]:
            click.echo(" " * len(before) + line)


def fitted(widths: Sequence[int], room: int) -> list[int]:
    """Return widths of columns that take ``room`` together: the widest are cut, all to the same width.

    None is cut below ``_LEAST_CHARS``, so that the result may be wider than ``room``.
    """
    low, high = _LEAST_CHARS, max(widths, default=_LEAST_CHARS)
    if sum(widths) <= room:
        return list(widths)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(width, middle) for width in widths) <= room:
            low = middle
        else:
            high = middle - 1
    return [min(width, low) for width in widths]


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _wrapped(cell: str, room: int) -> list[str]:
    lines = [part for line in cell.split("\n") for part in wrap(plain(line), room, break_on_hyphens=False)]
    return lines or [""]
