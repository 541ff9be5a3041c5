"""Rows of a batch's statement by name: each kind reads what its SELECT list puts into the shared columns."""

from __future__ import annotations

from typing import Any

import pytest

from engine.wire.steps import run_steps
from storage.stores.commit import rows
from storage.stores.commit.rows import (
    AnswerRow,
    CounterRow,
    EventRow,
    RecordRow,
    TombstoneRow,
    select,
    snapshot_steps,
)
from storage.stores.sealed.sealing import Sealing

_KINDS = [kind for kind, _ in rows._KINDS]


def _row(kind: type[Any], **values: object) -> tuple[Any, ...]:
    """Return a row of the statement as PostgreSQL gives it, by the SELECT list of its kind."""
    names = [name for name in kind._fields if name != "number"]
    expressions = select(kind, **{name: f"<{name}>" for name in names}).removeprefix("SELECT ").split(", ")
    return (int(expressions[0]), *[values.get(one.strip("<>")) for one in expressions[1:]])


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__)
def test_select_every_kind_has_the_same_columns_and_types(kind: type[Any]) -> None:
    names = [name for name in kind._fields if name != "number"]
    columns = select(kind, **dict.fromkeys(names, "x")).removeprefix("SELECT ").split(", ")
    assert len(columns) == len(RecordRow._fields)
    assert columns.count("x") == len(names)
    padding = [column for column in columns[1:] if column != "x"]
    assert set(padding) <= {"NULL::text", "NULL::bigint"}


def test_select_missing_or_unknown_field_is_an_error() -> None:
    with pytest.raises(AssertionError, match="CounterRow"):
        select(CounterRow, tenant_id="t", seq="s", day="d")
    with pytest.raises(AssertionError, match="CounterRow"):
        select(CounterRow, tenant_id="t", seq="s", day="d", usage="u", more="m")


def test_snapshot_of_rows_of_several_kinds_reads_each_by_name() -> None:
    record = {
        "tenant_id": 1,
        "domain": "task",
        "version": 3,
        "seq": 9,
        "at_us": 10,
        "chain_from": 2,
        "data": "{}",
    }
    found = run_steps(
        snapshot_steps(
            [
                _row(
                    CounterRow,
                    tenant_id=1,
                    seq=9,
                    hour=480_000,
                    counted_hour=479_999,
                    usage=None,
                    counts="[]",
                ),
                _row(RecordRow, **record, id="a", device_id="phone", sent_at_us=11),
                _row(TombstoneRow, **record, id="b"),
                _row(
                    EventRow,
                    tenant_id=1,
                    domain="log",
                    id="e",
                    sent_at_us=5,
                    at_us=6,
                    device_id="phone",
                    data="[]",
                ),
                _row(AnswerRow, tenant_id=1, key_hash="00-1f", request_sha256="ab", age_s=7, results="[1]"),
                _row(AnswerRow, tenant_id=1, key_hash="00-1f", request_sha256="cd", age_s=3, results="[2]"),
            ],
            Sealing(),
        )
    )
    assert (found.seqs, found.hour, found.counted) == ({1: 9}, 480_000, {1: (479_999, "[]")})
    (alive, dead) = found.records.values()
    assert (alive.data, alive.last_data, alive.device_id, alive.sent_at_us) == (b"{}", None, "phone", 11)
    assert (dead.data, dead.last_data) == (None, b"{}")
    assert {key.id for key in found.tombstones} == {"b"}
    (event,) = found.events.values()
    assert (event.sent_at_us, event.at_us, event.device_id) == (5, 6, "phone")
    (answer,) = found.keys.values()
    assert (answer.key_hash, answer.request_sha256, answer.results) == ("001f", "cd", b"[2]"), "the latest"
