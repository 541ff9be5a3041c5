"""Security events: who did what to which target. docs/audit-events.md is made of this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

#: ``account`` is an account of the system and its host, ``user`` the ``sub`` of a token, ``device`` the
#: device of a token without one. ``address`` is a client whose token was not verified.
ActorKind = Literal["account", "user", "device", "address", "server"]
EventName = Literal[
    "tenant_added",
    "tenant_removed",
    "policy_set",
    "policy_unset",
    "device_revoked",
    "device_restored",
    "token_revoked",
    "conflict_resolved",
    "quarantine_retried",
    "quarantine_dropped",
    "data_exported",
    "epoch_renewed",
]


class Actor(NamedTuple):
    """Who caused an event."""

    kind: ActorKind
    name: str


class EventRule(NamedTuple):
    """One kind of event, as it is documented."""

    target: str
    details: str
    meaning: str


#: Every event that the audit log can have, by its name.
EVENTS: Final[Mapping[EventName, EventRule]] = {
    "tenant_added": EventRule("the tenant", "", "A tenant was added"),
    "tenant_removed": EventRule(
        "the tenant", "`erased`: whether data were erased with it", "A tenant was removed"
    ),
    "policy_set": EventRule(
        "the domain",
        "`policy`, `fallback`; `before`: the policy of the tenant until then, null if it had none",
        "A tenant got a conflict policy of its own",
    ),
    "policy_unset": EventRule(
        "the domain", "", "A tenant lost its own conflict policy, and has that of the settings"
    ),
    "device_revoked": EventRule("the device", "", "A device was revoked"),
    "device_restored": EventRule("the device", "", "The revocation of a device was undone"),
    "token_revoked": EventRule(
        "the `jti`", "", "Tokens were revoked: of the tenant, or without one of all tenants and people"
    ),
    "conflict_resolved": EventRule(
        "the conflict",
        "`domain`, `record_id`, `choice`, `version`: the version that was written",
        "A person settled a conflict, by a command or on a device",
    ),
    "quarantine_retried": EventRule(
        "the rejected item", "", "A person sent a rejected item again, and it left the quarantine"
    ),
    "quarantine_dropped": EventRule(
        "the rejected item", "`device_id`, `domain`, `record_id`", "A person gave a rejected item up"
    ),
    "data_exported": EventRule(
        "the domain",
        "`from`, `to`: the range; null if it is open",
        "An export began. It is written before the first row is read",
    ),
    "epoch_renewed": EventRule("the new epoch", "", "The database was declared restored"),
}


class AuditRow(NamedTuple):
    """One event to be written.

    Attributes:
        event: Its kind.
        actor: Who caused it.
        target: What it was done to.
        tenant: The name of the tenant; None if it is about none, or about all.
        tenant_number: Its number; None if it is not known.
        details: What else is known, by name.
        times: How many events this row stands for.
    """

    event: EventName
    actor: Actor
    target: str
    tenant: str | None = None
    tenant_number: int | None = None
    details: Mapping[str, object] | None = None
    times: int = 1
