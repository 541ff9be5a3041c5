"""What the reference device keeps, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from bench.client.edits import Held, Message
from bench.client.messages import Change, Result
from bench.client.store import Store, StoreError
from engine.wire.messages import ItemError

FRAME = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "phone.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path, "phone", durability="NORMAL")
    yield opened
    opened.close()


def sealed(store: Store, items: int = 100, size: int = 1 << 16, frame: int = FRAME) -> Message:
    message = store.message(items, size, frame)
    assert message is not None
    return message


def items(message: Message) -> list[dict[str, Any]]:
    return [json.loads(item) for item in message.items]


def change(record_id: str, version: int, data: Any, seq: int = 0, files: bytes = b"") -> Change:
    return Change(
        domain="task",
        id=record_id,
        version=version,
        seq=seq,
        attachments=Raw(files),
        deleted=data is None,
        data=Raw(msgspec.json.encode(data)),
    )


def applied(version: int, **fields: Any) -> Result:
    return Result(status="applied", version=version, **fields)


def test_store_edit_shown_at_once_on_top_of_the_replica(store: Store) -> None:
    store.page([change("a", 3, {"x": 1, "y": 1})], "c1", last=True)
    store.edit("task", "a", "patch", {"x": 2, "y": None}, 10)
    store.edit("task", "a", "patch", {"z": 3}, 20)
    assert store.record("task", "a") == (3, {"x": 2, "z": 3}, 2)
    store.page([change("a", 4, {"x": 9, "w": 9})], "c2", last=True)
    assert store.record("task", "a") == (4, {"x": 2, "z": 3, "w": 9}, 2)
    store.edit("task", "a", "delete", None, 30)
    assert store.record("task", "a") == (4, None, 3)


def test_store_chain_keeps_its_first_base_and_never_goes_back_in_time(store: Store) -> None:
    store.page([change("a", 3, {})], "c1", last=True)
    store.edit("task", "a", "patch", {"x": 1}, 2_000_000)
    store.page([change("a", 4, {})], "c2", last=True)
    store.edit("task", "a", "patch", {"x": 2}, 1_000_000)
    store.edit("task", "b", "put", {}, 0)
    found = [(item["id"], item["base"], item["at"]) for item in items(sealed(store))]
    late = "1970-01-01T00:00:02Z"
    assert found == [("a", 3, late), ("a", 3, late), ("b", None, "1970-01-01T00:00:00Z")]


def test_store_message_repeats_key_and_bytes_until_answered(store: Store, path: Path) -> None:
    store.edit("task", "a", "put", {"x": 1}, 0)
    first = sealed(store)
    store.edit("task", "a", "patch", {"x": 2}, 1)
    store.close()
    again = Store(path, "phone")
    assert sealed(again) == first
    again.settle(first.key, [applied(1)])
    second = sealed(again)
    assert second.key != first.key
    assert [item["data"] for item in items(second)] == [{"x": 2}]
    again.close()


def test_store_messages_behind_one_another_keep_order_until_answered(store: Store) -> None:
    for number in range(3):
        store.edit("task", f"r{number}", "put", {"n": number}, 0)
    first = sealed(store, items=1)
    second = store.message(1, 1 << 16, FRAME, first.last)
    assert second is not None
    third = store.message(1, 1 << 16, FRAME, second.last)
    assert third is not None
    assert [item["data"]["n"] for one in (first, second, third) for item in items(one)] == [0, 1, 2]
    assert store.message(1, 1 << 16, FRAME, third.last) is None
    store.settle(second.key, [applied(1)])
    assert sealed(store) == first
    assert store.message(1, 1 << 16, FRAME, first.last) == third


def test_store_edit_of_a_record_not_known_has_no_base(store: Store) -> None:
    store.page([change("a", 3, {"x": 1})], "c", last=True)
    store.edit("task", "a", "put", {"x": 2}, 0, known=False)
    assert items(sealed(store))[0]["base"] is None


def test_store_message_bounded_by_items_and_bytes(store: Store) -> None:
    for number in range(5):
        store.edit("task", f"r{number}", "put", {"text": "x" * 400}, 0)
    assert len(sealed(store, items=2).items) == 2
    store.settle(sealed(store).key, [applied(1), applied(1)])
    assert len(sealed(store, size=900).items) == 1


def test_store_item_larger_than_a_frame_set_aside(store: Store) -> None:
    store.edit("task", "large", "put", {"text": "x" * 5000}, 0)
    store.edit("task", "small", "put", {}, 0)
    assert [item["id"] for item in items(sealed(store, items=1, frame=2000))] == ["small"]
    assert [(one.code, json.loads(one.item)["id"]) for one in store.rejected] == [("too_large", "large")]


@pytest.mark.parametrize("value", [float("nan"), 1 << 63, "a\0b", {1: 2}, b"", [[[float("inf")]]]], ids=repr)
def test_store_data_that_json_cannot_carry_refused(store: Store, value: object) -> None:
    with pytest.raises(ValueError, match="data holds"):
        store.edit("task", "a", "put", {"value": value}, 0)
    assert store.waiting == 0


def test_store_data_nested_too_deep_refused(store: Store) -> None:
    data: dict[str, Any] = {}
    for _ in range(28):
        data = {"in": data}
    store.edit("task", "a", "put", data, 0)
    with pytest.raises(ValueError, match="nested deeper"):
        store.edit("task", "a", "put", {"in": data}, 0)


def test_store_version_not_above_its_own_ignored(store: Store) -> None:
    store.page([change("a", 2, {"x": 2})], "c1", last=True)
    store.page([change("a", 2, {"x": "again"}), change("a", 1, {"x": 1})], "c2", last=True)
    assert store.replica() == [("task", "a", 2, b'{"x":2}')]
    assert store.cursor == "c2"


def test_store_answer_before_or_after_its_page_ends_the_same(store: Store) -> None:
    store.page([change("a", 1, {"x": 1})], "c1", last=True)
    store.edit("task", "a", "patch", {"y": 2}, 0)
    key = sealed(store).key
    store.page([change("a", 2, {"x": 1, "y": 2}), change("a", 3, {"x": 3})], "c2", last=True)
    store.settle(key, [applied(2)])
    assert store.record("task", "a") == (3, {"x": 3}, 0)


def test_store_patch_result_computed_if_base_is_held(store: Store) -> None:
    store.page([change("a", 1, {"x": 1})], "c1", last=True)
    store.edit("task", "a", "patch", {"y": 2}, 0)
    assert store.settle(sealed(store).key, [applied(2)])[1] is False
    assert store.record("task", "a") == (2, {"x": 1, "y": 2}, 0)


@pytest.mark.parametrize("status", ["applied", "resolved", "conflict", "unchanged"])
def test_store_outcome_without_data_sets_the_cursor_back(store: Store, status: Any) -> None:
    store.page([change("a", 1, {"x": 1})], "before", last=True)
    store.edit("task", "a", "patch", {"y": 2}, 0)
    key = sealed(store).key
    store.page([], "after", last=True)
    _, set_back = store.settle(key, [Result(status=status, version=3)])
    assert set_back
    assert store.cursor == "before"
    assert store.waiting == 0


def test_store_new_history_drops_missing_records_and_takes_lower_versions(store: Store) -> None:
    store.page([change("a", 9, {"x": "old"}), change("b", 1, {})], "c1", last=True)
    store.start_over()
    assert store.cursor is None
    assert store.record("task", "b").data == {}
    store.page([change("a", 2, {"x": "new"})], "d1", last=False)
    assert len(store.replica()) == 2
    store.page([], "d2", last=True)
    assert store.replica() == [("task", "a", 2, b'{"x":"new"}')]


def test_store_answer_during_a_new_history_belongs_to_it(store: Store) -> None:
    store.page([change("a", 9, {"x": "old"})], "c1", last=True)
    store.start_over()
    store.edit("task", "a", "put", {"x": "mine"}, 0)
    store.settle(sealed(store).key, [applied(3)])
    store.page([], "d1", last=True)
    assert store.record("task", "a") == (3, {"x": "mine"}, 0)


def test_store_patch_on_a_record_of_the_old_history_not_computed(store: Store) -> None:
    store.page([change("a", 2, {"x": "old"})], "c1", last=True)
    store.start_over()
    store.edit("task", "a", "patch", {"y": 1}, 0)
    assert store.settle(sealed(store).key, [applied(3)])[1] is True


def test_store_set_of_domains_has_its_own_cursor_and_sweep(path: Path, store: Store) -> None:
    store.page([change("a", 1, {})], "of all", last=True)
    other = Store(path, "phone", domains=["ticket"])
    assert other.cursor is None
    other.start_over()
    other.page([], "of tickets", last=True)
    other.close()
    assert store.cursor == "of all"
    assert len(store.replica()) == 1


def test_store_rejected_edit_kept_and_others_go_on(store: Store) -> None:
    store.edit("task", "a", "put", {"x": 1}, 0)
    store.edit("task", "b", "put", {"x": 2}, 0)
    error = ItemError("invalid_item", "data.x is wrong")
    store.settle(sealed(store).key, [Result(status="rejected", error=error), applied(1)])
    [kept] = store.rejected
    assert (kept.code, kept.message) == ("invalid_item", "data.x is wrong")
    assert json.loads(kept.item)["data"] == {"x": 1}
    assert store.record("task", "a") == (None, None, 0)
    assert store.record("task", "b") == (1, {"x": 2}, 0)


def test_store_held_change_kept_beside_the_servers_record(store: Store) -> None:
    store.edit("note", "a", "patch", {"x": 1}, 0)
    held = Result(status="conflict", version=4, conflict_id="c", data=Raw(b'{"y":2}'))
    store.settle(sealed(store).key, [held])
    [conflict] = store.conflicts
    assert conflict == Held("c", "note", "a", 4, b'{"y":2}', b'{"y":2,"x":1}', 1)
    assert store.record("note", "a") == (4, {"y": 2}, 0)
    store.remember([], [])
    assert store.conflicts == [conflict]
    store.remember([], [conflict])
    assert store.conflicts == []


def test_store_held_changes_of_one_conflict_shown_in_order(store: Store) -> None:
    for data in ({"x": None}, {"x": {"z": 1}}):
        store.edit("note", "a", "patch", data, 0)
    held = Result(status="conflict", version=4, conflict_id="c", data=Raw(b'{"x":{"y":2}}'))
    store.settle(sealed(store).key, [held, held])
    [conflict] = store.conflicts
    assert conflict == Held("c", "note", "a", 4, b'{"x":{"y":2}}', b'{"x":{"z":1}}', 2)


def test_store_refused_message_split_until_bad_item_set_aside(store: Store) -> None:
    for name in ("a", "b"):
        store.edit("task", name, "put", {}, 0)
    whole = sealed(store)
    store.refuse(whole.key, "invalid_message", "no")
    part = sealed(store, items=1)
    assert part.key != whole.key
    store.refuse(part.key, "invalid_message", "no")
    assert [json.loads(one.item)["id"] for one in store.rejected] == ["a"]
    assert [item["id"] for item in items(sealed(store))] == ["b"]


def test_store_file_of_another_device_refused(path: Path, store: Store) -> None:
    with pytest.raises(StoreError, match="belongs to the device phone"):
        Store(path, "tablet")
    assert store.waiting == 0
