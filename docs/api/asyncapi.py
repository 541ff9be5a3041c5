"""``/asyncapi.json``: AsyncAPI 3.1 of the messages of the WebSocket."""

from __future__ import annotations

from typing import Any, Final

from docs.api import limits
from docs.api.components import Schema, ref
from docs.api.errors import error_examples, error_tables
from docs.api.examples import EXAMPLES
from docs.api.limits import Costs
from docs.api.openapi import VERSION
from docs.api.policies import policies_section
from docs.api.schema import compact, message_schemas
from engine.wire.close_codes import CloseCode
from engine.wire.codec import JSON, MSGPACK

#: The answer to each request; the others have none.
ANSWERS: Final = {
    "sync": "synced",
    "pull": "changes",
    "subscribe": "changes",
    "unsubscribe": "unsubscribed",
    "heartbeat": "heartbeat_ack",
    "conflicts": "conflicts",
    "resolve": "resolved",
    "telemetry": "telemetry_ack",
}
#: When the server sends a message by itself.
SENT: Final = {
    "welcome": "The server sends `welcome` first on every connection.",
    "changes": "The server sends `changes` of an open subscription as they happen. `id` is that of"
    " `subscribe`.",
    "policies": "The server sends `policies` when a policy of the tenant changed.",
    "error": "The server sends `error` without an `id`: it has refused the connection, a `hello`, or a"
    " message whose `id` it could not read.",
    "goodbye": "The server sends `goodbye` before it closes the connection.",
}
#: The limits that a message takes of, beside those of every message.
COSTS: Final[dict[str, Costs]] = {
    "sync": limits.PUSH,
    "resolve": limits.RESOLVE,
    "pull": limits.FEED,
    "subscribe": (*limits.FEED, *limits.SUBSCRIPTION),
    "conflicts": limits.READ,
    "telemetry": limits.TELEMETRY,
}
_DESCRIPTION: Final = """\
The messages of the WebSocket `/v1/sync` of Tidemark. Each is one object with a `type`. The HTTP interface is
in `/openapi.json`.

- **Encoding.** The subprotocol chooses it: `tidemark.v1.json` has text frames of JSON,
  `tidemark.v1.msgpack` binary frames of MessagePack with the same messages. Without a subprotocol it is JSON.
- **Token.** It comes in the header `Authorization: Bearer TOKEN`, or as the subprotocol `bearer.TOKEN` beside
  the real one.
- **Versions.** The server may add optional fields, and new types of messages: a device ignores those that it
  does not know.
- **Alive.** Only messages count: send a `heartbeat` every `heartbeat_s` of the welcome. Pings keep no
  connection alive: without a message for 90 s (by default) the server closes it with 4408.
- **Rate.** After `rate_limited` send nothing on the connection until `retry_after_ms` has passed, then send
  again one message at a time, in order. More than 100 refusals in a row close the connection with 4429,
  also if the messages were sent before the first refusal was read. So keep fewer than 100 messages in
  flight.
- **Events** (`append`) have no version and are in no `pull` and no `subscribe`. An event is named by its
  domain, its `id` and its `at` as sent: the same event again is `unchanged`, with other data `rejected`.
- **Ids.** A request has an `id`, which its answer or its error repeats. Answers to different requests may
  come in any order. The `sync` messages of a connection apply in the order in which they were sent.
- **Retries.** After a lost connection send each `sync` without an answer again, under the same `key`.

"""
#: Of the handshake. A message of AsyncAPI has one media type, so the schema of the subprotocol names both.
_HEADERS: Final[Schema] = {
    "type": "object",
    "properties": {
        "Sec-WebSocket-Protocol": {
            "type": "string",
            "enum": [JSON.subprotocol, MSGPACK.subprotocol],
            "description": "The encoding of all messages of the connection, as `x-content-types` says.",
        }
    },
}
_LIMITS: Final = (
    "## Limits\n\nEach message and the connection have a table of their limits.\n\n" + limits.LEGEND
)
_CLOSED: Final = """\
Before 4408, 4409, 4401, 4403 and 1012 there is a `goodbye`. Both say the same: the table says whether to
connect again by yourself, and `retry_after_ms` says how long to wait if you do. After `no`, connect again
only when a person asks for it: correct the program (4400), or tell the user (4403). After `once`, do so if
the code comes again within ten minutes: there is another copy of the device, which has to be ended (4409).
After all others, also after a connection that ends without a code, connect again by yourself, and wait
longer after each failure: a random time up to 0.5 s, which doubles each time up to a minute.

"""


