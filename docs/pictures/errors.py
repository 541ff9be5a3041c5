"""Every error code under what a device does about it, from ``ERRORS`` in ``engine/wire/errors.py``."""

from __future__ import annotations

from typing import Final

from docs.pictures.canvas import Box, Canvas
from engine.wire.errors import ERRORS, ErrorKind

#: Groups in their order: kind of box, width, heading, two lines of what to do.
_GROUPS: Final = {
    "again": ("good", 170, "Wait", ("Then send the same", "message again.")),
    "token": ("warm", 160, "Get another token", ("This one does not", "allow the request.")),
    "moved": ("blue", 190, "Look again", ("The server's state differs", "from the device's.")),
    "wrong": ("warm", 180, "Correct the request", ("The same request", "never succeeds.")),
    "item": ("plain", 174, "Correct one item", ("The other items", "are applied.")),
}


def errors() -> str:
    """Draw the picture."""
    groups: dict[str, list[ErrorKind]] = {name: [] for name in _GROUPS}
    for kind in ERRORS.values():
        groups[_group(kind)].append(kind)
    rows = max(map(len, groups.values()))
    said = ". ".join(
        f"{_GROUPS[name][2]}: {', '.join(kind.code for kind in kinds)}" for name, kinds in groups.items()
    )
    canvas = Canvas(900, 116 + 22 * rows, "Errors by what a device does", said)
    x = 14
    for name, kinds in groups.items():
        box, width, heading, remedy = _GROUPS[name]
        canvas.box(Box(x, 14, width - 10, 76), heading, remedy, box)
        for row, kind in enumerate(kinds):
            canvas.text(x + 4, 114 + 22 * row, str(kind.http or ""), "small")
            canvas.text(x + (32 if kind.http else 4), 114 + 22 * row, kind.code, "small")
        x += width
    return canvas.svg()


def _group(kind: ErrorKind) -> str:
    if kind.http is None:
        return "item"
    if kind.retryable:
        return "again"
    if kind.http in (401, 403):
        return "token"
    return "moved" if kind.http in (404, 409, 410, 460) else "wrong"
