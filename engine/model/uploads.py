"""Resumable uploads as values: an upload, the table of its states, and the rules of a request. No I/O.

tus 1.0.0 and the IETF draft are two protocols for the same requests. The handlers parse them; the functions
here decide what a request does to an upload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from engine.wire.errors import SyncError

#: As in tus' concatenation: a ``final`` upload is made of ``partial`` ones. All others are ``single``.
Kind = Literal["single", "partial", "final"]
State = Literal[
    "open",
    "stored",
    "attached",
    "duplicate",
    "retained",
    "refused",
    "cancelled",
    "expired",
    "concatenated",
    "freed",
]


class StateRule(NamedTuple):
    """All that is true of an upload in one state.

    Fields:
        meaning: One sentence for the documentation.
        has_bytes: A draft or a file under the upload's own id is kept.
        counts_for_quota: What the upload reserved counts against its tenant's quota.
        is_file: The bytes are a file under the upload's own id.
        in_entry: The record's entry in the feed shows this file.
        is_finished: The device was told that its file is safe, and has not taken it back.
        ended: Nothing changes the state again; the row is deleted a week later.
        successors: The states that can follow.
    """

    meaning: str
    has_bytes: bool
    counts_for_quota: bool
    is_file: bool
    in_entry: bool
    is_finished: bool
    ended: bool
    successors: frozenset[State]


def _rule(
    meaning: str,
    *successors: State,
    has_bytes: bool = False,
    counts_for_quota: bool = False,
    is_file: bool = False,
    in_entry: bool = False,
    is_finished: bool = False,
    ended: bool = False,
) -> StateRule:
    return StateRule(
        meaning,
        has_bytes,
        counts_for_quota,
        is_file,
        in_entry,
        is_finished,
        ended,
        frozenset(successors),
    )


#: The one place that says which states there are. Lists of states in SQL, the page docs/upload-states.md and
#: the tests of every UPDATE are made from it.
STATES: Final[Mapping[State, StateRule]] = {
    "open": _rule(
        "It takes bytes.",
        *("stored", "refused", "cancelled", "expired", "concatenated"),
        has_bytes=True,
        counts_for_quota=True,
    ),
    "stored": _rule(
        "All bytes are a file; its record does not exist yet.",
        *("attached", "duplicate", "freed"),
        has_bytes=True,
        counts_for_quota=True,
        is_file=True,
        is_finished=True,
    ),
    "attached": _rule(
        "The file is in its record's entry in the feed.",
        *("retained", "freed"),
        has_bytes=True,
        counts_for_quota=True,
        is_file=True,
        in_entry=True,
        is_finished=True,
    ),
    "duplicate": _rule(
        "The record already had a file of this name and content; that file stands for this upload.",
        "freed",
        is_finished=True,
    ),
    "retained": _rule(
        "Its device deleted it, but its file stays in the entry, because a duplicate needs it.",
        "freed",
        has_bytes=True,
        counts_for_quota=True,
        is_file=True,
        in_entry=True,
    ),
    "refused": _rule("Its content was not what was declared.", ended=True),
    "cancelled": _rule("Its device gave it up before the last byte.", ended=True),
    "expired": _rule("No byte came for `uploads.expire_h`.", ended=True),
    "concatenated": _rule("A partial upload whose bytes are part of a final one's file.", ended=True),
    "freed": _rule("Its file was deleted by its device, or with its record.", ended=True),
}
#: The device was told that its file is safe: the bytes are kept under the upload's own id or another's.
FINISHED: Final[frozenset[State]] = frozenset(state for state, rule in STATES.items() if rule.is_finished)


class UploadRef(msgspec.Struct, frozen=True):
    """The identity of an upload, and of the file that it becomes; ``upload_id`` is 32 hex digits."""

    tenant_id: int
    upload_id: str


class Draft(msgspec.Struct, frozen=True):
    """The acknowledged bytes of an open upload: the first ``size_bytes`` of them.

    ``generation`` grows when the lock is stolen, so that a late write of the earlier owner goes to a draft
    that nobody reads. ``pieces`` are the names of the draft's objects, in order, for a store without files.
    """

    ref: UploadRef
    generation: int
    size_bytes: int
    pieces: tuple[str, ...] = ()


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """One upload as it is stored.

    Fields that need a word:
        kind: ``file_name``, ``content_type``, ``domain`` and ``record_id`` are None only for ``partial``.
        content_type: ``UNDECLARED`` (engine.filetypes.types) while the content is to tell the type.
        metadata: The header ``Upload-Metadata`` as it was sent.
        size_bytes: None until the client says the size.
        reserved_bytes: Counts against the tenant's quota; the offset never passes it.
        offset_bytes: The bytes that are acknowledged.
        parts: The ids of the partial uploads of a ``final`` one.
        final_id: The id of the final upload that uses this partial upload's bytes.
        locked: A request has the lock. ``lock_owner`` is that request, or the last one that had it.
        lock_expired: The owner has not renewed the lock in time; another request may steal it.
        expected_sha256: What the client declared for the whole file, in hex digits.
        sha256: The hash of the file, in hex digits.
    """

    ref: UploadRef
    device_id: str
    user: str | None
    kind: Kind
    file_name: str | None
    content_type: str | None
    domain: str | None
    record_id: str | None
    metadata: str
    size_bytes: int | None
    reserved_bytes: int
    offset_bytes: int = 0
    parts: tuple[str, ...] = ()
    final_id: str | None = None
    pieces: tuple[str, ...] = ()
    generation: int = 0
    lock_owner: str | None = None
    locked: bool = False
    lock_expired: bool = False
    expected_sha256: str | None = None
    sha256: str | None = None
    state: State = "open"
    created_at_us: int = 0
    expires_at_us: int = 0

    @property
    def draft(self) -> Draft:
        """The acknowledged bytes."""
        return Draft(self.ref, self.generation, self.offset_bytes, self.pieces)

    @property
    def complete(self) -> bool:
        """True if every byte has come."""
        return self.offset_bytes == self.size_bytes

    @property
    def ready_to_finish(self) -> bool:
        """True if every byte has come and the file is still to be made."""
        return self.complete and self.state == "open" and self.kind != "partial"

    def expired(self, now_us: int) -> bool:
        """Return True if the upload is open, unlocked, and past its expiry."""
        return (
            self.state == "open" and (not self.locked or self.lock_expired) and self.expires_at_us <= now_us
        )


class Append(msgspec.Struct, frozen=True):
    """A request that brings bytes from ``offset_bytes`` on.

    ``length_bytes`` is the length of its body, None if only the end of the body tells it. ``size_bytes`` is
    the size of the whole upload as the request states it. ``completes`` says that the upload ends with this
    request.
    """

    offset_bytes: int
    length_bytes: int | None = None
    size_bytes: int | None = None
    completes: bool = False


class AppendPlan(msgspec.Struct, frozen=True):
    """Take ``max_bytes`` at most; ``size_bytes`` is the size of the whole upload, None while unknown."""

    max_bytes: int
    size_bytes: int | None

    @property
    def complete(self) -> bool:
        """True if every byte had come before this request; then its body must be empty."""
        return self.max_bytes == 0 and self.size_bytes is not None


def visible_to(upload: Upload | None, device_id: str, now_us: int) -> Upload:
    """Return an upload to its own device, as long as the device can still use it.

    Raises:
        SyncError: ``not_found`` if there is none or it is another device's; ``upload_gone`` if it ended
            without a file, or its file was deleted.
    """
    if upload is None or upload.device_id != device_id:
        raise SyncError("not_found", "there is no such upload")
    if upload.state == "refused":
        raise SyncError("upload_gone", "this upload was refused when its content was looked at")
    if upload.state in ("freed", "retained"):
        raise SyncError("upload_gone", "this upload was freed")
    if upload.state == "cancelled":
        raise SyncError("upload_gone", "this upload was cancelled")
    if upload.state == "expired" or upload.expired(now_us):
        raise SyncError("upload_gone", "this upload has expired")
    return upload


def plan_append(upload: Upload, request: Append) -> AppendPlan:
    """Decide how many bytes a request may bring to an upload that ``visible_to`` returned.

    A request without bytes is accepted also after the last byte. If only the end of a body tells its length,
    the caller has to check that the body is empty (``AppendPlan.complete``).

    Raises:
        SyncError: ``offset_mismatch`` (with ``offset``), ``too_large``, ``inconsistent_length``,
            ``upload_complete``; ``forbidden`` for a ``final`` upload.
    """
    if upload.kind == "final":
        raise SyncError("forbidden", "an upload that is put together of parts takes no bytes")
    if request.offset_bytes != upload.offset_bytes:
        raise SyncError(
            "offset_mismatch",
            f"{upload.offset_bytes} bytes have come, not {request.offset_bytes}",
            offset=upload.offset_bytes,
        )
    size_bytes = upload.size_bytes
    stated = [size_bytes, request.size_bytes]
    if request.completes and request.length_bytes is not None:
        stated.append(request.offset_bytes + request.length_bytes)
    known = {one for one in stated if one is not None}
    if len(known) > 1:
        raise SyncError("inconsistent_length", f"this upload has {min(known)} or {max(known)} bytes")
    if known:
        size_bytes = known.pop()
    if (upload.state != "open" or size_bytes == upload.offset_bytes) and request.length_bytes:
        raise upload_complete()
    bound_bytes = upload.reserved_bytes if size_bytes is None else size_bytes
    # A duplicate reserves nothing, though all its bytes have come: the bound is for open uploads.
    reserved_bytes = upload.reserved_bytes if upload.state == "open" else upload.offset_bytes
    if bound_bytes > reserved_bytes or bound_bytes < upload.offset_bytes:
        raise SyncError("too_large", f"an upload of {bound_bytes} bytes is more than was let in")
    max_bytes = bound_bytes - upload.offset_bytes
    if request.length_bytes is not None and request.length_bytes > max_bytes:
        raise SyncError("too_large", f"{request.length_bytes} bytes: no more than {max_bytes} are to come")
    return AppendPlan(max_bytes, size_bytes)


def upload_complete() -> SyncError:
    """Return the error for bytes that are sent to a complete upload."""
    return SyncError("upload_complete", "every byte of this upload has come")


def concatenated_bytes(parts: Sequence[Upload], max_bytes: int) -> int:
    """Return the size of the final upload that these partial uploads make.

    Raises:
        SyncError: ``invalid_message`` if one is not a partial upload or not complete, ``too_large`` if their
            sum is above ``max_bytes``.
    """
    for part in parts:
        if part.kind != "partial":
            raise SyncError("invalid_message", "Upload-Concat: only partial uploads are put together")
        if not part.complete:
            raise SyncError("invalid_message", f"Upload-Concat: {part.ref.upload_id} is not complete")
    size_bytes = sum([part.offset_bytes for part in parts])
    if size_bytes > max_bytes:
        raise SyncError("too_large", f"{size_bytes} bytes: a file of this type has {max_bytes} at most")
    return size_bytes
