"""The text of metrics against the parser of Prometheus' own client, and pages joined as text."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from engine.runtime.metrics import Distribution, Histogram, Metric, Value, counter, gauge
from handlers.operate.exposition import Joined, pieces
from tests.security.catalogue import against

#: Samples by name and labels.
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", "\n# HELP x y\n", '\\"}', "# HELP a b"]
)
_NUMBERS = st.integers(0, 1 << 50) | st.floats(0, 1e18)


def _labels(names: int) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(*[_TEXTS] * names)


@st.composite
def _metrics(draw: st.DrawFn) -> list[Metric]:
    metrics: list[Metric] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(["plain", "one", "two", "histogram"])))):
        name, text = f"m{number}", draw(_TEXTS)
        if kind == "plain":
            metrics.append(draw(st.sampled_from([counter, gauge]))(name, text, draw(_NUMBERS)))
        elif kind == "one":
            metrics.append(Value("counter", name, text, draw(st.dictionaries(_TEXTS, _NUMBERS)), "code"))
        elif kind == "two":
            values = draw(st.dictionaries(_labels(2), _NUMBERS))
            metrics.append(Value("gauge", name, text, values, ("policy", "outcome")))
        else:
            bounds = sorted(draw(st.sets(st.floats(0, 1e6), min_size=1, max_size=5)))
            counts = draw(
                st.lists(st.integers(0, 1 << 40), min_size=len(bounds) + 1, max_size=len(bounds) + 1)
            )
            metrics.append(Histogram(name, text, counts, draw(_NUMBERS), bounds))
    return metrics


def _expected(metrics: list[Metric], worker: int | None) -> Page:
    own = {} if worker is None else {"worker": str(worker)}
    page: Page = {}

    def add(name: str, value: float, **labels: str) -> None:
        page[name, frozenset((own | labels).items())] = value

    for metric in metrics:
        name = metric.name
        if isinstance(metric, Histogram):
            bounds = [*(repr(float(bound)) for bound in metric.bounds), "+Inf"]
            for bound, count in zip(bounds, accumulate(metric.counts), strict=True):
                add(f"{name}_bucket", count, le=bound)
            add(f"{name}_sum", metric.sum)
            add(f"{name}_count", sum(metric.counts))
            continue
        name += "_total" * (metric.kind == "counter")
        if isinstance(metric.values, int | float):
            add(name, metric.values)
        elif isinstance(metric.label, str):
            for key, value in metric.values.items():
                add(name, value, **{metric.label: str(key)})
        else:
            for key, value in metric.values.items():
                add(name, value, **dict(zip(metric.label, key, strict=True)))
    return page


def _read(text: str) -> Page:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    page = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(page) == len(samples), "a sample is there twice"
    return page


@given(_metrics(), st.none() | st.integers(1, 9))
@against("A09:2025", "V16.4")
def test_pieces_any_metrics_are_what_the_parser_reads(metrics: list[Metric], worker: int | None) -> None:
    text = "".join(pieces(metrics, worker))
    assert _read(text) == _expected(metrics, worker)
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds == {
        metric.name: "histogram" if isinstance(metric, Histogram) else metric.kind for metric in metrics
    }


@given(st.lists(_metrics(), max_size=4))
def test_joined_pages_have_all_samples_and_each_family_once(workers: list[list[Metric]]) -> None:
    joined = Joined()
    expected: Page = {}
    for worker, metrics in enumerate(workers, start=1):
        joined.add("".join(pieces(metrics, worker)).encode())
        expected |= _expected(metrics, worker)
    text = b"".join(joined.families()).decode()
    assert _read(text) == expected
    heads = [line for line in text.split("\n") if line.startswith(("# TYPE", "# HELP"))]
    names = [line.split(" ", 3)[1:3] for line in heads]
    assert len(heads) == len({tuple(name) for name in names}), "a family is there twice"


def test_pieces_of_many_tenants_are_many() -> None:
    values = {f"tenant-{number}": 1 for number in range(5000)}
    found = list(pieces([Value("gauge", "m", "text", values, "tenant")]))
    assert len(found) == 5
    assert len(_read("".join(found))) == 5000


def test_pieces_of_a_metric_in_parts_have_one_head() -> None:
    parts = [Value("counter", "m", "text", {tenant: 1}, "tenant") for tenant in "ab"]
    text = "".join(pieces([*parts, Value("counter", "m", "text", {}, "tenant"), gauge("n", "text", 2)]))
    assert text.count("# TYPE m_total counter\n") == 1
    assert len(_read(text)) == 3


def test_distribution_values_at_and_above_bounds_are_counted_in_their_bucket() -> None:
    sizes = Distribution((1, 2, 5))
    for size in (0, 1, 2, 3, 5, 6):
        sizes.add(size)
    assert sizes.metric("m", "text") == Histogram("m", "text", [2, 1, 2, 1], 17, (1, 2, 5))
    assert Distribution((1,)).counts == [0, 0]
