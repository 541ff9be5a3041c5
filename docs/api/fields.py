"""What the Structs of the messages do not say: a text for each field, and the schema of undecoded parts."""

from __future__ import annotations

from typing import Final, get_args

from docs.api.components import Schema, ref
from engine.feed.cursor import MAX_DOMAINS
from engine.model.domains import Fallback, Policy
from engine.model.minutes import DURATION_BOUNDS_US
from engine.model.telemetry import MAX_BYTES, MAX_COUNTERS, MAX_HISTOGRAMS
from engine.wire.errors import ERRORS
from engine.wire.values import MAX_ID_CHARS

#: A field of a Struct, by the Struct's name.
Field = tuple[str, str]


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": ref(name)}


_DATA: Final[Schema] = ref("Data")
_NULLABLE_DATA: Final = _nullable(_DATA)
_NULLABLE_DOMAINS: Final = _nullable(
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_DOMAINS}
)
_INSTANT: Final[Schema] = {"type": "string", "format": "date-time"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_CODES: Final = sorted(code for code, kind in ERRORS.items() if kind.http is not None)
_ITEM_CODES: Final = sorted(
    {code for code, kind in ERRORS.items() if kind.http is None} | {"too_large"}  # the one code of both
)
_NAME: Final = "^[A-Za-z][A-Za-z0-9_.-]{0,63}$"

#: Schemas that no Struct stands for.
EXTRA: Final[dict[str, Schema]] = {
    "Data": {
        "title": "Data",
        "description": "The content of a record or an event: a JSON object. It may hold integers from -2^63"
        " to 2^63-1, finite numbers, texts without U+0000 and without lone surrogates, booleans, null,"
        " arrays and objects, up to 1000 top-level fields, and nest up to depth 32 together with its"
        " message. In JavaScript numbers are exact to 2^53 only: store longer ones as text. Of two members"
        " of one name the last one counts. MessagePack may not hold binary or extension values.",
        "type": "object",
        "additionalProperties": True,
    },
}

#: Schemas of fields whose Struct leaves them undecoded, or says less than the contract. One with a type
#: replaces that of the Struct; the others add to it.
REFINED: Final[dict[Field, Schema]] = {
    ("Sync", "items"): _list_of("Item"),
    ("Item", "id"): {"minLength": 1, "maxLength": MAX_ID_CHARS},
    ("Item", "base"): _nullable({"type": "integer", "minimum": 1}),
    ("Item", "data"): _NULLABLE_DATA,
    ("Pull", "domains"): _NULLABLE_DOMAINS,
    ("Subscribe", "domains"): _NULLABLE_DOMAINS,
    ("Resolve", "data"): _NULLABLE_DATA,
    ("Telemetry", "counters"): {
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 2**53},
        "maxProperties": MAX_COUNTERS,
    },
    ("Telemetry", "histograms"): {
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": {
            "type": "array",
            "items": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
        },
        "maxProperties": MAX_HISTOGRAMS,
    },
    ("ItemError", "code"): {"type": "string", "enum": _ITEM_CODES},
    ("Error", "code"): {"type": "string", "enum": _CODES},
    ("Error", "data"): _NULLABLE_DATA,
    ("Error", "retry_after_ms"): _COUNT,
    ("Error", "offset"): _COUNT,
    ("Result", "data"): _NULLABLE_DATA,
    ("Welcome", "server_time"): _INSTANT,
    ("Attachment", "at"): _INSTANT,
    ("Attachment", "file_id"): {"pattern": "^[0-9a-f]{32}$"},
    ("Attachment", "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    ("Attachment", "size_bytes"): _COUNT,
    ("Change", "at"): _INSTANT,
    ("Change", "data"): _NULLABLE_DATA,
    ("Change", "attachments"): _list_of("Attachment"),
    ("HeartbeatAck", "server_time"): _INSTANT,
    ("HeartbeatAck", "health_score"): {"type": "integer", "minimum": 0, "maximum": 100},
    ("ServerSide", "data"): _NULLABLE_DATA,
    ("ClientSide", "at"): _INSTANT,
    ("ClientSide", "data"): _NULLABLE_DATA,
    ("ClientSide", "op"): {"type": "string", "enum": ["delete", "patch", "put"]},
    ("OpenConflict", "opened_at"): _INSTANT,
    ("DomainInfo", "policy"): {"type": "string", "enum": sorted(get_args(Policy))},
    ("DomainInfo", "fallback"): {"type": "string", "enum": sorted(get_args(Fallback))},
    ("Goodbye", "retry_after_ms"): _COUNT,
}

