"""What a dashboard is made of: rows of panels, each with its queries."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

#: Every query is about the servers that are chosen at the top of the dashboard.
CHOSEN: Final = 'job=~"$job",instance=~"$instance"'

Unit = Literal["short", "ops", "reqps", "s", "percentunit", "bytes", "Bps", "dtdurations"]


class Query(NamedTuple):
    """A query of Prometheus. ``legend`` names its lines, by their labels in double braces."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """One chart; with ``is_number`` the present value alone. ``text`` says how to read it."""

    title: str
    unit: Unit
    text: str
    queries: tuple[Query, ...]
    is_number: bool = False


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


class Dashboard(NamedTuple):
    """A dashboard; ``name`` is part of its address and of its file's name."""

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]


def _chosen(metric: str, where: str = "") -> str:
    labels = f"{CHOSEN},{where}" if where else CHOSEN
    return f"{metric}{{{labels}}}"


def _over(how: str, by: tuple[str, ...], query: str) -> str:
    return f"{how} by ({', '.join(by)}) ({query})" if by else f"{how}({query})"


def rate(metric: str, *by: str, where: str = "") -> str:
    """Return the query of a counter's growth a second, added up.

    Args:
        metric: The counter.
        *by: The labels of which each value has a line.
        where: Further conditions on labels.
    """
    return _over("sum", by, f"rate({_chosen(metric, where)}[$__rate_interval])")


def grown(metric: str, *by: str, where: str = "") -> str:
    """Return the query of a counter's growth over the time that is shown, added up."""
    return _over("sum", by, f"increase({_chosen(metric, where)}[$__range])")


def total(metric: str, *by: str, where: str = "") -> str:
    """Return the query of a gauge, added up over processes."""
    return _over("sum", by, _chosen(metric, where))


def highest(metric: str, *by: str, where: str = "") -> str:
    """Return the query of a gauge's highest value among processes."""
    return _over("max", by, _chosen(metric, where))


def lowest(metric: str, *by: str, where: str = "") -> str:
    """Return the query of a gauge's lowest value among processes."""
    return _over("min", by, _chosen(metric, where))


def percentile(fraction: float, metric: str, *by: str) -> str:
    """Return the query of a histogram's percentile over all processes."""
    return f"histogram_quantile({fraction}, {rate(f'{metric}_bucket', 'le', *by)})"


def mean(metric: str) -> str:
    """Return the query of a histogram's mean over all processes."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def percentiles(metric: str) -> tuple[Query, ...]:
    """Return the queries of a histogram's median, its 95th and its 99th percentile."""
    return tuple(
        Query(percentile(fraction, metric), legend)
        for fraction, legend in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    )
