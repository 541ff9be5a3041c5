"""The records, the change of another device and the item that meets it: every kind of conflict in turn."""

from __future__ import annotations

from itertools import product
from typing import Any, Final, Literal, NamedTuple

from bench.conflicts.oracle import Item, Record, Server, patched

#: Seconds after midnight of the day that all is dated: when the record was made, and when it was changed.
MADE_S, CHANGED_S = 3600, 7200
#: The device's change is an hour earlier or later than the other one's.
_APART_S: Final = 3600

_OPS: Final[tuple[Literal["patch", "put", "put all", "delete"], ...]] = ("patch", "put", "put all", "delete")
#: Kind of item; later than the other change; on the same field; on a tombstone, which no delete meets.
VARIANTS: Final = tuple(
    variant
    for variant in product(_OPS, (False, True), (False, True), (False, True))
    if not (variant[0] == "delete" and variant[3])
)


class Case(NamedTuple):
    """One conflict."""

    made: Record
    change: Record | None
    server: Server
    item: Item


def case_of(number: int) -> Case:
    """Make conflict ``number``; any two differ in their data."""
    op, later, same_field, deleted = VARIANTS[number % len(VARIANTS)]
    made = {
        "title": f"Check pump {number}",
        "note": "as it was made",
        "place": "gate B",
        "status": "ASSIGNED",
        "escalation_level": 0,
    }
    change = {"note": f"changed at the office {number}", "status": "INPROGRESS", "escalation_level": 2}
    stands = patched(made, change)
    server = (
        Server(None, CHANGED_S, frozenset(), made)
        if deleted
        else Server(stands, CHANGED_S, frozenset(change))
    )
    at_s = CHANGED_S + (_APART_S if later else -_APART_S) // 2
    mine: Record = {"note" if same_field else "place": f"changed in the field {number}"}
    if same_field:
        mine["escalation_level"] = 1
    match op:
        case "patch":
            item = Item("patch", at_s, mine)
        case "put":
            item = Item("put", at_s, {**made, **mine}, tuple(mine))
        case "put all":
            item = Item("put", at_s, {**made, **mine})
        case "delete":
            item = Item("delete", at_s)
    return Case(made, None if deleted else change, server, item)


def at_text(at_s: int) -> str:
    """Write a time of the day that all is dated."""
    return f"2026-03-01T{at_s // 3600:02}:{at_s // 60 % 60:02}:{at_s % 60:02}Z"


def sent(record_id: str, item: Item, base: int | None) -> dict[str, Any]:
    """Write an item as the contract has it."""
    found: dict[str, Any] = {"domain": "task", "id": record_id, "op": item.op, "base": base}
    found["at"] = at_text(item.at_s)
    if item.op != "delete":
        found["data"] = item.data
    if item.changed is not None:
        found["changed"] = list(item.changed)
    return found
