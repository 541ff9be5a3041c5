"""The work that can be committed, already checked, and its answers. ``engine.plan.kinds`` lists the kinds."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.model.audit import Actor
from engine.model.merge import Fields
from engine.wire.errors import SyncError
from engine.wire.messages import Choice, Op

_encode = msgspec.json.encode


class Change(msgspec.Struct, frozen=True):
    """One item that passed the checks. ``fields`` is None only for a delete.

    ``base`` is 0 if the device knew of no record. ``at_us`` is corrected, ``sent_at_us`` as sent. An item
    that is not ``dated`` came without ``at``: both times are the server's now.
    """

    domain: str
    id: str
    op: Op
    base: int
    at_us: int
    sent_at_us: int
    fields: Fields | None
    data: bytes
    changed: tuple[str, ...] | None
    dated: bool = True


class RejectedItem(msgspec.Struct, frozen=True):
    """One item that failed the checks."""

    domain: str | None
    id: str | None
    code: str
    message: str


class Push(msgspec.Struct, frozen=True):
    """One ``sync`` message. ``raw_items`` are the items as sent, in ``encoding``.

    ``may_be_old``: the message may have been sent for the first time more than a day ago. ``clock_offset_us``
    was added to the items' ``at``.
    """

    tenant_id: int
    device_id: str
    session_id: str
    key_hash: str
    request_sha256: str
    atomic: bool
    items: list[Change | RejectedItem]
    raw_items: bytes
    encoding: Literal["json", "msgpack"]
    now_us: int
    may_be_old: bool = True
    clock_offset_us: int = 0


class Resolution(msgspec.Struct, frozen=True):
    """One ``resolve`` message. ``domain`` and ``record_id`` are those of the conflict.

    ``changes`` is the number of the device's changes that the decision was made on, None if the message has
    none. ``actor`` is the person who decided.
    """

    tenant_id: int
    device_id: str
    actor: Actor
    supervisor: bool
    conflict_id: str
    domain: str
    record_id: str
    choice: Choice
    version: int
    fields: Fields | None
    request_sha256: str
    now_us: int
    changes: int | None = None


class Attach(msgspec.Struct, frozen=True):
    """Add a stored file to its record's entry in the feed, or free it.

    ``entry`` is the file's entry there, in JSON (``engine.plan.attachments``). None frees the upload, and
    removes the file from the entry unless a duplicate of it is left. ``only_if_deleted`` frees it only if its
    record is deleted or never came.
    """

    tenant_id: int
    device_id: str
    domain: str
    record_id: str
    upload_id: str
    entry: bytes | None
    now_us: int
    only_if_deleted: bool = False


Work = Push | Resolution | Attach


class PushAnswer(msgspec.Struct, frozen=True):
    """The answer to a push. ``results`` is the JSON array of its results.

    ``plain``: every item was applied or unchanged, so there is no conflict to look for.
    """

    results: bytes
    replayed: bool
    plain: bool = False

    def frame(self, request_id: str | None) -> bytes:
        """Return the whole ``synced`` message as JSON."""
        own_id = b"" if request_id is None else b'"id":%b,' % _encode(request_id)
        replayed = b"true" if self.replayed else b"false"
        return b'{"type":"synced",%b"replayed":%b,"results":%b}' % (own_id, replayed, self.results)


class ResolveAnswer(msgspec.Struct, frozen=True):
    """The answer to a resolve: the version that was written."""

    conflict_id: str
    version: int
    seq: int

    def frame(self, request_id: str | None) -> bytes:
        """Return the whole ``resolved`` message as JSON."""
        head = b'{"type":"resolved",'
        if request_id is not None:
            head += b'"id":' + _encode(request_id) + b","
        return head + _encode(self)[1:]


class AttachAnswer(msgspec.Struct, frozen=True):
    """The outcome for a file: ``waiting`` if its record is not there, ``freed`` at least for its device.

    ``seq`` is that of the record's entry if the file is in it or was just removed. ``deletable`` is the id of
    the file whose bytes can be deleted now, if any.
    """

    state: Literal["attached", "duplicate", "waiting", "freed"]
    seq: int | None
    deletable: str | None = None


Outcome = PushAnswer | ResolveAnswer | AttachAnswer | SyncError
