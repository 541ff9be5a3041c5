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
        "The frame is not JSON or MessagePack, nests deeper than 32, consists almost only of empty objects"
        " and arrays, or holds NaN or Infinity.",
        "Fix the encoder. The same bytes never succeed.",
    ),
    ErrorKind(
        "invalid_message",
        422,
        False,
        "A field of the message, outside its items, is missing, has a wrong type or is out of range.",
        "Correct the field that the sentence in `message` names.",
    ),
    ErrorKind(
        "unknown_type",
        422,
        False,
        "This version does not know the type of the message.",
        "Use a type of the wire contract.",
    ),
    ErrorKind(
        "too_large",
        413,
        False,
        "A message or a record is over a limit.",
        "Split the message, or make the record smaller. The welcome names the limits.",
    ),
    ErrorKind(
        "unauthenticated",
        401,
        False,
        "The token is missing, malformed, expired, revoked or meant for another audience.",
        "Get a fresh token, then connect again.",
    ),
    ErrorKind(
        "forbidden",
        403,
        False,
        "The token is valid but does not allow this request.",
        "Use a token with the needed role.",
    ),
    ErrorKind(
        "not_found",
        404,
        False,
        "Nothing has this id, or it belongs to another device or tenant.",
        "Check the id.",
    ),
    ErrorKind(
        "method_not_allowed",
        405,
        False,
        "The path does not take this method.",
        "Use a method that the header Allow names.",
    ),
    ErrorKind(
        "idempotency_key_reused",
        409,
        False,
        "The device used this key before, for other items.",
        "Choose a new key for new items. In a retry, repeat the items byte for byte.",
    ),
    ErrorKind(
        "conflict_stale",
        409,
        False,
        "After the decision was made, the record got a newer version, or its device made another change.",
        "Decide again with the version and data in the error. If `changes` differs, list the conflicts"
        " again.",
    ),
    ErrorKind(
        "conflict_closed",
        409,
        False,
        "The conflict is already settled, in another way.",
        "Pull: the feed has the outcome.",
    ),
    ErrorKind(
        "cursor_expired",
        410,
        False,
        "The cursor belongs to another tenant, epoch or set of domains, or is ahead of the feed.",
        "Pull again with cursor null and the same domains. After the last page delete the records of these"
        " domains that the pull did not bring. Keep edits that are not acknowledged, and all other domains.",
    ),
    ErrorKind(
        "offset_mismatch",
        409,
        False,
        "The upload is not at the offset that the request names.",
        "Ask for the offset with HEAD, then continue from that offset.",
    ),
    ErrorKind(
        "upload_complete",
        400,
        False,
        "The request brings bytes to an upload that already has all its bytes.",
        "Do nothing: the file is complete.",
    ),
    ErrorKind(
        "inconsistent_length",
        400,
        False,
        "The request names another length of the upload than an earlier request.",
        "Name the same length each time, or begin another upload.",
    ),
    ErrorKind(
        "unsupported_checksum",
        400,
        False,
        "The server does not know the algorithm of the checksum.",
        "Use an algorithm that OPTIONS names in Tus-Checksum-Algorithm.",
    ),
    ErrorKind(
        "unsupported_version",
        412,
        False,
        "The request names no version of the upload protocol, or one that the server does not know.",
        "Use a client of tus 1.0.0, or of the IETF draft for resumable uploads.",
    ),
    ErrorKind(
        "upload_gone",
        410,
        False,
        "The upload expired, was cancelled or refused, or its file was deleted.",
        "Begin another upload.",
    ),
    ErrorKind(
        "locked",
        423,
        True,
        "Another request is running on this upload.",
        "Ask for the offset with HEAD, which ends the other request. Then continue from that offset.",
    ),
    ErrorKind(
        "checksum_mismatch",
        460,
        False,
        "The bytes do not match their checksum. The server kept none of them.",
        "Send a chunk again from the same offset. For a whole file, begin another upload.",
    ),
    ErrorKind(
        "unsupported_type",
        415,
        False,
        "The server does not accept this type of file, or the content is not of the type that was named.",
        "Send a file of a type that the operator lists (`POST /v1/uploads` has the default), and name its"
        " type.",
    ),
    ErrorKind(
        "quota_exceeded",
        413,
        False,
        "The files of the tenant, or of the record, have reached their limit.",
        "Delete files, or ask the operator to raise the quota.",
    ),
    ErrorKind(
        "insufficient_storage",
        507,
        True,
        "The tenant, the device's open uploads or the server have no room left. The server stored nothing of"
        " the message, and keeps everything that it acknowledged.",
        "Wait retry_after_ms, about a minute, then send the same message again; for an upload, first ask for"
        " the offset with HEAD. An operator has to make room or raise a limit.",
    ),
    ErrorKind(
        "rate_limited",
        429,
        True,
        "The device or its tenant sends more messages, or the device begins more uploads, than its rate"
        " allows.",
        "Send nothing more until retry_after_ms has passed. Then send the same messages again, one after"
        " another. More than 100 refusals in a row close the connection with 4429.",
    ),
    ErrorKind(
        "overloaded",
        503,
        True,
        "The server's queue is too slow or too full. The server stored nothing of the message.",
        "Wait retry_after_ms, then send the same message again.",
    ),
    ErrorKind(
        "unavailable",
        503,
        True,
        "The database cannot be reached, or this server is stopping. The message may or may not have been"
        " stored; of an upload whose request broke off, the bytes up to the offset are kept.",
        "Wait retry_after_ms, then send the same message again under the same key: if it was stored, you get"
        " its answer. For an upload, first ask for the offset with HEAD.",
    ),
    ErrorKind(
        "internal",
        500,
        True,
        "A bug of the server. Its log has the cause under the error_id.",
        "Send the same message again later. Report the error_id if the error remains.",
    ),
    ErrorKind(
        "invalid_item",
        None,
        False,
        "The item breaks a rule for values or a rule of its domain.",
        "Correct the item as `message` says, and send it under a new key. `Data` has the rules for values,"
        " `GET /v1/domains` those of domains.",
    ),
    ErrorKind(
        "unknown_domain",
        None,
        False,
        "The server has no domain of this name.",
        "Use a domain that the welcome lists in `policies` or `events`.",
    ),
    ErrorKind(
        "unknown_base",
        None,
        False,
        "The item is a patch with a base, but the server does not have the record.",
        "Send the whole record as a put.",
    ),
    ErrorKind(
        "creation_rejected",
        None,
        False,
        "The item is a patch without a base, but the server does not have the record: it rejected an earlier"
        " item of this device on it.",
        "Send the whole record as a put.",
    ),
    ErrorKind(
        "batch_aborted",
        None,
        False,
        "Another item of the same atomic message was rejected, or is a conflict that a person would have to"
        " settle.",
        "Correct that other item, which `message` names by its place from 0, and send the message under a new"
        " key.",
    ),
)

#: The codes by which the service refuses what a device rightly asked. All others are the device's own.
SERVICE_ERRORS: Final = frozenset(("unavailable", "overloaded", "internal"))


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
