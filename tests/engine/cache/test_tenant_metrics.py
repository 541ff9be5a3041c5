"""The totals of tenants against the sums of their minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import tenant_metrics
from engine.cache.tenant_metrics import TenantMetrics
from engine.model.minutes import NO_TENANT, Minute
from engine.runtime.metrics import Value

_NAMES = {1: "acme", 2: "globex", 3: "initech"}
_ADDED = st.tuples(st.sampled_from([NO_TENANT, 1, 2, 3]), st.integers(0, 9), st.integers(0, 9))


@pytest.fixture(autouse=True, scope="module")
def _small_slices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenant_metrics, "_SLICE", 2)
        yield


@given(st.lists(st.tuples(st.lists(_ADDED), st.booleans())))
def test_tenant_metrics_are_the_sums_of_all_minutes(
    minutes: list[tuple[list[tuple[int, int, int]], bool]],
) -> None:
    metrics = TenantMetrics(_NAMES.get, lambda _: 0)
    items: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for minute, is_scraped in minutes:
        present: dict[int, Minute] = {}
        metrics.begin(present)
        for tenant_id, added, failures in minute:
            one = present.setdefault(tenant_id, Minute())
            one.items += added
            one.syncs += failures
            one.failed += failures
            if tenant_id in _NAMES:
                items[_NAMES[tenant_id]] += added
                failed[_NAMES[tenant_id]] += failures
        if is_scraped:
            list(metrics.metrics())
    found: dict[tuple[str, ...], float] = {}
    for metric in metrics.metrics():
        assert isinstance(metric, Value)
        assert isinstance(metric.values, dict)
        for key, value in metric.values.items():
            labels = key if isinstance(key, tuple) else (key,)
            assert (metric.name, *labels) not in found, "a sample is there twice"
            found[metric.name, *labels] = value
    assert {one[1]: value for one, value in found.items() if one[0] == "tidemark_tenant_items"} == items
    syncs = {one[1:]: value for one, value in found.items() if one[0] == "tidemark_tenant_syncs"}
    assert {tenant: count for (tenant, outcome), count in syncs.items() if outcome == "failed"} == failed
    assert {count for (_, outcome), count in syncs.items() if outcome != "failed"} <= {0}


def test_tenant_metrics_that_nobody_scrapes_keep_few_minutes() -> None:
    metrics = TenantMetrics(_NAMES.get, lambda _: 0)
    for _ in range(20):
        metrics.begin({1: Minute(), 2: Minute(), 3: Minute()})
    assert len(metrics._ended) == 3


def test_tenant_metrics_minute_that_ends_during_a_page_is_counted_once() -> None:
    metrics = TenantMetrics(_NAMES.get, lambda _: 0)
    metrics.begin({tenant_id: Minute(items=5) for tenant_id in _NAMES})
    page, other = metrics.metrics(), metrics.metrics()
    next(one for one in page if isinstance(one, Value) and one.values)
    metrics.begin({})
    next(other)
    items = [one.values for one in page if isinstance(one, Value) and one.name == "tidemark_tenant_items"]
    assert items == [{"acme": 5, "globex": 5}, {"initech": 5}]
