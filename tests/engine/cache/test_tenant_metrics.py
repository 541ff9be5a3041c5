"""The totals of tenants against the sums of their minutes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.cache.tenant_metrics import TenantMetrics
from engine.model.minutes import NO_TENANT, Minute
from engine.runtime.metrics import Value

_NAMES = {1: "acme", 2: "globex"}
_ADDED = st.tuples(st.sampled_from([NO_TENANT, 1, 2]), st.integers(0, 9), st.integers(0, 9))


@given(st.lists(st.lists(_ADDED)))
def test_tenant_metrics_are_the_sums_of_all_minutes(minutes: list[list[tuple[int, int, int]]]) -> None:
    metrics = TenantMetrics(_NAMES.get, lambda _: 0)
    items: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for minute in minutes:
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
    found = {metric.name: metric.values for metric in metrics.metrics() if isinstance(metric, Value)}
    assert found["tidemark_tenant_items"] == items
    syncs = found["tidemark_tenant_syncs"]
    assert isinstance(syncs, dict)
    assert {tenant: count for (tenant, outcome), count in syncs.items() if outcome == "failed"} == failed
    assert {count for (_, outcome), count in syncs.items() if outcome != "failed"} <= {0}
