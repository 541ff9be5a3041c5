"""Maps exceptions to the errors of the contract, in one place."""

from __future__ import annotations

import uuid
from typing import Final

import msgspec
import structlog

from engine.runtime.ports import StoreError, StoreFullError, StoreUnreadableError
from engine.runtime.rate_limit import retry_later_ms, retry_soon_ms
from engine.uploads.blobs import BlobsError, BlobsFullError
from engine.wire.errors import SyncError
from handlers.http.response_headers import FOR_BROWSERS

_log = structlog.get_logger()
_encode = msgspec.json.encode


def as_sync_error(error: Exception, **context: object) -> SyncError:
    """Return the error that the device is told.

    Args:
        error: The exception. A SyncError is returned as it is. A store that is away is ``unavailable``, as is
            one whose sealed data cannot be opened: the log names them. Any other exception is ``internal``:
            it is logged under an ``error_id``, which the device gets instead of any detail.
        **context: Fields of the log line.
    """
    if isinstance(error, SyncError):
        return error
    if isinstance(error, StoreError):
        _log.warning("store_failed", reason=type(error).__name__, detail=error.detail, **context)
        if isinstance(error, StoreFullError):
            sentence = "the database's disk is full"
            return SyncError("insufficient_storage", sentence, retry_after_ms=retry_later_ms())
        unreadable = isinstance(error, StoreUnreadableError)
        sentence = "the stored data cannot be read now" if unreadable else "the database is away"
        return SyncError("unavailable", sentence, retry_after_ms=retry_soon_ms())
    if isinstance(error, BlobsError):
        full = isinstance(error, BlobsFullError)
        _log.warning("bytes_not_kept", reason=type(error).__name__, detail=str(error), **context)
        if full:
            code, sentence, wait_ms = "insufficient_storage", "there is no room for more", retry_later_ms()
        else:
            code, sentence, wait_ms = "unavailable", "the files' storage is away", retry_soon_ms()
        return SyncError(code, sentence, retry_after_ms=wait_ms)
    error_id = uuid.uuid4().hex
    _log.error("message_failed", error_id=error_id, exc_info=error, **context)
    return SyncError(
        "internal", "the server failed on this message: tell its operator the error_id", error_id=error_id
    )


def error_body(error: SyncError, request_id: str | None) -> bytes:
    """Return the whole ``error`` message as JSON; ``request_id`` None leaves ``id`` out."""
    body: dict[str, object] = {"type": "error"}
    body.update(error.details)
    if request_id is not None:
        body["id"] = request_id
    body["code"] = error.code
    body["message"] = shown(error.message)
    body["retryable"] = error.kind.retryable
    return _encode(body)


def shown(message: str) -> str:
    """Escape lone surrogates: header bytes that are not UTF-8 become such."""
    return message.encode(errors="backslashreplace").decode()


def http_status(error: SyncError) -> int:
    """Return the HTTP status of an error."""
    return error.kind.http or 422


_FOR_BROWSERS: Final = "".join(f"{name}: {value}\r\n" for name, value in FOR_BROWSERS.items())
#: The reason phrases of refusals before there is a request to answer.
_REASONS: Final = {408: "Request Timeout", 413: "Content Too Large", 503: "Service Unavailable"}


def early_answer(status: int, error: SyncError) -> bytes:
    """Return the bytes of a whole answer that ends its connection."""
    body = error_body(error, None)
    retry = ""
    if isinstance(wait_ms := error.details.get("retry_after_ms"), int):
        retry = f"Retry-After: {-(-wait_ms // 1000)}\r\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{_FOR_BROWSERS}{retry}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
