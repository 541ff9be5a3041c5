"""The context of a plan: domains, policies, limits, and the source of new ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from engine.model.domains import DomainPolicy, Domains
from engine.model.merge import Fields
from engine.model.rows import KEYED_CHARS, TenantUsage
from engine.plan.answers import KEPT_DATA_BYTES
from engine.plan.work import Change, RejectedItem

Policies = Mapping[str, DomainPolicy]

#: The most top-level fields of a record. A change compares all of them, 0.5 µs each with ``field_merge``.
MAX_FIELDS: Final = 1000


class PlanContext(msgspec.Struct, frozen=True):
    """What a plan needs besides work and rows.

    Attributes:
        domains: The configured domains.
        policies: Returns a tenant's policies by domain, from memory.
        new_id: Returns a new id for a conflict or a quarantined item.
        record_bytes: The most bytes of a stored record or event.
        answer_data_bytes: The most bytes of ``data`` in one answer.
        tombstone_data: Whether the last data of a deleted record are kept.
        bounds: What a tenant may hold, None for no limits.
        full: Returns the reason why nobody can store more now, None if there is none.
        kept_data_bytes: ``engine.plan.answers.KEPT_DATA_BYTES``.
        unsealed_domains: Returns the domains that are stored plain, None if nothing is sealed. An answer
            to items of other domains is ``personal``.
        keyed_request: Returns the hash of a request by the key of a tenant that made a stored hash, None
            without a key. It takes the tenant, the stored hash and the plain one. That key is in memory if
            such an answer was read.
        record_fields: The most top-level fields of a record. A record that had more before this limit can
            still be changed, as long as it does not get more.
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
    unsealed_domains: Callable[[], frozenset[str] | None] = lambda: None
    keyed_request: Callable[[int, str, str], str | None] = lambda *_: None

    def as_of_now(self, tenants: Iterable[int]) -> PlanContext:
        """Return a context whose policies of some tenants are fixed for the time of a batch."""
        policies = {tenant: self.policies(tenant) for tenant in tenants}
        return msgspec.structs.replace(self, policies=policies.__getitem__)

    def is_same_request(self, tenant_id: int, stored: str, request_sha256: str) -> bool:
        """Return whether a message is the one whose hash is stored, plain or made with a key.

        Without the key nobody can tell. The key of the message then says that it is: an answer that was given
        is given again.
        """
        if stored == request_sha256 or len(stored) != KEYED_CHARS:
            return stored == request_sha256
        keyed = self.keyed_request(tenant_id, stored, request_sha256)
        return keyed is None or keyed == stored

    def is_personal(self, items: Iterable[Change | RejectedItem]) -> bool:
        """Return whether the answer to items is ``personal``."""
        unsealed = self.unsealed_domains()
        if unsealed is None:
            return False
        for item in items:  # noqa: SIM110  # any() costs three times as much for one item
            if item.domain not in unsealed:
                return True
        return False

    def violation(
        self, domain: str, outcome: Fields, current: Fields | None, data: bytes
    ) -> tuple[str, str] | None:
        """Return the rule that an outcome breaks.

        Args:
            domain: The domain's name.
            outcome: The record's data if the change is stored.
            current: The record's data now, None if there are none.
            data: ``outcome`` as JSON.

        Returns:
            A code of ``ERRORS`` and a sentence, None if the outcome may be stored.
        """
        rules = self.domains.rules[domain]
        violation = rules.violation(outcome, current)
        if violation is not None:
            return "invalid_item", violation
        if len(outcome) > self.record_fields and rules.is_record and len(outcome) > len(current or ()):
            return too_many_fields(len(outcome), self.record_fields)
        if len(data) > self.record_bytes:
            return "too_large", f"{len(data)} bytes as stored, the limit is {self.record_bytes}"
        return None


def too_many_fields(count: int, most: int) -> tuple[str, str]:
    """Return the code and the sentence for a record with too many top-level fields."""
    return "too_large", f"data: {count} fields, the limit is {most}: put some of them into objects"
