"""Which fields of a conflict differ, against what a person would say with both sides in hand."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.operate.conflict_view import differences

VALUES = st.sampled_from(
    [0, 1, 1.0, True, None, "", "1", [], [1], [True], {}, {"a": 1, "b": 2}, {"b": 2, "a": 1}]
)
SIDES = st.none() | st.dictionaries(st.sampled_from("abc"), VALUES)


def written(side: dict[str, Any] | None, field: str) -> str | None:
    """The field as it would be written down; None where the side has none."""
    return None if side is None or field not in side else json.dumps(side[field], sort_keys=True)


@given(SIDES, SIDES)
def test_differences_field_differs_if_it_would_be_written_otherwise(
    server: dict[str, Any] | None, client: dict[str, Any] | None
) -> None:
    expected = [field for field in "abc" if written(server, field) != written(client, field)]
    found = differences(server, client)
    assert [one.field for one in found] == expected
    for one in found:
        told = msgspec.to_builtins(one)
        assert written(told, "server") == written(server, one.field)
        assert written(told, "client") == written(client, one.field)
