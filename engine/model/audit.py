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
    "token_signed",
    "token_revoked",
    "conflict_resolved",
    "quarantine_retried",
    "quarantine_dropped",
    "data_exported",
    "data_shown",
    "epoch_renewed",
    "master_key_rotated",
    "tenant_key_rotated",
    "migration_applied",
    "migration_taken_back",
    "job_run",
    "domain_sealed",
    "server_started",
    "settings_reloaded",
    "token_refused",
    "access_forbidden",
    "socket_closed",
    "connections_refused",
    "heads_refused",
    "headers_late",
    "body_late",
    "rate_limited",
    "bus_message_rejected",
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
        "the tenant", "`erased`: whether by `--erase`, with all data that it had", "A tenant was removed"
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
    "token_signed": EventRule(
        "the `jti`",
        "`role`, `expires_at`; `device_id` and `user` if it has them",
        "A token was signed by a command, or by `run.py serve` for its tenant `demo`",
    ),
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
    "data_shown": EventRule(
        "the conflict or the rejected item",
        "`domain`, `record_id`, `revealed`: personal fields were shown, too",
        "A command showed data of a record. It is written before them",
    ),
    "epoch_renewed": EventRule("the new epoch", "", "The database was declared restored"),
    "master_key_rotated": EventRule(
        "the id of the new master key",
        "`before`: the ids of those that wrapped keys until then; `keys`: how many were wrapped anew",
        "The keys of all tenants were wrapped by another master key, or unused ones were retired",
    ),
    "tenant_key_rotated": EventRule(
        "the number of the new key",
        "`before`: the number of the key that sealed until then",
        "A tenant got a new key, by a command or since the seals of the one before were used up",
    ),
    "migration_applied": EventRule(
        "the migration", "", "A migration of the schema was applied, from 0033 on"
    ),
    "migration_taken_back": EventRule("the migration", "", "A migration was taken back, with its data"),
    "job_run": EventRule("the job", "", "A command ran a job. Runs on schedule are no events"),
    "domain_sealed": EventRule(
        "the domain", "", "The sealing of a domain was switched on, before the first value was sealed"
    ),
    "server_started": EventRule(
        "the version",
        "each setting that differs from its default, by its name; secrets are hidden",
        "`run.py serve` was started",
    ),
    "settings_reloaded": EventRule(
        "the version",
        "`changed`: the keys of the settings that have another value, and of files with another content",
        "SIGHUP: the settings were read again",
    ),
    "token_refused": EventRule(
        "method and path",
        "`address`, `message`; `jti` if the token was verified",
        "A request was refused for its token: wrong, expired, revoked, or of an earlier tenant of the name",
    ),
    "access_forbidden": EventRule(
        "method and path",
        "`address`, `message`; `jti` if the token was verified",
        "A request was refused for its origin, or for what its token may not do",
    ),
    "socket_closed": EventRule(
        "the [close code](protocol.md#a-connections-life)",
        "`message`: what the code means; `jti`",
        "The connection of a device was closed for what it sent: 1002, 1007, 1009, 4400 or 4429",
    ),
    "connections_refused": EventRule(
        "", "", "A connection was refused, since its address has too many without a valid token"
    ),
    "heads_refused": EventRule(
        "the code of the error",
        "",
        "A connection was refused for the headers of a request: they are no HTTP (`malformed`), too large"
        " (`too_large`), or came while too many bytes of incomplete headers waited (`overloaded`)",
    ),
    "headers_late": EventRule(
        "",
        "",
        "A connection was closed since the headers of a request did not come whole within `server.head_s`",
    ),
    "body_late": EventRule(
        "method and path",
        "`address`, `message`; `jti`",
        "A request was refused since its body did not come whole within `server.body_s`",
    ),
    "rate_limited": EventRule(
        "method and path; empty for messages on a WebSocket",
        "`message`; `address` of a request; `jti`",
        "Requests, handshakes or messages were refused as `rate_limited`. Messages without an accepted one"
        " between them are one event. Of a device and cause one row is whole in a minute",
    ),
    "bus_message_rejected": EventRule(
        "what was wrong: its signature or its time",
        "",
        "A message on Redis was not believed: see [bus_message_rejected](logs.md#bus_message_rejected)",
    ),
}

#: The events of which there may be floods: each server counts them, and bounds their rows.
SERVER_EVENTS: Final[tuple[EventName, ...]] = (
    "token_refused",
    "access_forbidden",
    "socket_closed",
    "connections_refused",
    "heads_refused",
    "headers_late",
    "body_late",
    "rate_limited",
    "bus_message_rejected",
)


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
        at_us: When it happened, in microseconds since 1970; None is when it is written.
    """

    event: EventName
    actor: Actor
    target: str
    tenant: str | None = None
    tenant_number: int | None = None
    details: Mapping[str, object] | None = None
    times: int = 1
    at_us: int | None = None
