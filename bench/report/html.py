"""A run as one page of HTML with its charts inside: nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from bench.report.charts import charts, charts_of
from bench.report.drawing import Chart
from bench.report.results import Report
from bench.report.targets import Target
from bench.report.text import text_of
from bench.report.written import NO_ORIGIN, Origin

_STYLE: Final = """
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:#24292f;background:#f6f8fa;margin:0}
main{max-width:1180px;margin:auto;padding:16px}
h1{font-size:24px;margin:8px 0 0}h2{font-size:19px;margin:32px 0 8px}h3{font-size:15px;margin:0}
p{margin:4px 0}.quiet,figcaption{color:#57606a;font-size:13px}
.card,figure,details{background:#fff;border:1px solid #d0d7de;border-radius:8px;padding:12px;margin:0 0 12px}
.grid{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr))}
.grid figure{margin:0;min-width:0}figcaption{overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}iframe{width:100%;height:660px;border:0}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:5px 8px;border-top:1px solid #d8dee4}
th{border:0;color:#57606a;font-weight:600}td.n{text-align:right;white-space:nowrap}th.n{text-align:right}
.met{color:#1a7f37;font-weight:600}.missed{color:#d1242f;font-weight:600}
pre{overflow-x:auto;font-size:12px;line-height:1.45;margin:8px 0}summary{cursor:pointer;font-weight:600}
code{overflow-wrap:anywhere;font-size:13px}
@media(max-width:600px){main{padding:8px}td,th{padding:4px;font-size:13px}td.n{white-space:normal}
.s{display:none}td.t::before{content:attr(data-scenario) ": "}}
"""


def html_of(reports: Sequence[Report], targets: Sequence[Target] = (), origin: Origin = NO_ORIGIN) -> str:
    """Write the page."""
    title = "Tidemark benchmark"
    body = "".join(
        [
            f"<h1>{title}</h1><p>{escape(', '.join(report.scenario for report in reports))}</p>",
            *_head(reports, origin),
            *_targets(targets),
            *_grid(charts(reports)),
            *map(_flames, filter(lambda report: report.flame_graph, reports)),
            "<h2>Scenarios</h2>",
            *map(_section, reports),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _head(reports: Sequence[Report], origin: Origin) -> Iterator[str]:
    """Say what the run was made by and on."""
    for machine in dict.fromkeys(report.machine for report in reports):
        memory = f", {machine.memory_gib:.0f} GiB" if machine.memory_gib else ""
        on = f"{machine.cpus} CPUs, {machine.cpu}{memory}, {machine.system}, Python {machine.python}"
        yield f'<p class="quiet">{escape(on)}</p>'
    if origin.command:
        took = f"{origin.took_s / 60:.1f} min" if origin.took_s >= 120 else f"{origin.took_s:.0f} s"
        yield f"<p><code>{escape(origin.command)}</code></p>"
        when = f"commit {origin.commit}, {origin.began_at}, {took}"
        versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
        yield f'<p class="quiet">{escape(when)}. {escape(versions)}</p>'


def _targets(targets: Sequence[Target]) -> Iterator[str]:
    if not targets:
        return
    met = sum(one.met for one in targets)
    yield f'<h2>Targets: {met} of {len(targets)} are met</h2><div class="card"><table>'
    yield '<tr><th class="s">scenario</th><th>target</th>'
    yield '<th class="n">measured</th><th class="n">wanted</th><th></th></tr>'
    for one in targets:
        scenario, kind = escape(one.scenario), "met" if one.met else "missed"
        yield (
            f'<tr><td class="s">{scenario}</td>'
            f'<td class="t" data-scenario="{scenario}">{escape(one.name)}</td>'
            f'<td class="n" title="{escape(one.beside)}">{escape(one.told)}</td>'
            f'<td class="n">{escape(one.wanted)}</td>'
            f'<td class="{kind}">{one.verdict}</td></tr>'
        )
    yield "</table></div>"


def _grid(found: Iterator[Chart]) -> Iterator[str]:
    if figures := list(map(_figure, found)):
        yield from ('<h2>Charts</h2><div class="grid">', *figures, "</div>")


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f"<figure><h3>{escape(chart.title)}</h3>{chart.svg}{caption}</figure>"


def _flames(report: Report) -> str:
    """Embed a flame graph as a document of its own, whose script sees nothing of this page."""
    svg = Path(report.flame_graph).read_text("utf-8")
    document = (
        f"<!doctype html><style>*{{margin:0}}svg{{width:100%;height:auto}}</style>{svg[svg.index('<svg') :]}"
    )
    return (
        "<h2>Flame graph of the server</h2><figure>"
        f'<iframe sandbox="allow-scripts" srcdoc="{escape(document)}"></iframe>'
        "<figcaption>Samples of py-spy during the load: the wider a function, the more of its time "
        "the server was in it. A click enlarges a part.</figcaption></figure>"
    )


def _section(report: Report) -> str:
    drawn = "".join(map(_figure, charts_of(report)))
    missed = sum(not bar.met for bar in report.bars)
    bars = f"{len(report.bars) - missed} of {len(report.bars)} bars met" if report.bars else "no fault found"
    verdict = "could not go on" if report.failed else "faults found" if report.faulty else bars
    kind = "met" if report.passed else "missed"
    return (
        f'<details><summary>{escape(report.scenario)} <span class="{kind}">{verdict}</span></summary>'
        f'<pre>{escape(text_of(report))}</pre><div class="grid">{drawn}</div></details>'
    )
