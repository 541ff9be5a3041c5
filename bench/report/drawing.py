"""How charts are drawn: lines, and bars from left to right, as SVG in a page that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import pygal
from pygal.style import Style

from bench.report.statistics import number

#: Blue, orange, green, violet, sky, yellow: they differ for people who see no red or green. Limits are red.
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#b8a800")
_LIMIT: Final = "#d1242f"
#: Not much wider than the page of a phone, so that its text stays legible there.
_SIZE: Final = {"width": 520}
#: What a chart of bars takes above and below them, and from how many bars a name on they are thin.
_AROUND_PX: Final = 90
_MANY: Final = 4
#: A name of more characters leaves no room for a legend of several columns; one of its lines is so high.
_WIDE_NAME, _ENTRY_PX = 30, 16
#: Labels below a line that do not overlap.
_LABELS: Final = 6
_STYLE: Final[Mapping[str, Any]] = {
    "background": "transparent",
    "plot_background": "transparent",
    "foreground": "#57606a",
    "foreground_strong": "#24292f",
    "foreground_subtle": "#8c959f",
    "guide_stroke_color": "#d8dee4",
    "major_guide_stroke_color": "#d8dee4",
    "font_family": "system-ui, sans-serif",
    "label_font_size": 12,
    "major_label_font_size": 12,
    "legend_font_size": 12,
    "title_font_size": 14,
    "value_font_size": 11,
    "opacity": 0.95,
    "opacity_hover": 1,
    "transition": "0s",
    "stroke_width": "2",
}
#: What pygal adds for a script of its own, which no page here has.
_FOR_SCRIPTS: Final = re.compile(r"<(desc|script)\b[^>]*>.*?</\1>", re.DOTALL)
#: A line of more points has no dots.
_DOTTED: Final = 20

Values = Sequence[float | None]
Series = Mapping[str, Values]


class Limit(NamedTuple):
    """What a value is held against."""

    name: str
    value: float


class Chart(NamedTuple):
    """One chart with the sentence below it."""

    title: str
    caption: str
    svg: str


def lines(
    title: str,
    caption: str,
    names: Sequence[str],
    series: Series,
    *,
    limit: Limit | None = None,
    logarithmic: bool = True,
) -> Chart:
    """Draw lines over named places, and a limit as one more."""
    size = {**_SIZE, "height": 340}
    every = max(1, -(-len(names) // _LABELS)) if len(names) > 2 * _LABELS else 1
    chart = pygal.Line(
        show_dots=len(names) < _DOTTED,
        logarithmic=logarithmic,
        show_legend=len(series) > 1 or limit is not None,
        x_labels_major_every=every,
        show_minor_x_labels=every == 1,
        allow_interruptions=True,
        **_options(len(series) + (limit is not None), [*_COLOURS[: len(series)], _LIMIT]),
        **size,
    )
    chart.x_labels = names
    for name, values in series.items():
        chart.add(name, _drawable(values, logarithmic=logarithmic))
    if limit is not None:
        chart.add(limit.name, [limit.value] * len(names), show_dots=False, stroke_style={"dasharray": "6, 4"})
    svg = chart.render(is_unicode=True, disable_xml_declaration=True)
    return Chart(title, caption, _FOR_SCRIPTS.sub("", svg))


def bars(
    title: str,
    caption: str,
    names: Sequence[str],
    series: Series,
    *,
    stacked: bool = False,
    logarithmic: bool = False,
    limit: Limit | None = None,
) -> Chart:
    """Draw bars from left to right, the first name above all, and a limit as a line across them."""
    kind = pygal.HorizontalStackedBar if stacked else pygal.HorizontalBar
    thick = 1 if stacked else len(series)
    height = _AROUND_PX + len(names) * (12 + min(26, 14 * thick) if thick < _MANY else 10 * thick)
    narrow: dict[str, Any] = {}
    if len(series) > 1 and max(map(len, names), default=0) > _WIDE_NAME:
        narrow, height = {"legend_at_bottom_columns": 1}, height + _ENTRY_PX * (len(series) - 1)
    most = max(
        [value or 0.0 for values in series.values() for value in values] + [limit.value if limit else 0.0]
    )
    span = {} if stacked or logarithmic else {"range": (0, 1.08 * most or 1.0)}
    chart = kind(
        logarithmic=logarithmic,
        show_legend=len(series) > 1,
        **{**_options(len(series), _COLOURS), **narrow},
        **{**_SIZE, "height": height},
        **span,
    )
    if len(series) == 1:
        ((*only,),) = series.values()
        names = [
            f"{name}: {'-' if one is None else number(one)}" for name, one in zip(names, only, strict=True)
        ]
    chart.x_labels = list(reversed(names))
    for name, values in series.items():
        chart.add(name, list(reversed(_drawable(values, logarithmic=logarithmic))))
    chart.setup(disable_xml_declaration=True)
    svg, plot = _FOR_SCRIPTS.sub("", chart.svg.render(is_unicode=True)), chart.view
    if limit is not None:
        svg = _with_limit(svg, plot.y(limit.value), plot.height)
        caption = f"Red: {limit.name}, {limit.value:g}. {caption}".strip()
    return Chart(title, caption, svg)


def _options(entries: int, colours: Sequence[str]) -> dict[str, Any]:
    return {
        "js": [],
        "style": Style(colors=tuple(colours), **_STYLE),
        "dots_size": 2.5,
        "legend_at_bottom": True,
        # Of three entries in two columns pygal does not draw the last one.
        "legend_at_bottom_columns": 3 if entries == 3 else 2,
        "legend_box_size": 10,
        "truncate_legend": -1,
        "truncate_label": -1,
        "margin": 6,
        "margin_right": 24,
        "min_scale": 3,
        "max_scale": 6,
        "value_formatter": number,
        "no_data_text": "not measured",
    }


def _drawable(values: Values, *, logarithmic: bool) -> list[float | None]:
    """Leave zeros out where the axis has none."""
    return [value or None for value in values] if logarithmic else list(values)


def _with_limit(svg: str, x: float, height: float) -> str:
    """Draw a vertical line into the plot, above its bars."""
    line = f'<path d="M{x:.1f} 0 v{height:.1f}" style="stroke:{_LIMIT};stroke-width:2;stroke-dasharray:6 4"/>'
    head, plot, tail = svg.partition('class="plot overlay"')
    place = tail.index(">") + 1
    return f"{head}{plot}{tail[:place]}{line}{tail[place:]}"
