"""An example of every message, in the order of one session: a test runs it against a server.

A device ``phone-7`` pushes and pulls. Then an operator sets the policy of tasks to ``manual``, another device
changes the task, and ``phone-7`` changes the version that it has: this conflict waits for a person.
"""

from __future__ import annotations

from typing import Any, Final

Message = dict[str, Any]

_CURSOR: Final = "MS5lMWRhMzlmYmYwY2Q0ZmU0YTk1MTFkNDU4YmY2N2E0YS4yLmFsbC4x"
_CONFLICT_ID: Final = "b75d3cd60ad54989b1539c4137c16751"
_FILE_ID: Final = "6fd1a8d3c0de4c53a2c1b3a6a2d9f0b7"
_TASK: Final = {"title": "Inspect pump 3", "status": "ASSIGNED"}
_OTHERS: Final = {"title": "Inspect pump 4", "status": "ASSIGNED"}
_MINE: Final = {"title": "Inspect pump 3 twice", "status": "ASSIGNED"}
POLICIES: Final = {
    "task": "field_merge",
    "work_order": "field_merge",
    "attendance": "server_wins",
    "ticket": "preserve_escalation",
    "journal": "client_wins",
}
_LIMITS: Final = {"frame_bytes": 1048576, "items": 500, "record_bytes": 262144, "messages_per_minute": 6000}

#: Members whose values differ in each session: of these the examples show the form alone.
VOLATILE: Final = frozenset(
    {
        *("session", "server_time", "epoch", "cursor", "conflict_id", "file_id", "opened_at", "message"),
        *("health_score", "retry_after_ms", "clock", "hour", "judged_at", "policies", "domains"),
    }
)

#: What the file of the example is, and what its upload says of it.
FILE: Final = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
FILE_NAME: Final = "seal.pdf"

