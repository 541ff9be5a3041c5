"""Decodes frames to requests and encodes answers to frames, in JSON and in MessagePack.

Inside the server every answer is JSON; it is converted to MessagePack at the edge. msgspec accepts deeper
nesting and lone surrogates, which the contract does not allow; both are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Final, Literal, get_args

import msgspec

from engine.wire.errors import SyncError
from engine.wire.floats import json_decoder
from engine.wire.messages import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL, Item, Request
from engine.wire.nesting import json_nesting_fault, msgpack_nesting_fault, msgpack_nesting_steps
from engine.wire.pieces import decode_in_pieces

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
#: The first bytes of a request of nearly every client. A message can be refused by them alone.
_HEAD = re.compile(rb'\{"type":"([a-z]{1,16})","id":"([ !#-\[\]-~]{1,64})"[,}]')
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
#: Every integer up to this is exact as a double.
_EXACT = 2**53
_decode_any = json_decoder().decode
_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Request))


class _Head(msgspec.Struct):
    """The fields of a refused frame that its answer needs."""

    type: Any = None
    id: Any = None


class _Glimpse(msgspec.Struct):
    """Type and id only: the decoder skips everything else without building it."""

    type: str | None = None
    id: str | None = None


class _Numbers(msgspec.Struct):
    """Every integer field of a request or an item, to find the floats in their place."""

    base: int | float | None = None
    changes: int | float | None = None
    limit: int | float | None = None
    queue_depth: int | float | None = None
    version: int | float | None = None


class _Names(msgspec.Struct):
    """The fields of a refused item that name it."""

    domain: Any = None
    id: Any = None


class MalformedError(SyncError):
    """A frame that is no message. Ten in a row close the connection."""

    def __init__(self, message: str) -> None:
        super().__init__("malformed", message)


class Codec:
    """One of the two encodings. ``binary``: its WebSocket frames are binary, not text."""

    def __init__(self, name: Literal["json", "msgpack"]) -> None:
        self.name: Final = name
        self.binary: Final = name == "msgpack"
        self.subprotocol: Final = MSGPACK_SUBPROTOCOL if self.binary else JSON_SUBPROTOCOL
        self.content_type: Final = "application/msgpack" if self.binary else "application/json"
        make: Any = msgspec.msgpack.Decoder if self.binary else json_decoder
        self._request: msgspec.json.Decoder[Request] | msgspec.msgpack.Decoder[Request] = make(Request)
        self._head = make(_Head)
        self._glimpse = make(_Glimpse)
        self._numbers = make(_Numbers)
        self._raw = make(msgspec.Raw)
        self.items = make(list[Item])
        self._item = make(Item)
        self.names = make(_Names)
        self.raw_items = make(list[msgspec.Raw])
        self.any = make()
        #: Parts of a ``telemetry``. Whole floats are numbers of clients that know only one kind of number.
        self.counters = make(dict[str, int | float])
        self.histograms = make(dict[str, list[tuple[int | float, int | float]]])

    def check_depth(self, frame: bytes) -> None:
        """Refuse a frame that nests too deep or too densely, before it is decoded. Raises MalformedError."""
        fault = msgpack_nesting_fault(frame) if self.binary else json_nesting_fault(frame)
        if fault is not None:
            raise MalformedError(fault)

    def decode(self, frame: bytes) -> Request:
        """Decode one message.

        Raises:
            MalformedError: The frame is no message.
            SyncError: ``unknown_type``, or ``invalid_message`` with the name of the field. ``details["id"]``
                is the message's id, if it can be read.
        """
        self.check_depth(frame)
        return self._decoded(frame)

    def decode_steps(self, frame: bytes) -> Generator[None, None, Request]:
        """Decode one large message as ``decode`` does, in steps."""
        yield from self.check_depth_steps(frame)
        return self._decoded(frame)

    def check_depth_steps(self, frame: bytes) -> Generator[None, None, None]:
        """Check a large frame as ``check_depth`` does, in steps."""
        if self.binary:
            fault = yield from msgpack_nesting_steps(frame)
        else:
            fault = json_nesting_fault(frame)
        if fault is not None:
            raise MalformedError(fault)
        yield

    def _decoded(self, frame: bytes) -> Request:
        try:
            return self._request.decode(frame)
        except msgspec.ValidationError as error:
            try:
                self._raw.decode(frame)
            except msgspec.DecodeError as fault:  # the rest of the frame is broken, too: it is no message
                return self._second_look(frame, fault)
            whole = self._with_integers(frame)
            if whole is None or whole.get("type") == "sync":  # a sync has integers in its items only
                raise self._refusal(frame, error) from None
            try:
                request: Request = msgspec.convert(whole, Request)
            except msgspec.ValidationError as fault:
                raise self._refusal(frame, fault) from None
            return request
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return self._second_look(frame, error)

    def item(self, raw: msgspec.Raw) -> Item:
        """Decode one item of a ``sync``. Raises msgspec.DecodeError or UnicodeDecodeError."""
        try:
            item: Item = self._item.decode(raw)
        except msgspec.ValidationError:
            whole = self._with_integers(raw)
            if whole is None:
                raise
            return msgspec.convert(whole, Item)
        return item

    def _with_integers(self, encoded: bytes | msgspec.Raw) -> dict[str, Any] | None:
        """Decode a request or an item with floats such as 4.0 replaced by integers.

        Gson, Lua and JavaScript's MessagePack know only one kind of number. This is called only after the
        typed decoder refused, so clients that send integers pay nothing.

        Returns:
            The decoded object, None if there is no such float or the object cannot be decoded.
        """
        try:
            numbers = self._numbers.decode(encoded)
            given = {name: getattr(numbers, name) for name in numbers.__struct_fields__}
            integers = {name: int(value) for name, value in given.items() if _is_whole(value)}
            return self.any.decode(encoded) | integers if integers else None
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            return None

    def peek(self, frame: bytes) -> tuple[str, str] | None:
        """Read only the type and the id of a request, at little cost.

        The depth is not checked: that can cost a hundred times as much, and nothing is built here.

        Returns:
            Type and id, None if they cannot be read or are invalid.
        """
        if not self.binary:
            match = _HEAD.match(frame)
            if match is not None:
                return match[1].decode(), match[2].decode()
        try:
            head = self._glimpse.decode(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        kind, request_id = head.type, head.id
        if kind not in _TYPES or request_id is None:
            return None
        return (kind, request_id) if 1 <= len(request_id) <= 64 else None

    def _second_look(self, frame: bytes, error: Exception) -> Request:
        """Decode a frame with lone surrogates replaced by U+0000.

        No item may contain U+0000, so only the items with a lone surrogate are refused, and not the whole
        message.
        """
        if not self.binary and rb"\u" in frame:
            cleaned = _ESCAPE.sub(_without_lone_surrogate, frame)
            if cleaned != frame:
                return _without_stand_in(self.decode(cleaned))
        raise MalformedError(f"not {self.name}: {error}") from None

    def _refusal(self, frame: bytes, error: msgspec.ValidationError) -> SyncError:
        try:
            head = self._head.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):
            head = _Head()
        if isinstance(head.type, str) and head.type not in _TYPES:
            refusal = SyncError("unknown_type", f"no message type {head.type[:64]!r}")
        else:
            refusal = SyncError("invalid_message", sentence(error))
        if isinstance(head.id, str) and 1 <= len(head.id) <= 64:
            refusal.details["id"] = head.id
        return refusal

    def encode_steps(self, body: bytes) -> Generator[None, None, bytes]:
        """Convert a large answer from JSON to this encoding, in steps."""
        if not self.binary:
            return body
        value = yield from decode_in_pieces(body)
        yield
        return msgspec.msgpack.encode(value)

    def encode(self, body: bytes) -> bytes:
        """Convert an answer from JSON to this encoding."""
        return msgspec.msgpack.encode(_decode_any(body)) if self.binary else body


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT


def sentence(error: msgspec.ValidationError) -> str:
    """Return the sentence of a validation error, with the field in front."""
    match = _PATH.match(str(error))
    assert match is not None
    what, path = match["what"], match["path"]
    return f"{path}: {what}" if path else what


def _without_stand_in(request: Request) -> Request:
    """Refuse an envelope with a lone surrogate: replaced by U+0000, different keys or ids would be equal."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and "\0" in text for text in texts):
            own_id = {} if name == "id" else {"id": getattr(request, "id", None)}
            raise SyncError("invalid_message", f"{name}: lone surrogates are not allowed", **own_id)
    return request


def _without_lone_surrogate(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] is None else rb"\u0000"


JSON: Final = Codec("json")
MSGPACK: Final = Codec("msgpack")
