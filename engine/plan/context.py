"""What a batch is judged by: domains, policies, limits, and where new ids come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from engine.model.domains import DomainPolicy, Domains
from engine.model.merge import Fields
from engine.model.rows import TenantUsage
from engine.plan.answers import KEPT_DATA_BYTES

Policies = Mapping[str, DomainPolicy]

#: Top-level fields of a record. Each change looks at all of them, 0.5 µs each where they are merged by field.
MAX_FIELDS: Final = 1000


class PlanContext(msgspec.Struct, frozen=True):
    """What a plan needs besides jobs and rows.

    ``policies`` gives a tenant's policies by domain from memory; ``new_id`` makes ids of conflicts and
    quarantined items; ``record_bytes`` bounds a stored record or event, ``answer_data_bytes`` the
    ``data`` in one answer. ``tombstone_data`` says that the last data of a deleted record are kept.
    ``bounds`` are what a tenant may hold, None for whatever it wants; ``full`` says in a sentence that nobody
    is to store more.
    ``kept_data_bytes`` is as ``engine.plan.answers.KEPT_DATA_BYTES``. ``record_fields`` bounds the
    top-level fields of a record; one that has more from before the bound is changed as long as it gains none.
    """

    domains: Domains
    policies: Callable[[int], Policies]
    new_id: Callable[[], str]
    record_bytes: int
    answer_data_bytes: int
    tombstone_data: bool = True
    bounds: TenantUsage | None = None
    full: Callable[[], str | None] = lambda: None
    kept_data_bytes: int = KEPT_DATA_BYTES
    record_fields: int = MAX_FIELDS

    def as_of_now(self, tenants: Iterable[int]) -> PlanContext:
        """Hold the policies of some tenants still, so that a batch decides by those it looked up for."""
        policies = {tenant: self.policies(tenant) for tenant in tenants}
        return msgspec.structs.replace(self, policies=policies.__getitem__)

    def violation(
        self, domain: str, outcome: Fields, standing: Fields | None, data: bytes
    ) -> tuple[str, str] | None:
        """Return (code, sentence) for an outcome that may not be stored, ``data`` being its JSON."""
        rules = self.domains.rules[domain]
        violation = rules.violation(outcome, standing)
        if violation is not None:
            return "invalid_item", violation
        if len(outcome) > self.record_fields and rules.is_record and len(outcome) > len(standing or ()):
            return too_many_fields(len(outcome), self.record_fields)
        if len(data) > self.record_bytes:
            return "too_large", f"{len(data)} bytes as stored, the limit is {self.record_bytes}"
        return None


def too_many_fields(count: int, most: int) -> tuple[str, str]:
    """Return (code, sentence) for a record with more top-level fields than it may have."""
    return "too_large", f"data: {count} fields, the limit is {most}: put some of them into objects"
