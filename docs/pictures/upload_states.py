"""The states of an upload and the steps between them, from ``STATES`` in ``engine/model/uploads.py``."""

from __future__ import annotations

from typing import Final

from docs.pictures.canvas import Box, Canvas
from engine.model.uploads import STATES, State, StateRule

#: Column and row of each state. A state without a place fails ``python -m docs.generate``.
_PLACES: Final[dict[State, tuple[int, int]]] = {
    "open": (0, 1),
    "stored": (1, 1),
    "attached": (2, 0),
    "duplicate": (2, 2),
    "retained": (3, 0),
    "freed": (4, 1),
    "concatenated": (1, 2),
    "refused": (1, 3),
    "cancelled": (1, 4),
    "expired": (1, 5),
}
_SIZE: Final = (128, 50)
_COLUMN: Final = 183
#: From here on stands the column to which ways lead from every other one.
_LAST_X: Final = 700
_LEGEND: Final = (
    ("blue", "its bytes are a draft"),
    ("good", "its bytes are a file"),
    ("plain", "it has no bytes of its own"),
    ("gone", "it has ended: the row goes after a week"),
)


def upload_states() -> str:
    """Draw the picture."""
    said = ". ".join(
        f"{state} goes to {', '.join(sorted(rule.successors))}"
        for state, rule in STATES.items()
        if rule.successors
    )
    canvas = Canvas(900, 400, "The states of an upload", said)
    boxes = {
        state: canvas.box(_place(state), state, _notes(rule), kind_of_state(rule))
        for state, rule in STATES.items()
    }
    for state, rule in STATES.items():
        for after in sorted(rule.successors):
            _arrow(canvas, boxes[state], boxes[after])
    for number, (kind, words) in enumerate(_LEGEND):
        y = 262 + 32 * number
        canvas.box(Box(420, y, 40, 20), "", kind=kind)
        canvas.text(472, y + 15, words, "small")
    return canvas.svg()


def _place(state: State) -> Box:
    column, row = _PLACES[state]
    return Box(20 + column * _COLUMN, 18 + row * 64, *_SIZE)


def _arrow(canvas: Canvas, start: Box, end: Box) -> None:
    """From side to side where a column follows the other; around what stands between them otherwise."""
    (x, y), (to_x, to_y) = start.right, end.left
    follows = to_x - x < _COLUMN
    if y == to_y or (follows and to_x < _LAST_X):
        canvas.arrow((x, y), (to_x, to_y))
    elif y > to_y:
        canvas.arrow((x, y), (end.top[0], y), end.bottom)
    elif follows:
        canvas.arrow((x, y), (end.top[0], y), end.top)
    else:
        canvas.arrow(start.bottom, (to_x, to_y - 14))


def kind_of_state(rule: StateRule) -> str:
    """Return how a box of a state looks."""
    if rule.ended:
        return "gone"
    if not rule.has_bytes:
        return "plain"
    return "good" if rule.is_file else "blue"


def _notes(rule: StateRule) -> list[str]:
    if rule.in_entry:
        return ["in the feed"]
    return ["takes bytes"] if rule.has_bytes and not rule.is_file else []
