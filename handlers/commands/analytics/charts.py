"""Charts of figures over time, as SVG that stands in a page and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

import pygal
from pygal.style import Style

#: A label below a chart has no year: it is in the span, above.
_YEAR_CHARS: Final = len("2026-")
#: Labels below a chart that do not overlap.
_LABELS: Final = 6
#: A line of more points has no dots.
_DOTTED: Final = 100
#: Good news first: blue, green, amber, red, violet, grey. They differ for people who see no red or green.
_COLOURS: Final = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#7f7f7f")
_STYLE: Final = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#444444",
    foreground_strong="#222222",
    foreground_subtle="#999999",
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#cccccc",
    font_family="system-ui, sans-serif",
    label_font_size=12,
    major_label_font_size=12,
    legend_font_size=13,
    no_data_font_size=16,
    opacity=0.9,
    opacity_hover=1,
    colors=_COLOURS,
)
_LABEL: Final = re.compile(r'<desc class="label">(.*?)</desc>', re.DOTALL)
#: What pygal adds for a script of its own, which no page here has.
_FOR_SCRIPTS: Final = re.compile(r"<(desc|script)\b[^>]*>.*?</\1>", re.DOTALL)

#: The values of each series by its name. None is a period without data.
Series = Mapping[str, Sequence[float | None]]
#: Writes a value as text.
Form = Callable[[float], str]


def bars(title: str, periods: Sequence[str], series: Series, form: Form) -> str:
    """Draw counts: one bar for each period, and in it the series above each other."""
    return _figure(title, pygal.StackedBar(rounded_bars=0, **_options(form)), periods, series, form)


def lines(title: str, periods: Sequence[str], series: Series, form: Form) -> str:
    """Draw measures as lines, with a gap where there is no data."""
    options = _options(form) | {"show_dots": len(periods) <= _DOTTED, "dots_size": 2}
    chart = pygal.Line(allow_interruptions=True, stroke_style={"width": 2}, **options)
    return _figure(title, chart, periods, series, form)


def _options(form: Form) -> dict[str, Any]:
    return {
        "js": [],
        "style": _STYLE,
        "width": 640,
        "height": 320,
        "margin": 8,
        "margin_right": 36,
        "min_scale": 3,
        "max_scale": 6,
        "include_x_axis": True,
        "show_minor_x_labels": False,
        "legend_at_bottom": True,
        "truncate_legend": -1,
        "truncate_label": -1,
        "value_formatter": form,
        "no_data_text": "no data",
    }


def _figure(title: str, chart: Any, periods: Sequence[str], series: Series, form: Form) -> str:
    chart.x_labels = [period[_YEAR_CHARS:] for period in periods]
    chart.x_labels_major_every = max(1, -(-len(periods) // _LABELS))
    chart.legend_at_bottom_columns = len(series)
    for name, values in series.items():
        chart.add(
            name,
            [
                None if value is None else {"value": value, "label": f"{period}, {name}: {form(value)}"}
                for period, value in zip(periods, values, strict=True)
            ],
        )
    drawn = chart.render(is_unicode=True, disable_xml_declaration=True)
    # A browser shows the title of what the pointer is on.
    drawn = _FOR_SCRIPTS.sub("", _LABEL.sub(r"<title>\1</title>", drawn))
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"
