"""Domains: record or event, required fields, policy and status steps of each."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

Policy = Literal[
    "server_wins",
    "client_wins",
    "most_recent_wins",
    "preserve_escalation",
    "field_merge",
    "manual",
]
Fallback = Literal["server_wins", "client_wins", "most_recent_wins", "preserve_escalation", "manual"]

#: The outcome of a conflict under each policy, as the documents show it.
OUTCOMES: Final[dict[Policy, str]] = {
    "server_wins": "The server's record stays",
    "client_wins": "The device's side wins: the put as it is, the patch applied to the server's record (to"
    " its last data if the record is a tombstone), or the delete",
    "most_recent_wins": "The side with the later `at` wins; if both times are equal, the server wins. If the"
    " server's version is the device's own, `at` is compared as sent, and if both times are equal, the item"
    " wins",
    "preserve_escalation": "Like `client_wins`, but some fields keep the server's values"
    " ([below](#preserve_escalation))",
    "field_merge": "Each top-level field is merged by itself ([below](#field_merge))",
    "manual": "The server's record stays, and the device's change waits for a person",
}

DEFAULT_SERVER_OWNED = ("escalation_level", "escalated_at", "escalated_by", "status")


class Domain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of data, as configured. ``status`` maps each status to those that may follow it."""

    kind: Literal["record", "event"] = "record"
    required: tuple[str, ...] = ()
    pii: tuple[str, ...] = ()
    server_owned: tuple[str, ...] = DEFAULT_SERVER_OWNED
    status: dict[str, tuple[str, ...]] = {}
    policy: Policy = "manual"
    fallback: Fallback = "most_recent_wins"


class DomainPolicy(msgspec.Struct, frozen=True):
    """How a tenant's conflicts in one domain are decided. ``fallback`` is used by field_merge only."""

    policy: Policy
    fallback: Fallback = "most_recent_wins"


class DomainRules:
    """A ``Domain`` prepared for the hot path: which statuses are reachable is computed once."""

    __slots__ = ("domain", "is_record", "name", "reachable", "required")

    def __init__(self, name: str, domain: Domain) -> None:
        self.name = name
        self.domain = domain
        self.is_record = domain.kind == "record"
        self.required = domain.required
        declared = set(domain.status).union(*domain.status.values())
        self.reachable = {status: _reach(status, domain.status) for status in declared}

    def violation(self, outcome: dict[str, Any], current: dict[str, Any] | None) -> str | None:
        """Return the sentence for the rule that an outcome breaks, None if it breaks none.

        Args:
            outcome: The record's data if the change is stored.
            current: The record's data now, None if there are none.
        """
        for field in self.required:
            if outcome.get(field) is None:
                return f"data.{field} is required"
        if not self.reachable or "status" not in outcome:
            return None
        status = outcome["status"]
        if status is None:
            return None
        before = current.get("status") if current is not None else None
        if status == before and type(status) is type(before):
            return None
        if not isinstance(status, str) or status not in self.reachable:
            return f"data.status must be one of {', '.join(sorted(self.reachable))}"
        if not isinstance(before, str) or before not in self.reachable:
            return None
        allowed = self.reachable[before]
        if status in allowed:
            return None
        return (
            f"data.status cannot go from {before} to {status}; allowed: "
            f"{', '.join(sorted(allowed - {before})) or 'none'}"
        )


def _reach(start: str, steps: dict[str, tuple[str, ...]]) -> frozenset[str]:
    seen: set[str] = set()
    todo = list(steps.get(start, ()))
    while todo:
        status = todo.pop()
        if status not in seen:
            seen.add(status)
            todo.extend(steps.get(status, ()))
    return frozenset(seen)


class Domains:
    """Every configured domain by name."""

    def __init__(self, domains: dict[str, Domain]) -> None:
        self.rules = {name: DomainRules(name, domain) for name, domain in domains.items()}
        self.events = [name for name, domain in domains.items() if domain.kind == "event"]
        self.default_policies = {
            name: DomainPolicy(domain.policy, domain.fallback)
            for name, domain in domains.items()
            if domain.kind == "record"
        }