WELCOME: Final[Message] = {
    "type": "welcome",
    "session": "28e931dc1d0a4c0db371727f9391ccc0",
    "server_time": "2026-01-02T03:04:05.290173Z",
    "epoch": "e1da39fbf0cd4fe4a9511d458bf67a4a",
    "heartbeat_s": 30,
    "limits": _LIMITS,
    "policies": POLICIES,
    "events": ["voice", "behavioral", "session", "metrics"],
}
HELLO: Final[Message] = {
    "type": "hello",
    "app_version": "4.2.0",
    "os_version": "Android 15",
    "clock": "2026-01-02T03:04:05.310Z",
    "server_time": "2026-01-02T03:04:05.290173Z",
}
HEARTBEAT: Final[Message] = {
    "type": "heartbeat",
    "id": "1",
    "queue_depth": 4,
    "battery": 0.8,
    "network": "4g",
    "storage_free_mb": 900,
    "app_version": "4.2.0",
    "os_version": "Android 15",
}
HEARTBEAT_ACK: Final[Message] = {
    "type": "heartbeat_ack",
    "id": "1",
    "server_time": "2026-01-02T03:04:35Z",
    "health_score": 97,
}
SYNC: Final[Message] = {
    "type": "sync",
    "id": "2",
    "key": "6f1c2a94c0d84f5f9d43b7b1d7b0a6e2",
    "items": [
        {
            "domain": "task",
            "id": "a1",
            "op": "put",
            "base": None,
            "at": "2026-01-02T03:04:05Z",
            "data": _TASK,
            "changed": ["title", "status"],
        },
        {
            "domain": "journal",
            "id": "j1",
            "op": "patch",
            "at": "2026-01-02T03:04:06Z",
            "data": {"text": "gate open"},
        },
        {
            "domain": "voice",
            "id": "v1",
            "op": "append",
            "at": "2026-01-02T03:04:07Z",
            "data": {"verification_id": "v1", "timestamp": "2026-01-02T03:04:07Z"},
        },
    ],
}
SYNCED: Final[Message] = {
    "type": "synced",
    "id": "2",
    "replayed": False,
    "results": [
        {"domain": "task", "id": "a1", "status": "applied", "version": 1, "seq": 1},
        {"domain": "journal", "id": "j1", "status": "applied", "version": 1, "seq": 2},
        {
            "domain": "voice",
            "id": "v1",
            "status": "rejected",
            "error": {"code": "invalid_item", "message": "data.verified is required"},
        },
    ],
}
PULL: Final[Message] = {"type": "pull", "id": "3", "cursor": None, "domains": ["task"], "limit": 500}
CHANGES: Final[Message] = {
    "type": "changes",
    "cursor": _CURSOR,
    "more": False,
    "changes": [
        {
            "domain": "task",
            "id": "a1",
            "version": 1,
            "seq": 1,
            "deleted": False,
            "at": "2026-01-02T03:04:05Z",
            "device_id": "phone-7",
            "data": _TASK,
        }
    ],
    "id": "3",
}
SUBSCRIBE: Final[Message] = {"type": "subscribe", "id": "4", "cursor": None, "domains": ["task"]}
UNSUBSCRIBE: Final[Message] = {"type": "unsubscribe", "id": "4"}
UNSUBSCRIBED: Final[Message] = {"type": "unsubscribed", "id": "4"}
POLICIES_CHANGED: Final[Message] = {"type": "policies", "policies": POLICIES | {"task": "manual"}}
TELEMETRY: Final[Message] = {
    "type": "telemetry",
    "id": "5",
    "key": "0d7b5e2c",
    "hour": "2026-01-02T03:00:00Z",
    "counters": {"photos_taken": 14, "crashes": 0},
    "histograms": {"form_open": [[231, 4], [240, 1]]},
}
TELEMETRY_ACK: Final[Message] = {"type": "telemetry_ack", "id": "5", "replayed": False}
#: What another device pushes before the conflict.
OTHERS_CHANGE: Final[Message] = {
    "domain": "task",
    "id": "a1",
    "op": "put",
    "base": 1,
    "data": _OTHERS,
    "changed": ["title"],
}
CONFLICTING: Final[Message] = {
    "type": "sync",
    "id": "6",
    "key": "c0a1f3b27be14b6b8a90d0d3a5d6b7c8",
    "items": [
        {
            "domain": "task",
            "id": "a1",
            "op": "put",
            "base": 1,
            "at": "2026-01-02T03:09:00Z",
            "data": _MINE,
            "changed": ["title"],
        }
    ],
}
CONFLICTED: Final[Message] = {
    "type": "synced",
    "id": "6",
    "replayed": False,
    "results": [
        {
            "domain": "task",
            "id": "a1",
            "status": "conflict",
            "conflict_id": _CONFLICT_ID,
            "version": 2,
            "seq": 3,
            "data": _OTHERS,
        }
    ],
}
CONFLICTS: Final[Message] = {"type": "conflicts", "id": "7", "limit": 50, "after": None}
CONFLICT_LIST: Final[Message] = {
    "type": "conflicts",
    "id": "7",
    "conflicts": [
        {
            "conflict_id": _CONFLICT_ID,
            "domain": "task",
            "record_id": "a1",
            "policy": "manual",
            "server": {"version": 2, "data": _OTHERS},
            "client": {
                "base": 1,
                "at": "2026-01-02T03:09:00Z",
                "device_id": "phone-7",
                "data": _MINE,
                "op": "put",
                "changes": 1,
            },
            "opened_at": "2026-01-02T03:09:01.319796Z",
        }
    ],
    "after": None,
}
RESOLVE: Final[Message] = {
    "type": "resolve",
    "id": "8",
    "conflict_id": _CONFLICT_ID,
    "choice": "merged",
    "version": 2,
    "changes": 1,
    "data": {"title": "Inspect pumps 3 and 4", "status": "ASSIGNED"},
}
RESOLVED: Final[Message] = {
    "type": "resolved",
    "id": "8",
    "conflict_id": _CONFLICT_ID,
    "version": 3,
    "seq": 4,
}
NOT_FOUND: Final[Message] = {
    "type": "resolve",
    "id": "9",
    "conflict_id": "none",
    "choice": "client",
    "version": 1,
}
ERROR: Final[Message] = {
    "type": "error",
    "id": "9",
    "code": "not_found",
    "message": "there is no such conflict",
    "retryable": False,
}
GOODBYE: Final[Message] = {"type": "goodbye", "reason": "replaced", "retry_after_ms": 500}
DOMAINS: Final[Message] = {
    "type": "domains",
    "domains": {
        "task": {
            "kind": "record",
            "required": [],
            "status": {"ASSIGNED": ["INPROGRESS", "STANDBY"], "INPROGRESS": ["COMPLETED", "STANDBY"]},
            "policy": "field_merge",
            "fallback": "most_recent_wins",
            "server_owned": ["escalation_level", "escalated_at", "escalated_by", "status"],
        },
        "metrics": {"kind": "event", "required": ["metric_name", "value", "timestamp"], "status": {}},
    },
}

#: The examples of each schema of a message.
EXAMPLES: Final[dict[str, tuple[Message, ...]]] = {
    "Welcome": (WELCOME,),
    "Hello": (HELLO,),
    "Heartbeat": (HEARTBEAT,),
    "HeartbeatAck": (HEARTBEAT_ACK,),
    "Sync": (SYNC, CONFLICTING),
    "Synced": (SYNCED, CONFLICTED),
    "Pull": (PULL,),
    "Changes": (CHANGES,),
    "Subscribe": (SUBSCRIBE,),
    "Unsubscribe": (UNSUBSCRIBE,),
    "Unsubscribed": (UNSUBSCRIBED,),
    "PoliciesChanged": (POLICIES_CHANGED,),
    "Telemetry": (TELEMETRY,),
    "TelemetryAck": (TELEMETRY_ACK,),
    "Conflicts": (CONFLICTS,),
    "ConflictList": (CONFLICT_LIST,),
    "Resolve": (RESOLVE,),
    "Resolved": (RESOLVED,),
    "Error": (ERROR,),
    "Goodbye": (GOODBYE,),
    "DomainList": (DOMAINS,),
}


def over_http(message: Message, *given: str) -> Message:
    """Return an example as it is over HTTP: without its ``id``, and without members that the path gives."""
    return {name: value for name, value in message.items() if name not in {"id", *given}}