#: What one field asks of others, by Struct.
CONDITIONS: Final[dict[str, Schema]] = {
    "Item": {
        "if": {"properties": {"op": {"const": "append"}}, "required": ["op"]},
        "then": {"properties": {"at": _INSTANT}, "required": ["at"]},
    },
}

#: What a field means, by its name, or by its Struct and name where the name alone has another meaning.
TEXTS: Final[dict[str | Field, str]] = {
    "type": "The type of the message.",
    "id": "Chosen by the device. The answer and the error repeat it.",
    ("Item", "id"): "The record or event, as its device named it. Control characters are not allowed.",
    ("Result", "id"): "The `id` of the item; null if it had none.",
    ("Change", "id"): "The record.",
    ("Error", "id"): "The `id` of the request; missing if it could not be read, or if there is none, as in"
    " `hello`.",
    "app_version": "The version of the app.",
    "os_version": "The operating system and its version.",
    "clock": "The device's own time at the moment of sending. By it the server corrects the `at` of items.",
    "server_time": "The server's time.",
    ("Hello", "server_time"): "The latest `server_time` that the device had got when it read its `clock`.",
    ("Heartbeat", "server_time"): "As in `hello`. Send it together with `clock`.",
    "key": "Chosen by the device, random, and stored until the message is answered. By it the server knows"
    " a message that is sent again. Never use a key for another message.",
    "items": "The changes, in the order in which they apply. A retry repeats the array byte for byte.",
    ("Limits", "items"): "The most items of a `sync`.",
    "atomic": "True: all items are stored, or none.",
    "domain": "The kind of data.",
    ("Result", "domain"): "The `domain` of the item; null if it had none.",
    "op": "`put`: the whole record. `patch`: an RFC 7396 merge patch. `delete`: a tombstone. `append`: an"
    " event.",
    ("ClientSide", "op"): "The operation that has the same effect as all changes of the device.",
    "base": "The version that the device changed; null or missing if it knew of no version. On an existing"
    " record null is a conflict, unless all its versions are of the device itself, or the record equals the"
    " item.",
    ("ClientSide", "base"): "The base of the first change that still counts.",
    "at": "When the change was made, by the device's own clock. Missing: now. It decides under"
    " `most_recent_wins`. An event must have it, as a part of its name: keep it in a retry.",
    ("Change", "at"): "When the change was made, as corrected by the server. Sort by `seq`, not by this.",
    ("ClientSide", "at"): "The time of the last change.",
    ("Attachment", "at"): "When the file joined the record, by the server's clock: when both were there.",
    "data": "The record. Null: it is deleted.",
    ("Result", "data"): "With `resolved` and `conflict`: the server's record now. Replace the device's copy"
    " with it, under every `winner`, unless the device has a newer version. Null: the record is deleted."
    " Missing, though the status is one of these: the answer was too long, or is `replayed`; pull.",
    ("Item", "data"): "The record, the patch or the event. A `delete` has none.",
    ("Resolve", "data"): "With the choice `merged`: the record.",
    ("ClientSide", "data"): "The record if the device's side wins; null for a delete.",
    "changed": "The top-level fields that a `put` changed, under `field_merge`. Missing: every field counts"
    " as changed, and in a conflict the edits of one side are lost as a whole. Always send it, or send a"
    " `patch`.",
    "cursor": "The place in the feed after this page. Store it in one transaction with the page.",
    ("Pull", "cursor"): "Where the page begins: the cursor of the page before. Null: the beginning.",
    ("Subscribe", "cursor"): "Where to begin: the cursor of the last page. Null: the beginning.",
    "domains": "The domains that are wanted; null for all.",
    ("DomainList", "domains"): "The rules of each domain, by its name.",
    "limit": "The most entries of a page.",
    "after": "The `after` of the page before.",
    ("ConflictList", "after"): "Ask again with this value; null at the end of the list.",
    "queue_depth": "How many changes wait on the device.",
    "battery": "The charge, 0 to 1. A negative value counts as missing.",
    "network": "The kind of network, such as `4g`.",
    "storage_free_mb": "The free storage in megabytes. A negative value counts as missing.",
    "conflict_id": "The conflict.",
    ("Result", "conflict_id"): "With `conflict`: the conflict that waits for a person. Missing in an atomic"
    " message: no conflict was opened.",
    "choice": "Whose side wins. Each choice writes a new version, also `server`, with the same data.",
    "version": "The record's version.",
    ("Resolve", "version"): "The server's version that the person saw.",
    "changes": "How many changes of the device the conflict has.",
    ("Resolve", "changes"): "How many changes of the device the person saw. Missing: not checked.",
    ("Changes", "changes"): "The changes, in ascending order of `seq`.",
    "hour": "The beginning of an hour in UTC, by the device's clock: at most 7 days ago.",
    "counters": f"Whole numbers by name. Together with `histograms` they have up to {MAX_BYTES} bytes.",
    "histograms": f"Durations by name, as pairs of bucket (0 to {len(DURATION_BOUNDS_US)}) and count. Bucket"
    " n ends at 100 x 1.02^n microseconds.",
    "code": "Stable. A later server may add codes: judge one that is not known by `retryable`.",
    ("ItemError", "code"): "Stable. Do not send the same item again: it never succeeds.",
    "message": "A sentence for a person.",
    ("ItemError", "message"): "A sentence for a person. The items that it names count from 0.",
    "status": "What became of the item.",
    ("DomainInfo", "status"): "For each value of `status` the values that are one step away. An edit may take"
    " several steps at once: every value that steps lead to is allowed, and so is the value itself. A record"
    " without a status, such as a new one, may take any declared value. A value that ends the steps may be no"
    " key, but stands in the list of another. Empty: any value is allowed.",
    "winner": "With `resolved`, for the person. `client`: the record is the item's put, it is deleted, or it"
    " is the item's patch on the server's record, with the edits of others in it. `merged`: it is neither"
    " side. `server`: nothing of the item was stored. Under each of them `data` is the record now.",
    "policy": "The policy that decides conflicts: see the table of policies.",
    "seq": "The number of the change in its tenant.",
    ("Change", "seq"): "The number of the change in its tenant. A file that joins or leaves the record gives"
    " another `seq` to the same version.",
    ("Change", "version"): "The record's version. Ignore `data` of a version that is not above the device's"
    " own, but not `attachments`.",
    "error": "With `rejected`: why.",
    "replayed": "True if the message had been stored before.",
    "results": "One result for each item, in the order of the items.",
    "retryable": "True if the same message may succeed later.",
    "retry_after_ms": "How long to wait.",
    ("Error", "retry_after_ms"): "How long to wait. After `rate_limited` it is the time until one more"
    " message is allowed: send nothing on the connection until then, and not all that waits at once.",
    ("Goodbye", "retry_after_ms"): "How long to wait before connecting again. After `revoked` it does not"
    " count: do not connect again by yourself.",
    "offset": "With `offset_mismatch`: how many bytes of the upload the server has.",
    "error_id": "With `internal`: the server's log has the cause under this id.",
    "frame_bytes": "The most bytes of a message.",
    "record_bytes": "The most bytes of a record or an event.",
    "messages_per_minute": "The most messages of a device in a minute.",
    "session": "Names the connection in the server's log.",
    "epoch": "Another one after the database was restored.",
    "heartbeat_s": "How often to send a `heartbeat`. Pings do not count as messages: the server closes a"
    " connection without messages with 4408.",
    "limits": "The limits of the device.",
    "policies": "Each domain of records with the policy that decides its conflicts. The fallback of"
    " `field_merge` is in `GET /v1/domains` only.",
    ("PoliciesChanged", "policies"): "As in the welcome. If they look the same, a fallback changed: ask for"
    " `GET /v1/domains`.",
    "events": "The domains of events. Events are in no pull and no subscription.",
    "file_id": "The file, to be read at `/v1/files/{file_id}`. It is the `upload_id` of its upload.",
    "filename": "The name to show. Several files may have one name.",
    "filetype": "The media type, as the content shows it.",
    "size_bytes": "The size.",
    "sha256": "The SHA-256 of the content in hex digits.",
    "device_id": "The device that made it; null if no device did.",
    ("Attachment", "device_id"): "The device that sent the file.",
    ("ClientSide", "device_id"): "The device that made the changes.",
    "deleted": "True for a tombstone.",
    "attachments": "All files of the record; missing if it has none. Take them from the change of the"
    " highest `seq`, even if its `version` is one that the device has.",
    "more": "True if another page follows now.",
    "unknown_domains": "The names in `domains` that hold no records, such as domains of events.",
    "health_score": "0 to 100: how well the device syncs.",
    "record_id": "The record.",
    "server": "The server's record now.",
    "client": "The device's side.",
    "opened_at": "When the conflict was opened.",
    "conflicts": "The open conflicts, oldest first.",
    "kind": "What the domain holds: records, which change, or events, which are only added.",
    "required": "The fields that must be present and not null.",
    "fallback": "Under `field_merge`: what decides when both sides changed a field. Under other policies it"
    " is not used.",
    "server_owned": "Under `preserve_escalation`, also as a fallback: the fields that keep the server's"
    " values. Under other policies they are not used.",
    "reason": "Why the connection is about to close. `drain`, `restart`, `idle`: connect again. `expired`:"
    " connect again with a fresh token. `replaced`: connect again, but not if it comes again within ten"
    " minutes. `revoked`: do not connect again by yourself.",
}
