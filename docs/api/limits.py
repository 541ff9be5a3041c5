"""Limits by route and by message, from the tables in ``docs/costs/``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from docs.costs.cost import Cost
from docs.costs.page import COSTS, answer_text, cells, default_settings, limit_text

#: The names of costs (``Cost.taken``) that a request of a kind takes.
Costs = tuple[str, ...]

#: The columns and words of the tables of limits.
LEGEND: Final = """\
A limit is counted for each device, connection, tenant or worker (a process of the server), as its table says.
Past the limit a device gets the named error or close code, or:

- **waits**: nothing is refused; the server reads on later.
- **cut off**: the connection ends without an answer.
- **left out**, **forgotten**, **expires**: what is past the limit is not in the answer, or is no longer kept.

A limit of a tenant or a worker is for operators to set. A device only has to handle its error.

"""

#: Of every request, before its route is known.
CONNECTION: Final[Costs] = (
    "connections without a valid token",
    "half-open connections: time until the headers have come",
    "headers of a request",
    "incomplete headers",
    "time without reading an answer over HTTP",
    "time of the event loop without a valid token",
)
TOKEN: Final[Costs] = ("a token",)
#: Of every request with a device's token.
DEVICE: Final[Costs] = (
    *TOKEN,
    "messages, pings and pongs",
    "requests over HTTP that are open, and idle connections over HTTP",
    "requests over HTTP that are open",
    "time of the event loop while others want it",
    "devices that were ever seen, or revoked",
)
#: Of a request whose body is a message.
BODY: Final[Costs] = (
    "a body over HTTP, inflated",
    "bodies of open requests",
    "time of a body",
    "nesting",
)
MESSAGE: Final[Costs] = ("a message on a WebSocket, inflated", "incomplete messages of WebSockets", "nesting")
PUSH: Final[Costs] = (
    "items of a sync",
    "a record, an event",
    "ids",
    "planning of one message",
    "messages that wait for the commit",
    "changes that one conflict holds",
    "records, those that are deleted as well",
    "conflicts",
    "rejected items",
    "events",
    "events that are dated ahead",
    "keys with their answers",
    "time for which keys are kept",
    "room on the disk of the database",
)
RESOLVE: Final[Costs] = ("a record, an event", "planning of one message", "messages that wait for the commit")
READ: Final[Costs] = ("reads that wait",)
FEED: Final[Costs] = (
    *READ,
    "domains of a pull or subscription",
    "a page, an answer",
    "rows that one statement of a pull reads",
)
TELEMETRY: Final[Costs] = (
    "telemetry",
    "a message of telemetry",
    "telemetry of an hour",
    "names of telemetry",
    "telemetry that is not stored yet",
)
CREATE: Final[Costs] = (
    "a file",
    "files of one record",
    "files, unfinished uploads included",
    "unfinished uploads",
    "time of an unfinished upload",
    "uploads begun in 24 hours, and rows of those that ended",
    "metadata of a file",
    "parts of a file",
    "requests on uploads under way",
)
APPEND: Final[Costs] = ("a file", "time of an unfinished upload", "requests on uploads under way")
PERSON: Final[Costs] = (*TOKEN, "requests of one operator's or viewer's token under way")
#: Of a WebSocket, beside those of the token.
SOCKET: Final[Costs] = (
    "handshakes",
    "handshakes while accepted writes wait",
    "devices that were ever seen, or revoked",
    "WebSockets",
    "time of a silent WebSocket",
    "time without reading a WebSocket",
    "messages, pings and pongs",
    "messages in spite of `rate_limited`",
    "malformed messages",
    "frames that end no message",
    "pushes and resolutions that are not answered",
    "reads of one WebSocket",
    "answers that a slow reader has not taken",
    "pages that a slow reader has not taken",
    "time of the event loop while others want it",
)
SUBSCRIPTION: Final[Costs] = ("subscriptions", "the tail of a tenant with subscribers")


def limits(names: Iterable[str]) -> list[dict[str, Any]]:
    """Describe the costs of these names: what is limited, of whom, to how much, and the answer past it."""
    defaults = default_settings()
    return [_limit(cost, defaults) for cost in _named(names)]


def limits_table(names: Iterable[str]) -> str:
    """Make a Markdown table of the same."""
    defaults = default_settings()
    rows = [f"| {cells(cost, defaults)} |" for cost in _named(names)]
    heads = ["| limit | counted for each | default | setting | past the limit |", "|---|---|---|---|---|"]
    return "\n".join([*heads, *rows])


def _named(names: Iterable[str]) -> Iterator[Cost]:
    for name in dict.fromkeys(names):
        found = [cost for costs in COSTS.values() for cost in costs if cost.taken == name]
        if not found:
            raise LookupError(f"docs/costs/ has no {name!r}")
        yield from found


def _limit(cost: Cost, defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": cost.taken,
        "of_one": cost.owner,
        "default": ", ".join(limit_text(limit, defaults) for limit in cost.limit),
        "settings": [limit for limit in cost.limit if isinstance(limit, str)],
        "past_it": [answer_text(answer) for answer in cost.answer],
    }
