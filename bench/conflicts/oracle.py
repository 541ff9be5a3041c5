"""The outcome of a conflict as docs/protocol.md ("Conflicts") has it, written from that text alone.

Nothing here is shared with the engine. Records are dicts, None for a tombstone. The oracle covers one change
of another device after ``base`` and one item of this device that was made on ``base``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

Record = dict[str, Any]
Policy = Literal[
    "server_wins", "client_wins", "most_recent_wins", "preserve_escalation", "field_merge", "manual"
]
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
#: The fields that a domain leaves to the server under ``preserve_escalation``, as delivered.
SERVER_OWNED: Final = ("escalation_level", "escalated_at", "escalated_by", "status")


class Item(NamedTuple):
    """What this device sent. ``at_s`` is when it made the change, ``changed`` that of a put."""

    op: Literal["put", "patch", "delete"]
    at_s: int
    data: Record | None = None
    changed: Sequence[str] | None = None


class Server(NamedTuple):
    """The record as another device left it after ``base``. ``last`` is the data that a tombstone had."""

    data: Record | None
    at_s: int
    changed: frozenset[str]
    last: Record | None = None


class Outcome(NamedTuple):
    """The expected outcome. ``winners`` are the ones that the contract allows, none of a held item."""

    status: Literal["resolved", "conflict"]
    winners: frozenset[str]
    data: Record | None


def outcome(policy: Policy, server: Server, item: Item, fallback: Policy = "most_recent_wins") -> Outcome:
    """Return what becomes of the item; ``fallback`` is ``most_recent_wins`` or ``manual``."""
    if policy == "manual" or (policy == "field_merge" and fallback == "manual" and _falls_back(server, item)):
        return Outcome("conflict", frozenset(), server.data)
    match policy:
        case "server_wins":
            stands = server.data
        case "client_wins":
            stands = _client_side(server, item)
        case "most_recent_wins":
            stands = _client_side(server, item) if item.at_s > server.at_s else server.data
        case "preserve_escalation":
            stands = _with_server_owned(server, item)
        case "field_merge":
            stands = _merged(server, item)
    if stands == server.data:
        winners = {"server"}
    elif policy == "client_wins":
        winners = {"client"}
    else:
        winners = {"client"} if stands == _client_side(server, item) else {"merged"}
        # A merge by field may come out as the device's side, and is neither record as it was.
        winners |= {"merged"} if policy == "field_merge" else set()
    return Outcome("resolved", frozenset(winners), stands)


def _client_side(server: Server, item: Item) -> Record | None:
    """A put as it is, a patch applied to the server's record or a tombstone's last data, a delete."""
    if item.op == "delete":
        return None
    assert item.data is not None
    return dict(item.data) if item.op == "put" else patched(server.data or server.last or {}, item.data)


def patched(record: Record, patch: Record) -> Record:
    """Apply a merge patch of top-level fields, where None removes a field."""
    found = {**record, **patch}
    return {name: value for name, value in found.items() if value is not None}


def _with_server_owned(server: Server, item: Item) -> Record | None:
    if item.op == "delete" or server.data is None:
        return server.data
    found = _client_side(server, item)
    assert found is not None
    owned = {name: server.data[name] for name in SERVER_OWNED if name in server.data}
    return {name: value for name, value in found.items() if name not in SERVER_OWNED} | owned


def _falls_back(server: Server, item: Item) -> bool:
    """Whether both sides changed a field differently, or the item has no fields to merge."""
    names = item.data if item.op == "patch" else item.changed
    if server.data is None or item.data is None or names is None:
        return True
    return any(server.data.get(name) != item.data.get(name) for name in server.changed.intersection(names))


def _merged(server: Server, item: Item) -> Record | None:
    names = item.data if item.op == "patch" else item.changed
    if server.data is None or item.op == "delete" or names is None:
        return outcome("most_recent_wins", server, item).data
    assert item.data is not None
    found = dict(server.data)
    for name in names:
        if name not in server.changed or item.at_s > server.at_s:
            found = patched(found, {name: item.data.get(name)})
    return found
