"""The operations of devices on files."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Final

from docs.api import examples, limits
from docs.api.components import ref
from docs.api.operation import AUTHENTICATED, TOKEN_COSTS, Answer, Operation, Parameter, preflight
from docs.costs.page import default_settings

_TAG: Final = "Files"
_BYTES: Final = {"type": "string", "format": "binary"}
_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer", "minimum": 0}
_ID: Final = {"type": "string", "pattern": "^[0-9a-f]{32}$"}


def metadata(**values: str) -> str:
    """Write ``Upload-Metadata``."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


METADATA: Final = metadata(
    filename=examples.FILE_NAME,
    filetype="application/pdf",
    domain="journal",
    record_id="j1",
    sha256=hashlib.sha256(examples.FILE).hexdigest(),
)


def _header(name: str, text: str, schema: dict[str, Any] = _TEXT, example: Any = None) -> Parameter:
    return Parameter(name, "header", schema, text, example)


_TUS: Final = _header("Tus-Resumable", "For tus: `1.0.0`.", {"type": "string", "enum": ["1.0.0"]}, "1.0.0")
_VERSION: Final = _header(
    "Upload-Draft-Interop-Version", "For the IETF draft: the version of the draft, 3 to 8."
)
_DRAFT_COMPLETE: Final = _header(
    "Upload-Complete", "For the IETF draft: `?1` if the upload ends with this request, else `?0`."
)
_DIGEST: Final = _header("Repr-Digest", "For the IETF draft: the SHA-256 of the whole file.")
_LENGTH: Final = _header("Upload-Length", "The size of the file in bytes.", _NUMBER, len(examples.FILE))
_CHECKSUM: Final = _header(
    "Upload-Checksum", "For tus: `sha1`, `sha256` or `md5`, a space, and the digest of the body in base64."
)
_UPLOAD: Final = Parameter(
    "upload_id",
    "path",
    _TEXT,
    "The upload. When it is complete, this is the `file_id` of its file.",
    "0" * 32,
    required=True,
)
_OFFSET: Final = _header("Upload-Offset", "Where the bytes of the body begin.", _NUMBER, 0)
_SENT: Final = {
    "Upload-Offset": "How many bytes the server has on disk.",
    "Upload-Expires": "For tus: when the upload ends if no byte comes.",
    "Upload-Complete": "For the IETF draft: `?1` if the upload is complete.",
    "Upload-Limit": "For the IETF draft: the largest size, and how long the upload is kept.",
}


def _types(kind: str) -> str:
    uploads = default_settings()["uploads"]
    size_mib = uploads[f"{kind}_bytes"] >> 20
    return f"{', '.join(f'`{one}`' for one in uploads[f'{kind}_types'])} (up to {size_mib} MiB)"


_METADATA_TEXT: Final = (
    "Pairs of a key and its value in base64, separated by commas. Required, but not of a `partial` upload:"
    " `filename`, `domain`, `record_id`. Optional: `filetype`, and `sha256` of the whole file: its 64 hex"
    " digits are the text that is put into base64. By default the types are, of images, "
    f"{_types('image')}; of documents, {_types('document')}; of voice clips, {_types('voice')}."
    " An operator may list others."
)
_KNOWN: Final = {
    "ETag": "The SHA-256 of the file.",
    "Repr-Digest": "The SHA-256 of the file (RFC 9530).",
    "Accept-Ranges": "`bytes`.",
}
_FILE: Final = _KNOWN | {"Content-Disposition": "The name of the file."}
_APPENDING: Final = (
    *("invalid_message", "not_found", "offset_mismatch", "upload_complete", "inconsistent_length"),
    *("unsupported_checksum", "checksum_mismatch", "unsupported_type", "unsupported_version"),
    *("upload_gone", "locked", "quota_exceeded"),
)
_APPEND: Final = (*TOKEN_COSTS, *limits.APPEND)
_ASKED: Final = (
    *AUTHENTICATED,
    "invalid_message",
    "not_found",
    "unsupported_version",
    "upload_gone",
    "locked",
)


def _append(method: str, name: str, text: str, more: tuple[Parameter, ...] = ()) -> Operation:
    return Operation(
        method,
        "/v1/uploads/{upload_id}",
        name,
        _TAG,
        "Append bytes, or cancel, by POST" if more else "Append bytes",
        text,
        {
            204: Answer("The bytes are on disk.", headers=_SENT),
            200: Answer("For the IETF draft: the upload is complete.", headers=_SENT),
            201: Answer("For old versions of the IETF draft: the bytes are on disk.", headers=_SENT),
        },
        (*AUTHENTICATED, *_APPENDING, *(("method_not_allowed",) if more else ())),
        _APPEND,
        (*more, _UPLOAD, _TUS, _OFFSET, _LENGTH, _CHECKSUM, _VERSION, _DRAFT_COMPLETE, _DIGEST),
        {"application/offset+octet-stream": _BYTES, "application/partial-upload": _BYTES},
    )


