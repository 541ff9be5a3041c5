"""Tables of commands. On a terminal they fit its width; what reads them otherwise gets whole cells.

A terminal that is too narrow for a table gets, in this order: cells cut to ``_GENEROUS_CHARS``, no columns
that may be left out, cells cut further, and at last each row as lines of its own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import Final

import click

from handlers.operate.printing import plain

#: The narrowest wrapped column; its words stay whole.
_LEAST_WRAPPED_CHARS: Final = 24
#: No cell is cut to fewer characters: a name could not be told from others.
_LEAST_CHARS: Final = 8
#: Columns are left out before cells are cut to fewer characters.
_GENEROUS_CHARS: Final = 20
_GAP: Final = "  "


def table(
    rows: list[tuple[str, ...]],
    heading: tuple[str, ...],
    *,
    wrapped: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """Print rows under their heading, in columns; control characters are escaped.

    On a terminal the widest cells are cut, with ``…`` at their end, so that no line is wider than it. One
    that is too narrow for that gets a line for each cell.

    Args:
        rows: The cells of each row, which with ``wrapped`` may hold several lines in the last column.
        heading: The names of the columns.
        wrapped: Whether the last column is wrapped and not cut, also where there is no terminal.
        spare: Columns that a narrow terminal leaves out, the first one first.
    """
    rows = [(*map(plain, row), last if wrapped else plain(last)) for *row, last in rows]
    columns = shutil.get_terminal_size().columns
    if not sys.stdout.isatty():
        _print(rows, heading, _widths(rows, heading, columns, wrapped=wrapped, cut=False), wrapped=wrapped)
        return
    kept, names, left_out = rows, heading, []
    for name in spare:
        if _total([min(one, _GENEROUS_CHARS) for one in _natural(kept, names)]) <= columns:
            break
        kept, names = _without(kept, names, name)
        left_out.append(name)
    widths = _widths(kept, names, columns, wrapped=wrapped, cut=True)
    if _total(widths) > columns:
        _print_lines(rows, heading, columns)
        return
    _print(kept, names, widths, wrapped=wrapped)
    if left_out:
        click.echo(f"no room for {', '.join(left_out)}: --json has all")


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


def _natural(rows: Sequence[tuple[str, ...]], heading: tuple[str, ...]) -> list[int]:
    return [max(map(len, column)) for column in zip(heading, *rows, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _widths(
    rows: Sequence[tuple[str, ...]], heading: tuple[str, ...], columns: int, *, wrapped: bool, cut: bool
) -> list[int]:
    """Return the width of each column; with ``cut`` so that they take ``columns``, if that is possible."""
    widths = _natural(rows, heading)
    room = columns - len(_GAP) * (len(widths) - 1)
    if not wrapped:
        return fitted(widths, room) if cut else widths
    last = min(widths.pop(), _LEAST_WRAPPED_CHARS)
    if cut:
        widths = fitted(widths, room - last)
    return [*widths, max(last, room - sum(widths))]


def _without(
    rows: Sequence[tuple[str, ...]], heading: tuple[str, ...], name: str
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    at = heading.index(name)
    return [(*row[:at], *row[at + 1 :]) for row in rows], (*heading[:at], *heading[at + 1 :])


def _print(
    rows: Sequence[tuple[str, ...]], heading: tuple[str, ...], widths: Sequence[int], *, wrapped: bool
) -> None:
    for *row, last in (heading, *rows):
        lines = _wrapped(last, widths[-1]) if wrapped else [_cut(last, widths[-1])]
        cells = [_cut(cell, width).ljust(width) + _GAP for cell, width in zip(row, widths[:-1], strict=True)]
        before = "".join(cells)
        click.echo((before + lines[0]).rstrip())
        for line in lines[1:]:
            click.echo(" " * len(before) + line)


def _print_lines(rows: Sequence[tuple[str, ...]], heading: tuple[str, ...], columns: int) -> None:
    """Print each cell that is not empty on lines of its own, and an empty line between rows."""
    width = max(map(len, heading))
    if not rows:
        click.echo("\n".join(_wrapped(_GAP.join(heading), columns)))
    for number, row in enumerate(rows):
        if number:
            click.echo()
        for name, cell in zip(heading, row, strict=True):
            lines = _wrapped(cell, max(_LEAST_CHARS, columns - width - len(_GAP))) if cell else []
            for index, line in enumerate(lines):
                click.echo(f"{'' if index else name:{width}}{_GAP}{line}")


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _wrapped(cell: str, room: int) -> list[str]:
    lines = [part for line in cell.split("\n") for part in wrap(plain(line), room, break_on_hyphens=False)]
    return lines or [""]
