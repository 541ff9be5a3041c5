"""What a simulated person does with a device: edits of every kind on records that others edit as well."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from bench.client.device import Device

#: Of each domain as delivered, what its ``status`` may be; the others have none.
_STATUSES: Final = {
    "task": ("ASSIGNED", "INPROGRESS", "PARTIALLYCOMPLETED", "STANDBY", "COMPLETED"),
    "ticket": ("NEW", "OPEN", "INPROGRESS", "ONHOLD", "RESOLVED"),
    "attendance": ("PENDING", "VERIFIED", "REJECTED", "CORRECTED"),
    "work_order": ("draft", "in_progress", "paused", "completed"),
}
DOMAINS: Final = (*_STATUSES, "journal")
_WORDS: Final = ("pump", "gate", "meter", "valve", "fence", "lamp", "roof", "door")


class Persona:
    """One person's way of working. ``pool`` is how many records of each domain the whole crew works on."""

    def __init__(self, name: str, random: Random, domains: tuple[str, ...], prefix: str, pool: int) -> None:
        self._name = name
        self._random = random
        self._domains = domains
        self._prefix = prefix
        self._pool = pool
        self._made = 0

    def edit(self, device: Device) -> int:
        """Make one edit; no two edits of a crew have the same content. Gives its number."""
        draw = self._random
        self._made += 1
        tag = f"{self._name} {self._made}"
        chance = draw.random()
        if chance < 0.03:
            return device.edit("metrics", f"{self._name}-{self._made}", "append", self._metric(tag))
        domain = draw.choice(self._domains)
        record_id = f"{self._prefix}-{draw.randrange(self._pool)}"
        shown = device.record(domain, record_id).data
        if shown is None:
            return device.edit(domain, record_id, "put", self._whole(domain, tag))
        if chance < 0.05:
            return device.edit(domain, record_id, "patch", {"status": "NO SUCH STATUS", "note": tag})
        if chance < 0.12:
            return device.edit(domain, record_id, "delete")
        field = draw.choice(["note", "place", "count"])
        value: Any = tag if field != "count" else f"{draw.randrange(1000)} by {tag}"
        if chance < 0.30:
            return device.edit(domain, record_id, "put", {**shown, field: value}, changed=[field])
        patch = {field: value}
        if chance < 0.45 and domain in _STATUSES:
            patch["status"] = draw.choice(_STATUSES[domain])
        return device.edit(domain, record_id, "patch", patch)

    def _whole(self, domain: str, tag: str) -> dict[str, Any]:
        data: dict[str, Any] = {"title": f"Check the {self._random.choice(_WORDS)}", "note": tag}
        if domain in _STATUSES:
            data["status"] = _STATUSES[domain][0]
        return data

    def _metric(self, tag: str) -> dict[str, Any]:
        return {"metric_name": "edits", "value": self._made, "timestamp": "2026-01-01T00:00:00Z", "by": tag}
