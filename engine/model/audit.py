"""Security events: who did what to which target. docs/audit-events.md is made of this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

#: ``account`` is an account of the system and its host, ``user`` the ``sub`` of a token, ``device`` the
#: device of a token without one. ``address`` is a client whose token was not verified.
ActorKind = Literal["account", "user", "device", "address", "server"]
EventName = Literal["tenant_added", "tenant_removed"]


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
