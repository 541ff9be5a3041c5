"""Write the dashboards: ``python -m deploy.grafana.dashboards``.

To change a dashboard, change its table (``sync``, ``system``, ``business``), not the JSON. A test compares
both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh

from deploy.grafana.business import BUSINESS
from deploy.grafana.panels import Dashboard, Panel
from deploy.grafana.sync import SYNC
from deploy.grafana.system import SYSTEM

DASHBOARDS: Final = (SYNC, SYSTEM, BUSINESS)
_FOLDER: Final = Path(__file__).parent
#: The source of data that is chosen at the top.
_SOURCE: Final = DataSourceRef("prometheus", "${datasource}")
#: A row has 24 columns.
_CHART_SPAN: Final = 8
_NUMBER_SPAN: Final = 6


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    built: stat.Panel | timeseries.Panel
    if panel.is_number:
        built = (
            stat.Panel()
            .span(_NUMBER_SPAN)
            .height(4)
            .graph_mode(BigValueGraphMode.AREA)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        )
    else:
        built = (
            timeseries.Panel()
            .span(_CHART_SPAN)
            .height(8)
            .min(0)
            .fill_opacity(10)
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
            .legend(common.VizLegendOptions().placement(LegendPlacement.BOTTOM).show_legend(True))
        )
    built = built.title(panel.title).description(panel.text).unit(panel.unit).datasource(_SOURCE)
    for index, query in enumerate(panel.queries):
        built = built.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        )
    return built


def as_json(made: Dashboard) -> str:
    """Return the JSON of a dashboard, as Grafana imports it."""
    built = (
        dashboard.Dashboard(made.title)
        .uid(f"tidemark-{made.name}")
        .description(made.text)
        .tags(["tidemark"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Source").type("prometheus"))
        .with_variable(_variable("job", "Job", "label_values(tidemark_build_info, job)"))
        .with_variable(
            _variable("instance", "Host", 'label_values(tidemark_build_info{job=~"$job"}, instance)')
        )
    )
    for row in made.rows:
        built = built.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            built = built.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def files() -> Iterator[tuple[Path, str]]:
    """Yield the file of each dashboard and its text."""
    for made in DASHBOARDS:
        yield _FOLDER / f"{made.name}.json", as_json(made)


if __name__ == "__main__":
    for path, text in files():
        path.write_text(text, "utf-8")
