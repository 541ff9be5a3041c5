"""One function of bytes for each decoder. It returns for all input, or raises what is a finding.

It imports nothing of the tests: ``make fuzz`` has an installation without them.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import time
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

import msgspec
from aiohttp import WebSocketError, web
from aiohttp.http import WebSocketReader, WSMsgType
from jwt.utils import base64url_encode
from multidict import CIMultiDict, CIMultiDictProxy

from engine.filetypes.types import FileTypes
from engine.model.tenants import Reused, Tenant
from engine.runtime.setting_layers import Layer, settings
from engine.uploads.metadata import describe, format_metadata, parse_metadata
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from engine.wire.messages import Sync
from handlers.http import client_address, headers, tokens
from handlers.sync.frames import Frame, Frames, Gate
from handlers.uploads import common, ranges

#: Codes of errors that tell of a failure of the server, not of the input.
_OURS: Final = frozenset({"internal", "unavailable", "overloaded"})
_MESSAGE_BYTES: Final = 2_000
_TRUSTED: Final = client_address.networks(["10.0.0.0/8", "::1"])
_DEFAULTS: Final = Layer(
    "config.toml", tomllib.loads((Path(__file__).parents[2] / "config.toml").read_text("utf-8"))
)
_FILE_TYPES: Final = FileTypes(settings([_DEFAULTS]).uploads)
_SECRET: Final = b"a secret of thirty-two bytes, or more"
_KEY: Final = tokens.secret_key(_SECRET)
_VERIFIER: Final = tokens.Verifier(
    tokens.KeySet(_KEY, {"second": _KEY}), "tidemark", frozenset({"https://page.example.org"}), 5
)
#: A tenant whose name another one had before.
_TENANT: Final = Tenant(7, "acme", Reused(1_000_000_000, 999_999_999))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Let a decoder refuse its input, with an error that can be answered in both encodings."""
    try:
        yield
    except SyncError as error:
        if error.code in _OURS:
            raise AssertionError(str(error)) from error
        body = msgspec.json.encode({"code": error.code, "message": error.message, **error.details})
        MSGPACK.encode(body)


# -- messages -------------------------------------------------------------------------------------


def _message(codec: Codec, frame: bytes) -> None:
    seen = codec.peek(frame)
    with _refusals():
        request = codec.decode(frame)
        if seen is not None:  # of what a decoder has to clean first, nothing is seen
            kind = str(request.__struct_config__.tag)
            assert seen[0] == kind, (seen, request)
            if frame.count(b"id") == 1 and rb"\u" not in frame:  # of several, a refusal may repeat any
                assert seen[1] == getattr(request, "id", seen[1]), (seen, request)
        assert _all(codec.decode_steps(frame)) == request
        if isinstance(request, Sync):
            _items(codec, request.items)
    if not codec.binary:
        assert _encoded(MSGPACK.encode, frame) == _encoded(lambda one: _all(MSGPACK.encode_steps(one)), frame)


def _encoded(encode: Callable[[bytes], bytes], body: bytes) -> bytes | None:
    """Convert an answer; None if the body is none: no JSON, or integers that no item may have."""
    try:
        return encode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        return None


def _items(codec: Codec, items: Any) -> None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        for item in codec.raw_items.decode(items):
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                codec.item(item)
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                codec.names.decode(item)


