"""Every error that a device can get: one table of code, HTTP status, retryable, cause and remedy."""

from __future__ import annotations

from typing import Final

import msgspec


class ErrorKind(msgspec.Struct, frozen=True):
    """One row of the error table. ``http`` is None for codes of items."""

    code: str
    http: int | None
    retryable: bool
    cause: str
    remedy: str


def _table(*kinds: ErrorKind) -> dict[str, ErrorKind]:
    return {kind.code: kind for kind in kinds}


ERRORS: Final = _table(
    ErrorKind(
        "malformed",
        400,
        False,
        "The frame is not JSON or MessagePack, nests deeper than 32, is nearly all empty objects and arrays,"
        " or holds NaN or Infinity.",
        "Fix the encoder; the same bytes never succeed.",
    ),
    ErrorKind(
        "invalid_message",
        422,
        False,
        "A field of the envelope is missing, of a wrong type or out of range.",
        "Correct the field that the message names.",
    ),
    ErrorKind(
        "unknown_type",
        422,
        False,
        "The message's type is none that this version knows.",
        "Use a type of the wire contract.",
    ),
    ErrorKind(
        "too_large",
        413,
        False,
        "A message or a record is over a limit.",
        "Split the message, or make the record smaller; the welcome names the limits.",
    ),
    ErrorKind(
        "unauthenticated",
        401,
        False,
        "The token is missing, malformed, expired, revoked or meant for another audience.",
        "Obtain a fresh token, then reconnect.",
    ),
    ErrorKind(
        "forbidden",
        403,
        False,
        "The token is good but does not allow this.",
        "Use a token with the needed role.",
    ),
    ErrorKind(
        "not_found",
        404,
        False,
        "There is no such thing, or it is not yours.",
        "Check the identifier.",
    ),
    ErrorKind(
        "method_not_allowed",
        405,
        False,
        "The path takes other methods; the header Allow names them.",
        "Use a method of the wire contract.",
    ),
    ErrorKind(
        "idempotency_key_reused",
        409,
        False,
        "The key was used before for other items.",
        "Choose a new key for new items; a retry repeats its items byte for byte.",
    ),
    ErrorKind(
        "conflict_stale",
        409,
        False,
        "The record moved on since the decision was made, or its device made another change.",
        "Decide again on the version and data in the error; list the conflicts again if changes differ.",
    ),
    ErrorKind(
        "conflict_closed",
        409,
        False,
        "The conflict was settled already, in another way.",
        "Pull: the feed holds the outcome.",
    ),
    ErrorKind(
        "cursor_expired",
        410,
        False,
        "The cursor is of another tenant, epoch or set of domains, or ahead of the feed.",
        "Pull again with cursor null; what that pull does not hold is gone.",
    ),
    ErrorKind(
        "offset_mismatch",
        409,
        False,
        "An upload does not stand at the offset that the request names.",
        "Ask for the offset with HEAD, then go on from there.",
    ),
    ErrorKind(
        "upload_complete",
        400,
        False,
        "Bytes were sent to an upload that has all of them.",
        "Nothing is left to do: the file is there.",
    ),
    ErrorKind(
        "inconsistent_length",
        400,
        False,
        "A request says another length of an upload than was known before.",
        "Say the same length each time, or begin another upload.",
    ),
    ErrorKind(
        "unsupported_checksum",
        400,
        False,
        "A checksum by an algorithm that is not known here.",
        "Use one that OPTIONS names in Tus-Checksum-Algorithm.",
    ),
    ErrorKind(
        "unsupported_version",
        412,
        False,
        "A request to uploads by a version of the protocol that is not spoken here, or by none.",
        "Use a client of tus 1.0.0, or of the IETF draft for resumable uploads.",
    ),
    ErrorKind(
        "upload_gone",
        410,
        False,
        "The upload expired, was cancelled or refused, or its file was freed.",
        "Begin another upload.",
    ),
    ErrorKind(
        "locked",
        423,
        True,
        "Another request is under way on this upload.",
        "Ask for the offset with HEAD, which ends the other one, then go on from there.",
    ),
    ErrorKind(
        "checksum_mismatch",
        460,
        False,
        "What came is not what its checksum says; nothing of it was kept.",
        "A chunk: send it again from the same offset. A whole file: begin another upload.",
    ),
    ErrorKind(
        "unsupported_type",
        415,
        False,
        "A type of file that is not taken, or content that is not of the type it was said to be.",
        "Send a file of a type that the settings list, and say which.",
    ),
    ErrorKind(
        "quota_exceeded",
        413,
        False,
        "The tenant's files, or the record's, are as many as they may be.",
        "Have files removed or the quota raised.",
    ),
    ErrorKind(
        "insufficient_storage",
        507,
        True,
        "The tenant, the device's open uploads or the server have no room for more; nothing of the message"
        " was accepted, and all that was acknowledged is kept.",
        "Wait for retry_after_ms, which is a minute or so, then send the very same message; ask for an"
        " upload's offset before. An operator makes room or raises a bound.",
    ),
    ErrorKind(
        "rate_limited",
        429,
        True,
        "The device or its tenant sends more than its rate allows.",
        "Wait for retry_after_ms.",
    ),
    ErrorKind(
        "overloaded",
        503,
        True,
        "The queue is too slow or too full; nothing of the message was accepted.",
        "Wait for retry_after_ms, then send the very same message.",
    ),
    ErrorKind(
        "unavailable",
        503,
        True,
        "The database is away, or this server goes away; nothing was accepted, or the key finds the answer."
        " Of an upload: its body broke off; what came is kept, up to the offset.",
        "Wait for retry_after_ms, then send the very same message; ask for an upload's offset before.",
    ),
    ErrorKind(
        "internal",
        500,
        True,
        "A fault of the server, logged under the error_id.",
        "Send the very same message again later; report the error_id if it stays.",
    ),
    ErrorKind(
        "invalid_item",
        None,
        False,
        "One item breaks a rule of values or of its domain.",
        "Correct the item and send it under a new key.",
    ),
    ErrorKind(
        "unknown_domain",
        None,
        False,
        "The item's domain is not configured.",
        "Use a domain of the welcome's policies, or an event domain.",
    ),
    ErrorKind(
        "unknown_base",
        None,
        False,
        "A patch names a base of a record that the server does not have.",
        "Send the whole record with put.",
    ),
    ErrorKind(
        "creation_rejected",
        None,
        False,
        "A patch without a base of a record that the server does not have, because what the device sent of it"
        " before was rejected.",
        "Send the whole record as a put.",
    ),
    ErrorKind(
        "batch_aborted",
        None,
        False,
        "Another item of the same atomic message was rejected or held.",
        "Correct that item and send the message under a new key.",
    ),
)


class SyncError(Exception):
    """A message was refused as a whole, with a code of ``ERRORS``.

    ``details`` are further fields of the answer (``engine.wire.messages.Error``).
    """

    def __init__(self, code: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.kind = ERRORS[code]
        self.code = code
        self.message = message
        self.details = details