_FILE_ID: Final = Parameter("file_id", "path", _ID, "The file.", "0" * 32, required=True)
_RANGE: Final = (
    _FILE_ID,
    _header("Range", "One range of bytes."),
    _header("If-Range", "The `ETag` of the part that the device has."),
    _header("If-None-Match", "The `ETag` of the file that the device has."),
)

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/uploads",
        "create_upload",
        _TAG,
        "Create an upload",
        "By tus 1.0.0, or by the IETF draft of resumable uploads: a request without `Tus-Resumable` and with"
        " `Upload-Complete` or `Upload-Draft-Interop-Version` is one of the draft. The request may bring the"
        " bytes, or the first of them. The file joins its record when both are there, in either order. Its"
        " `file_id` is the"
        " `upload_id`; if the record has the same content under the same name already, the feed shows the"
        " first"
        " id, and both are good for downloads.",
        {
            201: Answer(
                "The upload is there.",
                headers=_SENT
                | {"Location": "Its path, `/v1/uploads/{upload_id}`. The file has the same id."},
            )
        },
        (*AUTHENTICATED, *_APPENDING),
        (*TOKEN_COSTS, *limits.CREATE),
        (
            _TUS,
            _LENGTH,
            _header(
                "Upload-Metadata",
                _METADATA_TEXT,
                example=METADATA,
            ),
            _header("Upload-Defer-Length", "For tus: `1` if the size comes later."),
            _header("Upload-Concat", "For tus: `partial`, or `final;` and the paths of the parts."),
            _CHECKSUM,
            _VERSION,
            _DRAFT_COMPLETE,
            _DIGEST,
            _header("Content-Disposition", "For the IETF draft: the name of the file."),
        ),
        {"application/offset+octet-stream": _BYTES, "application/octet-stream": _BYTES},
    ),
    Operation(
        "OPTIONS",
        "/v1/uploads",
        "upload_options",
        _TAG,
        "Ask for protocols and limits",
        "It needs no token. For browsers it is a preflight request, too.",
        {
            204: Answer(
                "What the server takes.",
                headers={
                    "Tus-Version": "The versions of tus.",
                    "Tus-Extension": "The extensions of tus.",
                    "Tus-Max-Size": "The largest size in bytes.",
                    "Tus-Checksum-Algorithm": "The algorithms of `Upload-Checksum`.",
                    "Upload-Limit": "For the IETF draft: the largest size.",
                },
            )
        },
        ("malformed", "too_large", "overloaded", "unavailable", "internal", "forbidden"),
        limits.CONNECTION,
        caller="anybody",
    ),
    preflight("/v1/uploads/{upload_id}", _UPLOAD),
    Operation(
        "HEAD",
        "/v1/uploads/{upload_id}",
        "upload_offset",
        _TAG,
        "Ask for the offset of an upload",
        "If another request of the device is running on the upload, it is ended, and its bytes are kept.",
        {
            200: Answer(
                "By tus.",
                headers=_SENT
                | {
                    "Upload-Length": "The size of the file, if it is known.",
                    "Upload-Metadata": "As it was sent.",
                },
            ),
            204: Answer("By the IETF draft.", headers=_SENT),
        },
        _ASKED,
        _APPEND,
        (_UPLOAD, _TUS, _VERSION),
    ),
    _append(
        "PATCH",
        "append",
        "The bytes are on disk when the answer comes. After a cut, ask for the offset and go on from there.",
    ),
    _append(
        "POST",
        "append_by_post",
        "As PATCH, for clients and proxies that do not know it. The header names the method that is meant,"
        " which may also be DELETE.",
        (
            Parameter(
                "X-HTTP-Method-Override",
                "header",
                {"type": "string", "enum": ["PATCH", "DELETE"]},
                "The method that is meant.",
                "PATCH",
                required=True,
            ),
        ),
    ),
    Operation(
        "DELETE",
        "/v1/uploads/{upload_id}",
        "cancel_upload",
        _TAG,
        "Cancel an upload, or delete its file",
        "Only the device that sent a file can do this.",
        {204: Answer("Done.")},
        _ASKED,
        _APPEND,
        (_UPLOAD, _TUS, _VERSION),
    ),
    Operation(
        "GET",
        "/v1/files/{file_id}",
        "download",
        _TAG,
        "Download a file",
        "For every device of the tenant. The content under an id never changes. HEAD returns the headers.",
        {
            200: Answer("The file.", {"*/*": _BYTES}, headers=_FILE),
            206: Answer(
                "The range.", {"*/*": _BYTES}, headers=_FILE | {"Content-Range": "Which bytes these are."}
            ),
            304: Answer("The device has the file already.", headers=_KNOWN),
            416: Answer(
                "The file has no such bytes: `invalid_message`.",
                {"application/json": ref("Error")},
                headers={"Content-Range": "How many bytes the file has."},
            ),
        },
        (*AUTHENTICATED, "not_found"),
        (*TOKEN_COSTS, *limits.READ),
        _RANGE,
    ),
    preflight("/v1/files/{file_id}", _FILE_ID),
)
