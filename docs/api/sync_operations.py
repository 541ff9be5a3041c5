"""The operations of devices on messages."""

from __future__ import annotations

from typing import Final

from docs.api import examples, limits
from docs.api.examples import over_http
from docs.api.operation import (
    AUTHENTICATED,
    MESSAGE,
    TOKEN_COSTS,
    Answer,
    Operation,
    Parameter,
    as_message,
    preflight,
)
from engine.feed.cursor import MAX_DOMAINS

_LIMIT: Final = {"type": "integer", "minimum": 1, "maximum": 1000}
_CONFLICT: Final = Parameter(
    "conflict_id", "path", {"type": "string"}, "The conflict.", examples.RESOLVE["conflict_id"], required=True
)
_TAG: Final = "Sync"

_OPERATIONS: Final = (
    Operation(
        "GET",
        "/v1/sync",
        "open_socket",
        _TAG,
        "Open the WebSocket",
        "Its messages are described in `/asyncapi.json`. The subprotocol chooses the encoding:"
        " `tidemark.v1.json` or `tidemark.v1.msgpack`. A client that cannot set headers offers the"
        " subprotocol `bearer.TOKEN` beside it. A server that cannot serve now accepts the handshake, sends"
        " the error `unavailable` and closes with 4503.",
        {101: Answer("The connection is a WebSocket now. The first message is `welcome`.")},
        (*AUTHENTICATED, "invalid_message"),
        (*TOKEN_COSTS, *limits.SOCKET),
        (
            Parameter("Upgrade", "header", {"type": "string"}, "`websocket`."),
            Parameter("Sec-WebSocket-Protocol", "header", {"type": "string"}, "The subprotocols offered."),
        ),
    ),
    Operation(
        "POST",
        "/v1/sync",
        "push",
        _TAG,
        "Push changes",
        "The server answers after everything that it reports is on disk. Until a device has the answer, it"
        " sends the same message again under the same `key`: nothing is applied twice. An item at fault"
        " rejects only itself, unless the message is atomic.",
        {
            200: Answer(
                "One result for each item, in order.", as_message("Synced"), over_http(examples.SYNCED)
            )
        },
        (*MESSAGE, "idempotency_key_reused"),
        (*TOKEN_COSTS, *limits.BODY, *limits.PUSH),
        body=as_message("Sync"),
        example=over_http(examples.SYNC),
    ),
    Operation(
        "GET",
        "/v1/changes",
        "pull",
        _TAG,
        "Pull one page of the feed",
        "Store each page and its cursor in one transaction. While `more` is true, pull again with the"
        " cursor. Ignore a change whose version is not above the one that the device has, but take the"
        " `attachments` of the change of the highest `seq`: a file makes no version. Events are in no page.",
        {200: Answer("A page.", as_message("Changes"), over_http(examples.CHANGES))},
        (*AUTHENTICATED, "invalid_message", "cursor_expired"),
        (*TOKEN_COSTS, *limits.FEED),
        (
            Parameter(
                "cursor",
                "query",
                {"type": "string"},
                "The cursor of the page before. Missing: the beginning.",
            ),
            Parameter(
                "domains",
                "query",
                {"type": "array", "items": {"type": "string"}, "maxItems": MAX_DOMAINS},
                "The domains that are wanted. Missing: all. A cursor belongs to its set of domains.",
                ["task"],
                separated=True,
            ),
            Parameter("limit", "query", _LIMIT | {"default": 500}, "The most changes of the page.", 500),
        ),
    ),
    Operation(
        "GET",
        "/v1/conflicts",
        "list_conflicts",
        _TAG,
        "List open conflicts",
        "A device sees the conflicts that its own changes opened, a supervisor those of the tenant. The"
        " oldest comes first.",
        {200: Answer("A page.", as_message("ConflictList"), over_http(examples.CONFLICT_LIST))},
        (*AUTHENTICATED, "invalid_message"),
        (*TOKEN_COSTS, *limits.READ),
        (
            Parameter("limit", "query", _LIMIT | {"default": 50}, "The most conflicts of the page.", 50),
            Parameter("after", "query", {"type": "string"}, "The `after` of the page before."),
        ),
    ),
    Operation(
        "POST",
        "/v1/conflicts/{conflict_id}/resolution",
        "resolve_conflict",
        _TAG,
        "Settle a conflict",
        "`version` and `changes` are those that the person saw. Without `changes` the server does not check"
        " whether the person saw all of them. A device settles its own conflicts, a supervisor all of the"
        " tenant. The same decision again returns the first answer again.",
        {200: Answer("The outcome.", as_message("Resolved"), over_http(examples.RESOLVED))},
        (*MESSAGE, "not_found", "conflict_stale", "conflict_closed"),
        (*TOKEN_COSTS, *limits.BODY, *limits.RESOLVE),
        (_CONFLICT,),
        as_message("Resolve"),
        over_http(examples.RESOLVE, "type", "conflict_id"),
    ),
    Operation(
        "POST",
        "/v1/heartbeat",
        "heartbeat",
        _TAG,
        "Tell the state of the device",
        "Operators see devices whose queue grows.",
        {
            200: Answer(
                "The time and the score.", as_message("HeartbeatAck"), over_http(examples.HEARTBEAT_ACK)
            )
        },
        MESSAGE,
        (*TOKEN_COSTS, *limits.BODY),
        body=as_message("Heartbeat"),
        example=over_http(examples.HEARTBEAT, "type"),
    ),
    Operation(
        "POST",
        "/v1/telemetry",
        "telemetry",
        _TAG,
        "Send what the device counted in an hour",
        "The counts are on disk when the answer comes. A message that was refused is never accepted later,"
        " unless the error is retryable.",
        {200: Answer("Stored.", as_message("TelemetryAck"), over_http(examples.TELEMETRY_ACK))},
        (*MESSAGE, "idempotency_key_reused"),
        (*TOKEN_COSTS, *limits.BODY, *limits.TELEMETRY),
        body=as_message("Telemetry"),
        example=over_http(examples.TELEMETRY, "type"),
    ),
    Operation(
        "GET",
        "/v1/domains",
        "list_domains",
        _TAG,
        "Ask for the rules of each domain",
        "So that a device can refuse an edit before it stores and sends it. Ask once a day, and after a"
        " message `policies`: only here are the fallbacks. An edit may take several steps of `status` at"
        " once.",
        {200: Answer("The rules by the name of the domain.", as_message("DomainList"), examples.DOMAINS)},
        AUTHENTICATED,
        TOKEN_COSTS,
    ),
)

OPERATIONS: Final = (
    *_OPERATIONS,
    *(
        preflight(path, *([_CONFLICT] if "{" in path else []))
        for path in dict.fromkeys(one.path for one in _OPERATIONS)
    ),
)
