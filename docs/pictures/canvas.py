"""Draws boxes, arrows and text as one SVG file that loads nothing, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

#: Light, then what dark changes. A picture follows the reader's scheme, also as <img>.
_STYLE: Final = """\
.ground { fill: #ffffff; }
.lane { fill: #f2f5f8; }
.plain { fill: #ffffff; stroke: #5b7083; stroke-width: 1.5; }
.good { fill: #e3f1ea; stroke: #2f7d55; stroke-width: 1.5; }
.blue { fill: #e2ecf6; stroke: #2b5f8f; stroke-width: 1.5; }
.warm { fill: #fbeedd; stroke: #a8651b; stroke-width: 1.5; }
.gone { fill: #eceff2; stroke: #8894a0; stroke-width: 1.5; stroke-dasharray: 5 3; }
.way { fill: none; stroke: #2b5f8f; stroke-width: 1.8; marker-end: url(#tip); }
.tip { fill: #2b5f8f; }
text { font-family: system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif;
  font-size: 14px; fill: #1c2733; }
.head { font-size: 16px; font-weight: 600; }
.name { font-weight: 600; }
.small { font-size: 12px; fill: #45566a; }
.middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #11161c; }
  .lane { fill: #1a222b; }
  .plain { fill: #11161c; stroke: #8299ae; }
  .good { fill: #173326; stroke: #5fbf8f; }
  .blue { fill: #1a3047; stroke: #7db7ea; }
  .warm { fill: #3a2a17; stroke: #e0a35b; }
  .gone { fill: #222a32; stroke: #76828e; }
  .way { stroke: #7db7ea; }
  .tip { fill: #7db7ea; }
  text { fill: #e8eef4; }
  .small { fill: #a9bacb; }
}
"""
_TIP: Final = (
    '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto"'
    ' markerUnits="userSpaceOnUse"><path class="tip" d="M0 0 L9 4.5 L0 9 Z"/></marker></defs>'
)
#: From one line of text to the next.
_LINE: Final = 17


class Box(NamedTuple):
    """A box that was drawn: its left upper corner and its size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def left(self) -> tuple[float, float]:
        """The middle of its left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """The middle of its right side."""
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        """The middle of its upper side."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """The middle of its lower side."""
        return self.x + self.width / 2, self.y + self.height


class Canvas:
    """One picture: ``title`` and ``description`` are what a screen reader says of it."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"',
            f'  width="{width}" height="{height}" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>\n{_STYLE}</style>",
            _TIP,
            f'<rect class="ground" width="{width}" height="{height}"/>',
        ]

    def lane(self, x: float, y: float, width: float, height: float, name: str) -> None:
        """Draw the ground of those who stand side by side, with a name."""
        self._parts.append(f'<rect class="lane" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        self.text(x + width / 2, y + 25, name, "head middle")

    def box(self, place: Box, name: str, small: Sequence[str] = (), kind: str = "plain") -> Box:
        """Draw a box with a name and lines of small text below it, all in its middle."""
        x, y, width, height = place
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        first = y + height / 2 + 5 - _LINE * len(small) / 2
        self.text(x + width / 2, first, name, "name middle")
        for number, line in enumerate(small, 1):
            self.text(x + width / 2, first + _LINE * number, line, "small middle")
        return place

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Write one line."""
        self._parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>')

    def arrow(
        self, *points: tuple[float, float], label: str = "", at: tuple[float, float] | None = None
    ) -> None:
        """Draw a way through points, with a tip at its end, and a label at ``at``, else in its middle."""
        way = " L".join(f"{x:g} {y:g}" for x, y in points)
        self._parts.append(f'<path class="way" d="M{way}"/>')
        if label:
            (x, y), (to_x, to_y) = points[0], points[-1]
            where = at or ((x + to_x) / 2, (y + to_y) / 2 - 6)
            self.text(*where, label, "small middle")

    def svg(self) -> str:
        """Return the file."""
        return "\n".join((*self._parts, "</svg>")) + "\n"


def wrapped(words: str, most: int) -> list[str]:
    """Return a sentence in lines of at most ``most`` characters."""
    lines: list[str] = []
    for word in words.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
