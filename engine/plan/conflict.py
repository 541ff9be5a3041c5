"""Decides one conflict: policy, server's record and client's change → the winner and the new data."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.model.domains import Domain, DomainPolicy, Policy
from engine.model.merge import Fields, FieldVersions, apply_patch, same_value
from engine.wire.messages import Op, Winner

_MISSING = object()


class ClientChange(msgspec.Struct, frozen=True):
    """The client's change. ``fields`` is the put's record or the patch, None for a delete.

    ``base`` is 0 if the device knew of no record. ``changed`` are the fields that a put changed.
    ``sent_at_us`` is ``at`` as the device sent it. It is None if the item had no ``at``: then it comes after
    all of the device's own changes.
    """

    op: Op
    fields: Fields | None
    base: int
    at_us: int
    changed: tuple[str, ...] | None
    device_id: str = ""
    sent_at_us: int | None = None

    def follows(self, own_sent_us: int) -> bool:
        """Return whether it comes after a change of its own device. At the same time, it does."""
        return self.sent_at_us is None or self.sent_at_us >= own_sent_us


class ServerRecord(msgspec.Struct, frozen=True):
    """The server's record. ``fields`` is None for a tombstone, ``last`` are its last data, if they are kept.

    ``followed`` tells, for a version of the client's own device, whether the change comes after it. It is
    None for a version of another device or a person.
    """

    fields: Fields | None
    at_us: int
    versions: FieldVersions | None
    followed: bool | None = None
    last: Fields | None = None


class Decision(msgspec.Struct, frozen=True):
    """The outcome: the record's new ``fields`` and ``at_us``. ``fields`` is None for a tombstone."""

    winner: Winner
    fields: Fields | None
    at_us: int


def client_side(op: Op, fields: Fields | None, server: Fields | None) -> Fields | None:
    """Return the record's data if the change wins; None is a tombstone.

    ``server`` are the data that a patch applies to, None for an empty object.
    """
    if op == "patch":
        return apply_patch(server or {}, fields or {})
    return None if op == "delete" else fields


def may_hold(policy: DomainPolicy) -> bool:
    """Return whether a policy can leave a conflict to a person."""
    return policy.policy == "manual" or (policy.policy == "field_merge" and policy.fallback == "manual")


def holding(policy: DomainPolicy) -> DomainPolicy:
    """Return the policy that leaves to a person what ``policy`` would decide. Fields still merge.

    So a record with field versions keeps being written with them.
    """
    return DomainPolicy("field_merge" if policy.policy == "field_merge" else "manual", "manual")


def decide(
    policy: DomainPolicy, domain: Domain, server: ServerRecord, client: ClientChange
) -> Decision | None:
    """Decide a conflict by policy.

    Returns:
        The decision, None if a person has to decide. Under every policy this is so for a patch that would win
        over a tombstone whose last data are gone: the fields that the patch leaves out are known to nobody.
    """
    if policy.policy == "field_merge":
        return _field_merge(policy.fallback, domain, server, client)
    return _whole(policy.policy, domain, server, client)


def _whole(policy: Policy, domain: Domain, server: ServerRecord, client: ClientChange) -> Decision | None:
    if policy == "manual":
        return None
    if policy == "preserve_escalation":
        return _preserve_escalation(domain, server, client)
    if policy == "client_wins" or (policy == "most_recent_wins" and _is_later(server, client)):
        base = server.last if server.fields is None else server.fields
        if client.op == "patch" and base is None:
            return None
        return Decision("client", client_side(client.op, client.fields, base), client.at_us)
    return _server_wins(server)


def _is_later(server: ServerRecord, client: ClientChange) -> bool:
    return client.at_us > server.at_us if server.followed is None else server.followed


def _server_wins(server: ServerRecord) -> Decision:
    return Decision("server", server.fields, server.at_us)


def _preserve_escalation(domain: Domain, server: ServerRecord, client: ClientChange) -> Decision:
    wanted = client_side(client.op, client.fields, server.fields)
    if wanted is None or server.fields is None:
        return _server_wins(server)
    outcome = dict(wanted)
    for name in domain.server_owned:
        _take(outcome, name, server.fields)
    return _named(outcome, server, wanted, client.at_us)


def _field_merge(
    fallback: Policy, domain: Domain, server: ServerRecord, client: ClientChange
) -> Decision | None:
    touched = _touched(client)
    if touched is None or server.fields is None or server.versions is None:
        return _whole(fallback, domain, server, client)
    wanted = client_side(client.op, client.fields, server.fields)
    assert wanted is not None
    outcome = dict(server.fields)
    if client.op == "put":  # ``changed`` may have 170,000 names that are in neither version
        touched = [name for name in dict.fromkeys(touched) if name in wanted or name in outcome]
    for name in touched:
        if same_value(wanted.get(name, _MISSING), server.fields.get(name, _MISSING)):
            continue
        if server.versions.changed_after(name, client.base):
            owner = _field_winner(fallback, domain, name, server.versions, client)
            if owner is None:
                return None
            if owner == "server":
                continue
        _take(outcome, name, wanted)
    return _named(outcome, server, wanted, max(client.at_us, server.at_us))


def _touched(client: ClientChange) -> Any:
    if client.op == "patch":
        return client.fields
    return client.changed if client.op == "put" else None


def _field_winner(
    fallback: Policy, domain: Domain, name: str, versions: FieldVersions, client: ClientChange
) -> Winner | None:
    own_us = versions.own_sent_us(name, client.device_id)
    if own_us is not None and client.follows(own_us):
        return "client"
    if fallback == "manual":
        return None
    if fallback == "client_wins":
        return "client"
    if fallback == "preserve_escalation":
        return "server" if name in domain.server_owned else "client"
    if fallback == "most_recent_wins" and own_us is None:
        own_us = versions.own_since_sent_us(name, client.device_id)
        later = client.at_us > versions.changed_at_us(name) if own_us is None else client.follows(own_us)
        return "client" if later else "server"
    return "server"


def _take(outcome: Fields, name: str, source: Fields) -> None:
    if name in source:
        outcome[name] = source[name]
    else:
        outcome.pop(name, None)


def _named(outcome: Fields, server: ServerRecord, wanted: Fields, at_us: int) -> Decision:
    if same_value(outcome, server.fields):
        return _server_wins(server)
    return Decision("client" if same_value(outcome, wanted) else "merged", outcome, at_us)
