"""One operation of the HTTP interface, and the parameters that several operations share."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from docs.api import limits
from docs.api.components import Schema, ref
from docs.api.limits import Costs

Codes = tuple[str, ...]
#: Whose token an operation needs; ``machine``: none on the server's own machine, else an operator's.
Caller = Literal["device", "person", "machine", "anybody"]

#: Codes of every request: its headers, its connection and the server itself.
ANY: Final[Codes] = ("malformed", "too_large", "overloaded", "unavailable", "internal")
#: Codes of every request with a device's token. A new device is refused if its tenant has no room for it.
AUTHENTICATED: Final[Codes] = (*ANY, "unauthenticated", "forbidden", "rate_limited", "insufficient_storage")
#: Codes of a request whose body is a message.
MESSAGE: Final[Codes] = (*AUTHENTICATED, "invalid_message", "unknown_type")


class Parameter(NamedTuple):
    """A parameter. ``separated``: a list in one value, separated by commas."""

    name: str
    place: Literal["query", "path", "header"]
    schema: Schema
    text: str
    example: Any = None
    required: bool = False
    separated: bool = False


class Answer(NamedTuple):
    """An answer that is no error.

    Attributes:
        text: When it comes.
        schema: Its schema by media type; nothing without a body.
        example: An example of its body.
        headers: Its headers, each with its meaning.
    """

    text: str
    schema: dict[str, Schema] = {}  # noqa: RUF012  # a NamedTuple's default, which nothing changes
    example: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012  # as above


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        method: In upper case.
        path: With the names of its parameters in braces.
        name: Unique among all operations.
        tag: The group that shows it.
        summary: One line.
        text: What else there is to know.
        answers: By HTTP status.
        errors: Codes of errors.
        costs: The limits that a request takes of.
        parameters: Those of the path, the query and the headers.
        body: The schema of the body, by media type.
        example: An example of the body.
        caller: Whose token it needs.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    text: str
    answers: dict[int, Answer]
    errors: Codes
    costs: Costs
    parameters: tuple[Parameter, ...] = ()
    body: dict[str, Schema] | None = None
    example: Any = None
    caller: Caller = "device"


MEDIA: Final = ("application/json", "application/msgpack")
TOKEN_COSTS: Final[Costs] = (*limits.CONNECTION, *limits.DEVICE)


def as_message(name: str) -> dict[str, Schema]:
    """Make the content of a body that is a message, in both encodings."""
    return {media: ref(name) for media in MEDIA}


def preflight(path: str, *parameters: Parameter) -> Operation:
    """Make the operation by which a browser asks before a page of another origin sends a request."""
    return Operation(
        "OPTIONS",
        path,
        "preflight_" + path.removeprefix("/v1/").replace("/", "_").replace("{", "").replace("}", ""),
        "Preflight",
        f"For a page that asks {path}",
        "Browsers send it by themselves before a page of another origin sends a request. It needs no token.",
        {
            204: Answer(
                "The methods and headers that a page of a listed origin may use.",
                headers={
                    "Access-Control-Allow-Methods": "The methods of the path.",
                    "Access-Control-Allow-Headers": "The request headers that a page may set.",
                },
            )
        },
        (*ANY, "forbidden"),
        limits.CONNECTION,
        parameters,
        caller="anybody",
    )
