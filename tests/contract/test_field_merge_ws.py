"""Merging by field: what only one side changed takes that side, a clash falls to the fallback."""

from __future__ import annotations

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import Json, change, day, item

pytestmark = ON_SHARED

LATER, EARLIER = 7, 3

#: Version 1 of the phone, day 1: a, b, c are 1. Version 2 of the phone, day 5: a is 5. Then the tablet,
#: on version 1: the domain, its change, and who wins with what; None where it is held.
BY_FIELD: dict[str, tuple[str, Json, tuple[str, Json] | None]] = {
    "a field that only the client changed": (
        "form",
        change("patch", EARLIER, data={"b": 2}),
        ("client", {"a": 5, "b": 2, "c": 1}),
    ),
    "a field removed and one added": (
        "form",
        change("patch", EARLIER, data={"b": None, "d": 2}),
        ("client", {"a": 5, "c": 1, "d": 2}),
    ),
    "both changed one, the client earlier": (
        "form",
        change("patch", EARLIER, data={"a": 3, "b": 2}),
        ("merged", {"a": 5, "b": 2, "c": 1}),
    ),
    "both changed one, the client later": (
        "form",
        change("patch", LATER, data={"a": 3, "b": 2}),
        ("client", {"a": 3, "b": 2, "c": 1}),
    ),
    "nothing else changed, the client earlier": (
        "form",
        change("patch", EARLIER, data={"a": 3}),
        ("server", {"a": 5, "b": 1, "c": 1}),
    ),
    "equal values are no clash": (
        "form_manual",
        change("patch", EARLIER, data={"a": 5, "b": 2}),
        ("client", {"a": 5, "b": 2, "c": 1}),
    ),
    "a put that names what it changed": (
        "form",
        change("put", EARLIER, data={"a": 1, "b": 2, "c": 1}, changed=["b"]),
        ("merged", {"a": 5, "b": 2, "c": 1}),
    ),
    "a put that names what both changed": (
        "form",
        change("put", EARLIER, data={"a": 3, "b": 2, "c": 9}, changed=["a", "b"]),
        ("merged", {"a": 5, "b": 2, "c": 1}),
    ),
    "a put that names what it left out": (
        "form",
        change("put", EARLIER, data={"a": 1, "c": 1}, changed=["b"]),
        ("merged", {"a": 5, "c": 1}),
    ),
    "fallback manual": ("form_manual", change("patch", LATER, data={"a": 3, "b": 2}), None),
    "fallback manual, no clash": (
        "form_manual",
        change("patch", LATER, data={"b": 2}),
        ("client", {"a": 5, "b": 2, "c": 1}),
    ),
    "fallback manual, a put of everything": (
        "form_manual",
        change("put", LATER, data={"a": 1, "b": 2, "c": 1}),
        None,
    ),
    "fallback server_wins": (
        "form_server",
        change("patch", LATER, data={"a": 3, "b": 2}),
        ("merged", {"a": 5, "b": 2, "c": 1}),
    ),
    "fallback client_wins": (
        "form_client",
        change("patch", EARLIER, data={"a": 3, "b": 2}),
        ("client", {"a": 3, "b": 2, "c": 1}),
    ),
}


@pytest.mark.parametrize(("domain", "sent", "outcome"), BY_FIELD.values(), ids=BY_FIELD)
async def test_field_merge_each_case_has_its_outcome(
    shared: Running, domain: str, sent: Json, outcome: tuple[str, Json] | None
) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(
        item("put", domain, "r1", at=day(1), data={"a": 1, "b": 1, "c": 1}),
        item("patch", domain, "r1", base=1, at=day(5), data={"a": 5}),
    )
    (result,) = await tablet.push({"domain": domain, "id": "r1", "base": 1, **sent})
    if outcome is None:
        assert (result["status"], result["version"]) == ("conflict", 2)
        assert result["data"] == {"a": 5, "b": 1, "c": 1}
        return
    winner, data = outcome
    assert (result["status"], result["policy"]) == ("resolved", "field_merge")
    assert (result["winner"], result["data"]) == (winner, data)
    (stored,) = (await phone.pull())["changes"]
    assert stored["data"] == data
    assert stored["at"] == max(sent["at"], day(5))


async def test_field_merge_field_is_judged_by_its_own_last_change(shared: Running) -> None:
    """The record changed on day 9, the field on day 5: the client's of day 7 is the later one."""
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(
        item("put", "form", "r1", at=day(1), data={"a": 1, "b": 1}),
        item("patch", "form", "r1", base=1, at=day(5), data={"a": 5}),
        item("patch", "form", "r1", base=2, at=day(9), data={"b": 9}),
    )
    (result,) = await tablet.push(item("patch", "form", "r1", base=1, at=day(7), data={"a": 7, "b": 7}))
    assert (result["winner"], result["data"]) == ("merged", {"a": 7, "b": 9})
    assert (await phone.pull())["changes"][0]["at"] == day(9)


async def test_field_merge_own_later_edit_takes_its_own_field_under_every_fallback(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(item("put", "form_server", "r1", data={"a": 1, "b": 1}))
    await tablet.push(item("patch", "form_server", "r1", base=1, data={"a": 2}))
    await phone.push(item("patch", "form_server", "r1", base=2, data={"b": 2}))
    (result,) = await tablet.push(item("patch", "form_server", "r1", base=1, data={"a": 3, "c": 3}))
    assert (result["winner"], result["data"]) == ("client", {"a": 3, "b": 2, "c": 3})


async def test_field_merge_fallback_escalation_decides_by_field(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(
        item("put", "form_escalation", "r1", at=day(1), data={"a": 1, "status": "x"}),
        item("patch", "form_escalation", "r1", base=1, at=day(5), data={"a": 5, "status": "y"}),
    )
    (result,) = await tablet.push(
        item("patch", "form_escalation", "r1", base=1, at=day(3), data={"a": 3, "status": "z"})
    )
    assert (result["winner"], result["data"]) == ("merged", {"a": 3, "status": "y"})
