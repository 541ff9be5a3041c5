"""The table of the kinds of work."""

from __future__ import annotations

from typing import get_args

from engine.plan.kinds import KINDS
from engine.plan.work import Attach, Push, RejectedItem, Work


def test_kinds_every_kind_of_work_has_a_row() -> None:
    assert set(KINDS) == set(get_args(Work))


def test_kinds_size_is_items_and_sent_bytes() -> None:
    push = Push(
        1, "phone", "s", "k", "sha", False, [RejectedItem("task", "a", "x", "y")] * 3, b"12345", "json", 0
    )
    assert KINDS[Push].size(push) == (3, 5)
    file = Attach(1, "phone", "task", "a", "u", b"{}", 0)
    assert KINDS[Attach].size(file) == (1, 2)


def test_kinds_with_items_rejected_ends_after_once() -> None:
    """A message whose items are all rejected already is not tried again, or it would be for ever."""
    kind = KINDS[Push]
    push = Push(1, "phone", "s", "k", "sha", False, [RejectedItem("task", "a", "x", "y")], b"[]", "json", 0)
    assert kind.with_items_rejected(push, "no") is None
    file = Attach(1, "phone", "task", "a", "u", None, 0)
    assert KINDS[Attach].with_items_rejected(file, "no") is None
