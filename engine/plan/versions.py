"""What a new version stores besides its data: field versions, and the last data before a deletion."""

from __future__ import annotations

from engine.model.domains import DomainPolicy
from engine.model.merge import Fields, FieldVersions, Sent, advance, versions_of
from engine.model.rows import Record
from engine.plan.context import PlanContext
from engine.plan.own_order import is_own


def next_versions(
    policy: DomainPolicy,
    row: Record,
    before: Fields | None,
    after: Fields | None,
    at_us: int,
    sent: Sent | None = None,
) -> bytes | None:
    """Return the field versions after a write, as JSON. None if the policy is not ``field_merge``.

    Args:
        policy: The policy of the domain.
        row: The record before the write.
        before: Its data, None for a tombstone.
        after: The data that are written, None for a tombstone.
        at_us: When the change was made, corrected.
        sent: The device that made it, and when by its own clock. None for a person's decision.
    """
    if policy.policy != "field_merge":
        return None
    return advance(known_versions(row), before, after, row.version + 1, at_us, sent)


def known_versions(row: Record) -> FieldVersions:
    """Return the field versions of a record."""
    sent = None
    if row.device_id is not None and row.sent_at_us is not None and is_own(row, row.device_id):
        sent = Sent(row.device_id, row.sent_at_us)
    return versions_of(row.fields, row.version, row.at_us, sent)


def last_data(context: PlanContext, row: Record, data: bytes | None) -> bytes | None:
    """Return the last data to store when ``data`` replace a record's data: None unless it is deleted."""
    return row.patch_base if data is None and context.tombstone_data else None
