"""Every message of wire contract version 1: requests of a device, and the server's answers.

Frozen msgspec Structs tagged by ``type``. ``data`` is ``Raw`` where the server passes it on without reading
it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

PROTOCOL_VERSION = 1
JSON_SUBPROTOCOL = "tidemark.v1.json"
MSGPACK_SUBPROTOCOL = "tidemark.v1.msgpack"

RequestId = Annotated[str, Meta(min_length=1, max_length=64)]
Key = Annotated[str, Meta(min_length=1, max_length=128)]
#: Text that is compared or stored in the database, which refuses U+0000.
Name = Annotated[str, Meta(max_length=255, pattern="^[^\\x00]*$")]
Instant = Annotated[datetime, Meta(tz=True)]
Op = Literal["put", "patch", "delete", "append"]
Choice = Literal["server", "client", "merged"]
Winner = Literal["client", "server", "merged"]
Status = Literal["applied", "unchanged", "resolved", "conflict", "rejected"]


# -- requests ---------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """A device introduces itself. There is no answer.

    ``server_time`` is the latest that the device had got on the connection when it read its ``clock``.
    """

    app_version: Name | None = None
    os_version: Name | None = None
    clock: Instant | None = None
    server_time: Instant | None = None


class Sync(msgspec.Struct, frozen=True, tag_field="type", tag="sync"):
    """Push changes. A retry must repeat the bytes of ``items``.

    ``id`` is required on a socket, and may be missing over HTTP. ``clock`` is read only over HTTP.
    """

    key: Key
    items: Raw
    id: RequestId | None = None
    atomic: bool = False
    clock: Instant | None = None


class Item(msgspec.Struct, frozen=True):
    """One change of a ``sync``."""

    domain: str
    id: str
    op: Op
    base: int | None = None
    at: Instant | None = None
    data: Any = None
    changed: list[str] | None = None


class Pull(msgspec.Struct, frozen=True, tag_field="type", tag="pull"):
    """Ask for one page of the feed, which has records and no events.

    ``domains`` is checked with the cursor: a cursor of another set of domains is ``cursor_expired``.
    """

    id: RequestId
    cursor: str | None = None
    domains: list[str] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500


class Subscribe(msgspec.Struct, frozen=True, tag_field="type", tag="subscribe"):
    """Ask for all changes after a cursor, then for every change as it happens."""

    id: RequestId
    cursor: str | None = None
    domains: list[str] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500


class Unsubscribe(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribe"):
    """End the subscription of this id."""

    id: RequestId


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """The device is alive, and some facts about it. Only messages keep a connection open, pings do not.

    ``battery`` is 0 to 1. A negative ``battery`` or ``storage_free_mb`` counts as missing: Android and iOS
    use -1 for an unknown value. ``clock`` and ``server_time`` are as in ``hello``.
    """

    id: RequestId
    queue_depth: Annotated[int, Meta(ge=0)] | None = None
    battery: Annotated[float, Meta(le=1)] | None = None
    network: Name | None = None
    storage_free_mb: float | None = None
    app_version: Name | None = None
    os_version: Name | None = None
    clock: Instant | None = None
    server_time: Instant | None = None


class Conflicts(msgspec.Struct, frozen=True, tag_field="type", tag="conflicts"):
    """Ask for open conflicts, oldest first: those of the device itself, or all for a supervisor."""

    id: RequestId
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    after: Name | None = None


class Resolve(msgspec.Struct, frozen=True, tag_field="type", tag="resolve"):
    """Settle a conflict. ``version`` and ``changes`` are those that the decision was made on."""

    id: RequestId
    conflict_id: Name
    choice: Choice
    version: Annotated[int, Meta(ge=1)]
    data: Any = None
    changes: Annotated[int, Meta(ge=1)] | None = None


class Telemetry(msgspec.Struct, frozen=True, tag_field="type", tag="telemetry"):
    """Counts that the device made itself in one hour, which began at ``hour``.

    ``counters`` and ``histograms`` are objects by name. Their bounds are in ``engine.model.telemetry``, where
    they are read only when their bytes are known to be few.
    """

    id: RequestId
    key: Key
    hour: Instant
    counters: Raw = msgspec.field(default_factory=Raw)
    histograms: Raw = msgspec.field(default_factory=Raw)


Request = Hello | Sync | Pull | Subscribe | Unsubscribe | Heartbeat | Conflicts | Resolve | Telemetry


# -- answers; ``id`` is left out if the request had none, over HTTP ----------------------------


class ItemError(msgspec.Struct, frozen=True):
    """Why one item was rejected."""

    code: str
    message: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one item. Fields that do not apply are left out.

    ``domain`` and ``id`` are those of the item, null if it had none.
    """

    domain: str | None
    id: str | None
    status: Status
    winner: Winner | UnsetType = UNSET
    policy: str | UnsetType = UNSET
    conflict_id: str | UnsetType = UNSET
    version: int | None | UnsetType = UNSET
    seq: int | None | UnsetType = UNSET
    data: Raw | None | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET


class Synced(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="synced"):
    """Answer to ``sync``: one result per item, in order. ``replayed`` is true for a message sent before.

    It is encoded by ``engine.plan.work.PushAnswer.frame``, without decoding the results.
    """

    id: str | UnsetType = UNSET
    replayed: bool
    results: list[Result]


