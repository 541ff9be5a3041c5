"""What a device sends in a run with faults: a few edits of records that the whole tenant edits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from bench.faults.account import MARK
from bench.faults.history import Item

#: Policies by domain, of every second tenant in turn; what is missing stands as delivered.
POLICIES: Final[tuple[dict[str, tuple[str, str]], ...]] = (
    {"work_order": ("field_merge", "most_recent_wins")},
    {"journal": ("manual", "most_recent_wins"), "task": ("field_merge", "manual")},
)
_STATUSES: Final = {
    "task": ("ASSIGNED", "INPROGRESS", "STANDBY", "COMPLETED"),
    "ticket": ("NEW", "OPEN", "INPROGRESS", "ONHOLD"),
    "attendance": ("PENDING", "VERIFIED", "REJECTED"),
    "work_order": ("draft", "in_progress", "paused"),
}
_DOMAINS: Final = (*_STATUSES, "journal")
_MOST_ITEMS: Final = 5
#: Records of each domain that a tenant's devices share.
_POOL: Final = 12


class Worker:
    """One device's way of working, drawn from ``random`` alone; the times of edits are the clock's."""

    def __init__(self, name: str, tenant: str, random: Random) -> None:
        self._name = name
        self._tenant = tenant
        self._random = random
        self._made = 0

    def items(self, versions: Mapping[tuple[str, str], int]) -> list[Item]:
        """Make the items of one sync, on the versions that the device holds."""
        draw = self._random
        return [self._item(draw, versions) for _ in range(draw.randint(1, _MOST_ITEMS))]

    def _item(self, draw: Random, versions: Mapping[tuple[str, str], int]) -> Item:
        self._made += 1
        by = f"{self._name} {self._made}"
        at = datetime.now(UTC).isoformat()
        chance = draw.random()
        data: dict[str, Any] = {MARK: self._tenant, "by": by}
        if chance < 0.1:
            metric = {"metric_name": "edits", "value": self._made, "timestamp": at}
            return Item("metrics", by.replace(" ", "-"), "append", at, data={**data, **metric})
        domain, record_id = draw.choice(_DOMAINS), f"r{draw.randrange(_POOL)}"
        base = versions.get((domain, record_id))
        if chance < 0.2:
            return Item(domain, record_id, "delete", at, base)
        if chance < 0.3:
            base = None  # as a device that has never heard of the record
        if domain in _STATUSES and (chance < 0.5 or base is None):
            data["status"] = draw.choice(_STATUSES[domain])
        field = draw.choice(("note", "place", "count"))
        if chance < 0.65:
            return Item(domain, record_id, "put", at, base, {**data, field: self._made})
        removed = {draw.choice(("note", "place")): None} if chance > 0.95 else {}
        return Item(domain, record_id, "patch", at, base, {**data, field: self._made, **removed})