def asyncapi() -> Schema:
    """Make the document."""
    schemas = message_schemas("socket")
    parts: dict[str, Schema] = compact(schemas.components)
    names = {
        **{f"device_{tag}": name for tag, name in schemas.requests.items()},
        **{f"server_{tag}": name for tag, name in schemas.answers.items()},
    }
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Tidemark",
            "version": VERSION,
            "description": _DESCRIPTION + policies_section() + _LIMITS + _close_codes() + error_tables(),
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": {
            "here": {
                "host": "{host}",
                "protocol": "wss",
                "description": "The server that has this document; `ws` without TLS.",
                "variables": {"host": {"default": "127.0.0.1:8080"}},
                "security": [{"$ref": "#/components/securitySchemes/device"}],
            }
        },
        "channels": {
            "sync": {
                "address": "/v1/sync",
                "title": "The connection of a device",
                "description": "A device has one connection: a newer one replaces it with its first frame.",
                "servers": [{"$ref": "#/servers/here"}],
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
                "bindings": {"ws": {"method": "GET", "headers": _HEADERS, "bindingVersion": "0.1.0"}},
                "x-content-types": {one.subprotocol: one.content_type for one in (JSON, MSGPACK)},
                "x-limits": limits.limits((*limits.CONNECTION, *limits.TOKEN, *limits.SOCKET)),
            }
        },
        "operations": _operations(schemas.requests),
        "components": {
            "messages": {name: _message(name, parts[kind]) for name, kind in names.items()},
            "schemas": parts,
            "securitySchemes": {
                "device": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token of a device.",
                }
            },
        },
    }


def _operations(requests: dict[str, str]) -> dict[str, Any]:
    """Make an operation of each request with its answers, and of each message of ``SENT``."""
    channel = {"$ref": "#/channels/sync"}
    made: dict[str, Any] = {}
    for tag in requests:
        made[tag] = {
            "action": "receive",
            "channel": channel,
            "summary": f"A device sends `{tag}`.",
            "messages": [_in_channel(f"device_{tag}")],
        }
        if tag in ANSWERS:
            told = [_in_channel(f"server_{ANSWERS[tag]}"), _in_channel("server_error")]
            made[tag]["reply"] = {"channel": channel, "messages": told}
    for tag, summary in SENT.items():
        made[f"send_{tag}"] = {
            "action": "send",
            "channel": channel,
            "summary": summary,
            "messages": [_in_channel(f"server_{tag}")],
        }
    return {name: made[name] for name in sorted(made)}


def _in_channel(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/sync/messages/{name}"}


def _message(name: str, schema: Schema) -> Schema:
    direction, _, tag = name.partition("_")
    title: str = schema["title"]
    told: list[Schema] = [{"payload": one} for one in EXAMPLES[title]]
    if title == "Error":
        told += [
            {"name": code, "summary": one["summary"], "payload": one["value"]}
            for code, one in error_examples().items()
        ]
    made: Schema = {
        "name": tag,
        "title": title,
        "summary": "From the device." if direction == "device" else "From the server.",
        "description": schema["description"],
        "contentType": "application/json",
        "payload": ref(title),
        "examples": told,
    }
    if direction == "device":
        made["x-limits"] = limits.limits((*limits.MESSAGE, *COSTS.get(tag, ())))
    return made


def _close_codes() -> str:
    lines = [
        "## Close codes",
        "",
        "| close code | meaning | connect again by yourself |",
        "|---|---|---|",
        *(
            f"| {int(code)} | {code.meaning} | {code.again} |"
            for code in CloseCode
            if code is not CloseCode.NORMAL
        ),
    ]
    return "\n".join(lines) + "\n\n" + _CLOSED
