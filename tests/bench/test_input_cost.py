"""What becomes of each kind of input that the bench measures; the times are nobody's here."""

from __future__ import annotations

import pytest

from bench.tools.input_cost import kinds, measure

#: Kinds that are refused, by encoding; all others are stored.
REFUSED = {
    ("empty objects", "json"): "malformed",
    ("deep arrays", "json"): "malformed",
    ("lone surrogates", "json"): "invalid_item",
    ("300,000 domains", "json"): "invalid_message",
    ("faulty items", "json"): "invalid_item",
    ("too many items", "json"): "too_large",
    ("items that are none", "json"): "too_large",
    ("empty arrays", "msgpack"): "malformed",
    ("empty objects", "msgpack"): "malformed",
    ("deep arrays", "msgpack"): "malformed",
    ("deep objects", "msgpack"): "malformed",
    ("unknown member", "msgpack"): "malformed",
    ("resolve", "msgpack"): "malformed",
    ("300,000 domains", "msgpack"): "invalid_message",
    ("faulty items", "msgpack"): "invalid_item",
    ("too many items", "msgpack"): "too_large",
    ("items that are none", "msgpack"): "too_large",
}


@pytest.mark.slow
def test_input_cost_kinds_are_stored_or_refused_as_the_bounds_say() -> None:
    found = {(kind.name, kind.codec.name): measure(kind, 1).refused for kind in kinds()}
    assert {kind: code for kind, code in found.items() if code} == REFUSED
    assert len(found) > 2 * 20


def test_input_cost_every_stage_of_the_bench_takes_time() -> None:
    kind = next(kinds())
    assert (kind.name, kind.codec.name) == ("bench", "json")
    cost = measure(kind, 1)
    assert all(cost.stages.values()), cost.stages
    assert cost.total == sum(cost.stages.values())
