"""Resumable uploads as values: what is kept of one, and what each request makes of it. No I/O.

tus 1.0.0 and the IETF draft are two spellings of the same requests: an edge parses them, this decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from engine.wire.errors import SyncError

#: A ``part`` is a partial upload of tus' concatenation; of parts one is ``joined``.
Kind = Literal["whole", "part", "joined"]
#: ``open`` takes bytes. ``stored`` is a file that waits for its record, ``attached`` one in its record's feed
#: entry, ``duplicate`` one that was there already. ``lent`` is freed for its device, and its file stays in
#: the entry while a duplicate stands. Of the others no bytes are left; ``joined`` is a part whose bytes are
#: in the upload that it became.
State = Literal[
    "open", "stored", "attached", "duplicate", "lent", "refused", "cancelled", "expired", "joined", "freed"
]
#: The bytes are safe, under the upload's own id or another's.
FINISHED: frozenset[State] = frozenset({"stored", "attached", "duplicate"})


class UploadRef(msgspec.Struct, frozen=True):
    """An upload by its id, 32 hex digits. The file that it becomes has the same."""

    tenant_id: int
    upload_id: str


class Draft(msgspec.Struct, frozen=True):
    """The bytes of an open upload as far as they are acknowledged: ``size_bytes`` of them.

    ``generation`` moves when somebody may still be writing who is not to be heard; ``pieces`` name what a
    store without files keeps them in, in order.
    """

    ref: UploadRef
    generation: int
    size_bytes: int
    pieces: tuple[str, ...] = ()


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """One upload as it is kept.

    ``size_bytes`` is None while the client has not said; ``reserved_bytes`` is what counts against the
    tenant's quota, and what the offset never passes. ``metadata`` is the ``Upload-Metadata`` as it was sent.
    ``file_name``, ``content_type``, ``domain`` and ``record_id`` are None of a part alone. ``content_type``
    is ``file_types.UNDECLARED`` of an open upload whose content is to tell its type.
    ``expected_sha256`` and ``sha256`` are hex digits: what the client says of the whole file, and what it is.
    ``held`` says that a request is under way, ``holder`` which, or which was the last; ``lock_expired``
    that it said nothing for so long that it is dead.
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
    holder: str | None = None
    held: bool = False
    lock_expired: bool = False
    expected_sha256: str | None = None
    sha256: str | None = None
    state: State = "open"
    created_at_us: int = 0
    expires_at_us: int = 0

    @property
    def draft(self) -> Draft:
        """What is acknowledged of it."""
        return Draft(self.ref, self.generation, self.offset_bytes, self.pieces)

    @property
    def complete(self) -> bool:
        """Whether every byte has come."""
        return self.offset_bytes == self.size_bytes

    @property
    def ready_to_finish(self) -> bool:
        """Whether every byte has come, and no file was made of them yet."""
        return self.complete and self.state == "open" and self.kind != "part"

    def expired(self, now_us: int) -> bool:
        """Whether nothing came for so long that it is given up."""
        return self.state == "open" and (not self.held or self.lock_expired) and self.expires_at_us <= now_us


class Append(msgspec.Struct, frozen=True):
    """A request that brings bytes from ``offset_bytes`` on.

    ``length_bytes`` is how many, None where only the end of the body tells; ``size_bytes`` is what the
    request says of the whole, ``completes`` that it ends with this request.
    """

    offset_bytes: int
    length_bytes: int | None = None
    size_bytes: int | None = None
    completes: bool = False


class AppendPlan(msgspec.Struct, frozen=True):
    """Take ``most_bytes`` at most; ``size_bytes`` is the size of the whole, None until it is known."""

    most_bytes: int
    size_bytes: int | None

    @property
    def complete(self) -> bool:
        """True if every byte had come before this request, whose body has to be empty then."""
        return self.most_bytes == 0 and self.size_bytes is not None


def visible_to(upload: Upload | None, device_id: str, now_us: int) -> Upload:
    """Give an upload to the device that it is of, while there is something of it.

    Raises SyncError ``not_found`` for another device's, ``upload_gone`` for one that came to nothing.
    """
    if upload is None or upload.device_id != device_id:
        raise SyncError("not_found", "there is no such upload")
    if upload.state == "refused":
        raise SyncError("upload_gone", "this upload was refused when its content was looked at")
    if upload.state == "lent":
        raise SyncError("upload_gone", "this upload was freed")
    if upload.state in ("cancelled", "freed"):
        raise SyncError("upload_gone", f"this upload was {upload.state}")
    if upload.state == "expired" or upload.expired(now_us):
        raise SyncError("upload_gone", "this upload has expired")
    return upload


def plan_append(upload: Upload, request: Append) -> AppendPlan:
    """Decide on a request that brings bytes to an upload that stands.

    A request without bytes is taken also where every byte has come. If only the end of a body tells its
    length, the caller has to see that it is empty (``AppendPlan.complete``).

    Raises SyncError ``offset_mismatch`` (with ``offset``), ``too_large``, ``inconsistent_length``,
    ``upload_complete``.
    """
    if upload.kind == "joined":
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
    if bound_bytes > upload.reserved_bytes or bound_bytes < upload.offset_bytes:
        raise SyncError("too_large", f"an upload of {bound_bytes} bytes is more than was let in")
    most_bytes = bound_bytes - upload.offset_bytes
    if request.length_bytes is not None and request.length_bytes > most_bytes:
        raise SyncError("too_large", f"{request.length_bytes} bytes: no more than {most_bytes} are to come")
    return AppendPlan(most_bytes, size_bytes)


def upload_complete() -> SyncError:
    """Return the refusal of bytes for an upload that has all of them."""
    return SyncError("upload_complete", "every byte of this upload has come")


def concatenated_bytes(parts: Sequence[Upload], most_bytes: int) -> int:
    """Add up the parts of an upload that is put together. Raises SyncError."""
    for part in parts:
        if part.kind != "part":
            raise SyncError("invalid_message", "Upload-Concat: only partial uploads are put together")
        if not part.complete:
            raise SyncError("invalid_message", f"Upload-Concat: {part.ref.upload_id} is not complete")
    size_bytes = sum([part.offset_bytes for part in parts])
    if size_bytes > most_bytes:
        raise SyncError("too_large", f"{size_bytes} bytes: a file of this type has {most_bytes} at most")
    return size_bytes