class Error(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """A message was refused as a whole. ``code`` and ``retryable`` are of ``engine.wire.errors.ERRORS``.

    ``version``, ``changes`` and ``data`` are the server's record and the count of the device's changes, for
    ``conflict_stale``. ``offset`` is where an upload stands, for ``offset_mismatch``. ``error_id`` is in the
    server's log, for ``internal``. It is encoded by ``handlers.http.errors.error_body``.
    """

    id: str | UnsetType = UNSET
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    changes: int | UnsetType = UNSET
    data: Raw | None | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    error_id: str | UnsetType = UNSET


class Limits(msgspec.Struct, frozen=True):
    """The limits of a device."""

    frame_bytes: int
    items: int
    record_bytes: int
    messages_per_minute: int


class Welcome(msgspec.Struct, frozen=True, tag_field="type", tag="welcome"):
    """The server's first message on every connection.

    ``policies`` has the record domains with their policies, ``events`` the event domains.
    """

    session: str
    server_time: str
    epoch: str
    heartbeat_s: int
    limits: Limits
    policies: dict[str, str]
    events: list[str] = []


class Attachment(msgspec.Struct, frozen=True):
    """A file of a record. It is read at ``/v1/files/{file_id}``. ``device_id`` sent it."""

    file_id: str
    filename: str
    filetype: str
    size_bytes: int
    sha256: str
    device_id: str
    at: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A record in the feed, in its latest version. ``data`` is null for a tombstone.

    A file that joins or leaves the record comes as a change with a new ``seq`` and the same ``version``.

    ``attachments`` is an array of ``Attachment``, left out if the record has none.
    """

    domain: str
    id: str
    version: int
    seq: int
    deleted: bool
    at: str
    device_id: str | None
    data: Raw | None
    attachments: Raw | UnsetType = UNSET


class Changes(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="changes"):
    """A page of the feed, in answer to ``pull`` and ``subscribe``. ``more``: another page follows now.

    ``unknown_domains`` are the domains of the request that hold no records. A page is encoded by
    ``engine.feed.pages.page_body``, from changes that are encoded once for all who get them.
    """

    id: str | UnsetType = UNSET
    cursor: str
    more: bool
    changes: list[Change]
    unknown_domains: list[str] | UnsetType = UNSET


class HeartbeatAck(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat_ack"):
    """Answer to ``heartbeat``. ``health_score`` is 0 to 100."""

    id: str | UnsetType
    server_time: str
    health_score: int


class TelemetryAck(msgspec.Struct, frozen=True, tag_field="type", tag="telemetry_ack"):
    """Answer to ``telemetry``: it is stored. ``replayed`` is true if it had been stored before."""

    id: str | UnsetType
    replayed: bool


class ServerSide(msgspec.Struct, frozen=True):
    """The server's record now."""

    version: int
    data: Raw | None


class ClientSide(msgspec.Struct, frozen=True):
    """The device's changes. ``data`` is the record if they win.

    ``base`` is that of the first change, ``at`` that of the last, ``changes`` their number.
    """

    base: int | None
    at: str
    device_id: str
    data: Raw | None
    op: str
    changes: int


class OpenConflict(msgspec.Struct, frozen=True):
    """One conflict that waits for a person."""

    conflict_id: str
    domain: str
    record_id: str
    policy: str
    server: ServerSide
    client: ClientSide
    opened_at: str


class ConflictList(msgspec.Struct, frozen=True, tag_field="type", tag="conflicts"):
    """Answer to ``conflicts``. ``after`` continues the list; null at its end."""

    id: str | UnsetType
    conflicts: list[OpenConflict]
    after: str | None


class DomainInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one domain. Event domains have no fields about conflicts.

    ``status`` maps a value to the values that are one step away. An edit may take several steps.
    """

    kind: Literal["record", "event"]
    required: list[str]
    status: dict[str, list[str]]
    policy: str | UnsetType = UNSET
    fallback: str | UnsetType = UNSET
    server_owned: list[str] | UnsetType = UNSET


class DomainList(msgspec.Struct, frozen=True, tag_field="type", tag="domains"):
    """Answer to ``GET /v1/domains``: the rules of each domain by its name."""

    domains: dict[str, DomainInfo]


class Resolved(msgspec.Struct, frozen=True, tag_field="type", tag="resolved"):
    """Answer to ``resolve``."""

    id: str | UnsetType
    conflict_id: str
    version: int
    seq: int


class Unsubscribed(msgspec.Struct, frozen=True, tag_field="type", tag="unsubscribed"):
    """Answer to ``unsubscribe``."""

    id: str


class PoliciesChanged(msgspec.Struct, frozen=True, tag_field="type", tag="policies"):
    """A policy or a fallback of the tenant changed."""

    policies: dict[str, str]


class Goodbye(msgspec.Struct, frozen=True, tag_field="type", tag="goodbye"):
    """The server is about to close the connection. The table of close codes has what to do."""

    reason: Literal["drain", "restart", "replaced", "revoked", "expired", "idle"]
    retry_after_ms: int