def _all(steps: Any) -> Any:
    """Run a decoder that works in steps to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def json_message(data: bytes) -> None:
    """Decode a message in JSON."""
    _message(JSON, data)


def msgpack_message(data: bytes) -> None:
    """Decode a message in MessagePack."""
    _message(MSGPACK, data)


# -- frames ---------------------------------------------------------------------------------------


class _Edge:
    """Sink, pacer, protocol and clock of a gate; a clock that stands still leaves out the turns."""

    has_room = True
    yields = False

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.codes: list[int] = []
        self.partial_bytes = 0

    def on_frame(self, message: Frame) -> None:
        self.frames.append(message)
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            assert len(cast(bytes, message.data)) <= _MESSAGE_BYTES, "a message larger than the limit"

    def on_partial(self, before_bytes: int, after_bytes: int) -> bool:
        assert before_bytes == self.partial_bytes
        self.partial_bytes = after_bytes
        return True

    def on_protocol_error(self, error: WebSocketError) -> None:
        self.codes.append(int(error.code))

    def on_end(self) -> None:
        """Take the end: nothing to do."""

    def charge(self, *_: float) -> float:
        return 0.0

    def count_fragments(self) -> None:
        """Count nothing."""

    def monotonic_s(self) -> float:
        return 0.0

    def pause_reading(self) -> None:
        raise AssertionError("there is room, and no turn ends")

    def resume_reading(self) -> None:
        """Do nothing: reading never pauses."""

    def close(self) -> None:
        """Do nothing: there is no transport."""


class _Queue(Frames):
    def __init__(self, edge: _Edge) -> None:
        # Not that of aiohttp's queue, which wants a loop.
        self.sink = self.pacer = cast(Any, edge)
        self._error = None
        self._ended = False


def _received(pieces: list[bytes]) -> tuple[list[tuple[Any, Any]], list[int], int]:
    """Have an edge receive pieces of a stream. Returns its messages, close codes and pending bytes."""
    edge = _Edge()
    queue = _Queue(edge)
    parser = WebSocketReader(queue, _MESSAGE_BYTES + 1, compress=True, decode_text=False)
    gate = Gate(parser, queue, cast(web.RequestHandler, edge), cast(Any, edge))
    for piece in pieces:
        if gate.feed_data(piece)[0]:
            break
    return [(frame.type, frame.data) for frame in edge.frames], edge.codes, edge.partial_bytes


def frames(data: bytes) -> None:
    """Read WebSocket frames, at once and in pieces, whose cuts the first bytes say: both must be equal."""
    count = data[0] % 8 if data else 0
    cuts, stream = data[1 : 1 + count], data[1 + count :]
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[begin:end] for begin, end in itertools.pairwise(bounds)]
    whole = _received([stream] if stream else [])
    assert _received(pieces) == whole
    assert len(whole[1]) <= 1


# -- headers --------------------------------------------------------------------------------------

_NAMES: Final = (
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Type",
    "If-None-Match",
    "If-Range",
    "Range",
    "Sec-WebSocket-Protocol",
    "Transfer-Encoding",
    "Upload-Length",
    "X-Forwarded-For",
    "X-Forwarded-Prefix",
    "X-Tidemark-Request-Seconds",
)


def _text(data: bytes) -> str:
    """Return bytes as aiohttp gives the value of a header."""
    return data.decode("utf-8", "surrogateescape")


def header_fields(data: bytes) -> None:
    """Read header fields: each line of the input is one, whose first byte says its name."""
    lines = CIMultiDict(
        (_NAMES[line[0] % len(_NAMES)], _text(line[1:])) for line in data.split(b"\n")[:16] if line
    )
    given = CIMultiDictProxy(lines)
    request = cast(web.Request, SimpleNamespace(headers=given, content_length=None))
    headers.prefers_msgpack(given)
    headers.takes_gzip(given)
    headers.content_coding(given)
    tokens.offered_subprotocols(given)
    common.content_length(request)
    for field in ("Accept", "Accept-Encoding"):
        weights = headers.qualities(headers.combined(given, field))
        assert all(0 <= weight <= 1 for weight in weights.values())
    headers.file_name(given.get("Content-Disposition", ""))
    for read in (headers.media_type, lambda one: common.number(one, "Upload-Length")):
        with _refusals():
            read(request)
    _addresses(given)
    _range(given)
    with _refusals():
        _VERIFIER.verify(tokens.token_of(given))


def _addresses(given: CIMultiDictProxy[str]) -> None:
    for peer in ("10.1.2.3", "192.0.2.1", None):
        client = client_address.client_address(peer, given.getall("X-Forwarded-For", ()), _TRUSTED)
        assert client is None if peer is None else ip_address(cast(str, client))
        prefix = client_address.stripped_prefix(peer, given.getall("X-Forwarded-Prefix", ()), _TRUSTED)
        assert not prefix or (prefix[0] == "/" and "//" not in prefix and "/../" not in f"{prefix}/")
        said = given.getall("X-Tidemark-Request-Seconds", ())
        assert client_address.request_seconds(peer, said, _TRUSTED) >= 0


def _range(given: CIMultiDictProxy[str]) -> None:
    headers.is_known(given.get("If-None-Match", ""), '"tag"')
    for size_bytes in (0, 1, 1_000):
        part = ranges.wanted_part(given.get("Range", ""), given.get("If-Range"), '"tag"', size_bytes)
        if isinstance(part, ranges.Part):
            assert part.first_byte >= 0
            assert part.count_bytes > 0
            assert part.first_byte + part.count_bytes <= size_bytes


def upload_metadata(data: bytes) -> None:
    """Read an ``Upload-Metadata``, and what it says of a file; written again it says the same."""
    with _refusals():
        values = parse_metadata(_text(data))
        assert parse_metadata(format_metadata(values)) == values
        described = describe(values, _FILE_TYPES, lambda name: name == "task")
        msgspec.json.encode(described)


def token(data: bytes) -> None:
    """Verify a token: none that was not signed here is right.

    No token begins with a brace. An input that does is a header and a payload, a line each, signed here,
    so that the search reaches the claims.
    """
    if data.startswith(b"{"):
        return _signed(*data.partition(b"\n")[::2])
    with _refusals():
        _VERIFIER.verify(_text(data))
        raise AssertionError("a token that nobody signed was accepted")


def _signed(header: bytes, payload: bytes) -> None:
    """Verify a token with a right signature: one that is accepted says all that a token has to say."""
    signing = b".".join(map(base64url_encode, (header, payload)))
    signature = hmac.digest(_SECRET, signing, "sha256")
    with _refusals():
        claims = _VERIFIER.verify(f"{signing.decode()}.{base64url_encode(signature).decode()}")
        said, given = json.loads(header), json.loads(payload)
        assert said["alg"] == "HS256", said
        assert said.get("kid") in (None, "second"), said
        assert given["aud"] == "tidemark" or "tidemark" in given["aud"], given
        assert (claims.begins_at_s or 0) - 10 < time.time() < claims.expires_at_s, given
        assert claims.token_id == given["jti"]
        assert claims.tenant == given.get("tid")
        assert claims.role == (given.get("role") or "device")
        msgspec.json.encode(claims)
        _, device_id = tokens.device_claims(claims)
        assert device_id == given["did"]
        assert device_id.replace("_", "-").replace("-", "x").isalnum(), given
        assert device_id.isascii(), given
        _VERIFIER.check_tenant(claims, _TENANT)
        assert claims.tenant_number in (None, _TENANT.tenant_id), given


class Target(NamedTuple):
    """A decoder: ``modules`` are those whose coverage tells how much of it was reached."""

    search: Callable[[bytes], None]
    modules: tuple[str, ...]


_WIRE: Final = (
    "engine/wire/codec.py",
    "engine/wire/nesting.py",
    "engine/wire/floats.py",
    "engine/wire/pieces.py",
)
TARGETS: Final = {
    "json": Target(json_message, _WIRE),
    "msgpack": Target(msgpack_message, _WIRE),
    "frames": Target(frames, ("handlers/sync/frames.py",)),
    "headers": Target(
        header_fields,
        ("handlers/http/headers.py", "handlers/http/client_address.py", "handlers/uploads/ranges.py"),
    ),
    "metadata": Target(upload_metadata, ("engine/uploads/metadata.py",)),
    "token": Target(token, ("handlers/http/tokens.py",)),
}
