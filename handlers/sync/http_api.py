"""The messages of the socket over HTTP, for devices that cannot keep a socket open."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from engine.cache.device_health import Device
from engine.commit.admission import Admission, Kind
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator, Session
from engine.feed.pages import with_id
from engine.plan.work import Outcome, PushAnswer, ResolveAnswer, Work
from engine.runtime.loop_scheduler import LARGE_BYTES
from engine.runtime.rate_limit import retry_soon_ms
from engine.wire.codec import JSON, MSGPACK, Codec, sentence
from engine.wire.errors import SyncError
from engine.wire.messages import Conflicts, Heartbeat, Pull, Request, Resolve, Sync, Telemetry
from engine.wire.steps import run_steps
from handlers.http.authenticate import RequestGate
from handlers.http.caching import VARY
from handlers.http.client_address import REQUEST_SECONDS, Networks, request_seconds
from handlers.http.cors import CorsPolicy
from handlers.http.counters import Traffic
from handlers.http.headers import content_coding, media_type, prefers_msgpack, takes_gzip
from handlers.http.limits import EdgeLimits
from handlers.http.loop.charges import LoopCharges
from handlers.http.refusals import BODY_LATE
from handlers.http.unread_body import give_up
from handlers.sync.operations import Operations, set_device_clock
from handlers.sync.push_counts import PushCounts

#: The id of a request's message, so that an error repeats it; None without one.
REQUEST_ID: Final = web.RequestKey[str | None]("request_id")
_COMPRESS_FROM_BYTES: Final = 1024
#: The longest time between reading the device's clock and the arrival of the request's headers.
_CONNECTING_S: Final = 5.0
#: The argument of zlib for each content coding.
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}

_CORS: Final = CorsPolicy(
    "GET, HEAD, OPTIONS, POST",
    "Authorization, Content-Encoding, Content-Type, X-Request-ID, X-Requested-With",
    "Allow, Retry-After",
)

_Result = TypeVar("_Result")
_Message = TypeVar("_Message", Sync, Pull, Conflicts, Resolve, Heartbeat, Telemetry)


class SyncHttp(msgspec.Struct, frozen=True, kw_only=True):
    """The routes' handlers; each raises SyncError if a request is refused."""

    gate: RequestGate
    admission: Admission
    operations: Operations
    validator: MessageValidator
    committer: Committer
    counts: PushCounts
    loop: LoopCharges
    traffic: Traffic
    limits: EdgeLimits
    trusted_proxies: Networks

    def routes(self) -> list[web.RouteDef]:
        """List the routes, each with its preflight request."""
        routes = [
            web.post("/v1/sync", self.sync),
            web.get("/v1/changes", self.changes),
            web.get("/v1/conflicts", self.conflicts),
            web.post("/v1/conflicts/{conflict_id}/resolution", self.resolve),
            web.post("/v1/heartbeat", self.heartbeat),
            web.post("/v1/telemetry", self.telemetry),
            web.get("/v1/domains", self.domains),
        ]
        paths = dict.fromkeys(route.path for route in routes)
        return [*routes, *(web.options(path, self.options) for path in paths)]

    async def options(self, request: web.Request) -> web.Response:
        """Answer a preflight request. It needs no token: the answer has nothing of a tenant."""
        _CORS.let_read(request, self.gate.authenticator.verifier)
        return web.Response(status=204, headers=_CORS.preflight(request))

    async def sync(self, request: web.Request) -> web.Response:
        """Push changes: ``sync`` → ``synced``."""
        begun_s = self.loop.clock.monotonic_s()
        session, device = await self._admit(request, "push")
        body = await self._body(request, session, device)
        now_us = self.loop.clock.now_us()
        message = await self._worked(_decoding(session.codec, body, Sync), body, device, request)
        request[REQUEST_ID] = message.id
        if message.clock is not None:
            set_device_clock(device, session, message.clock, now_us, self._delay_us(request, begun_s))
        try:
            steps = self.validator.push_steps(message, session, now_us)
            push = await self._worked(steps, body, device, request)
            self.gate.authenticator.check_valid(session)  # a large message may have waited long for its turns
            outcome = await self._settled(push, device)
            if isinstance(outcome, SyncError):
                raise outcome
        except SyncError as error:
            self.counts.failed(device, error, now_us)
            raise
        assert isinstance(outcome, PushAnswer)
        self.counts.answered(device, outcome, len(push.items), now_us)
        return await self._response(request, session, device, outcome.frame(message.id))

    async def changes(self, request: web.Request) -> web.Response:
        """Read one page of the feed: ``pull`` → ``changes``."""
        session, device = await self._admit(request, "request")
        message = _from_query(request, "pull", Pull)
        body = await self.operations.pull(session, message)
        return await self._response(request, session, device, with_id(body, None))

    async def conflicts(self, request: web.Request) -> web.Response:
        """List open conflicts: ``conflicts`` → ``conflicts``."""
        session, device = await self._admit(request, "request")
        message = _from_query(request, "conflicts", Conflicts)
        listed = await self.operations.list_conflicts(session, message, None)
        return await self._response(request, session, device, listed)

    async def resolve(self, request: web.Request) -> web.Response:
        """Resolve a conflict: ``resolve`` → ``resolved``; the path names the conflict."""
        session, device = await self._admit(request, "push")
        named = {"conflict_id": request.match_info["conflict_id"]}
        body = await self._body(request, session, device)
        steps = _completing(request, session.codec, body, Resolve, named)
        message = await self._worked(steps, body, device, request)
        resolution = await self.operations.resolution(session, device, message)
        self.gate.authenticator.check_valid(session)
        outcome = await self._settled(resolution, device)
        if isinstance(outcome, SyncError):
            raise outcome
        assert isinstance(outcome, ResolveAnswer)
        return await self._response(request, session, device, outcome.frame(request[REQUEST_ID]))

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Store a device's state: ``heartbeat`` → ``heartbeat_ack``."""
        begun_s = self.loop.clock.monotonic_s()
        session, device = await self._admit(request, "request")
        body = await self._body(request, session, device)
        steps = _completing(request, session.codec, body, Heartbeat, {})
        message = await self._worked(steps, body, device, request)
        if message.clock is not None:
            now_us = self.loop.clock.now_us()
            set_device_clock(device, session, message.clock, now_us, self._delay_us(request, begun_s))
        answer = self.operations.heartbeat(device, message, request[REQUEST_ID])
        return await self._response(request, session, device, answer)

    async def telemetry(self, request: web.Request) -> web.Response:
        """Store what a device counted itself: ``telemetry`` → ``telemetry_ack``."""
        session, device = await self._admit(request, "request")
        body = await self._body(request, session, device)
        steps = _completing(request, session.codec, body, Telemetry, {})
        message = await self._worked(steps, body, device, request)
        row = self.operations.telemetry_row(session, device, message)
        answer = await self.operations.store_telemetry(row, request[REQUEST_ID])
        return await self._response(request, session, device, answer)

    async def domains(self, request: web.Request) -> web.Response:
        """Return the rules of each domain for this tenant."""
        session, device = await self._admit(request, "request")
        return await self._response(request, session, device, self.operations.list_domains(session))

    async def _response(
        self, request: web.Request, session: Session, device: Device, body: bytes
    ) -> web.Response:
        """Encode an answer; a large one in turns of the loop."""
        codec = session.codec
        if codec.binary:
            body = await self._worked(codec.encode_steps(body), body, device, request)
        return _response(request, codec, body)

    async def _admit(self, request: web.Request, kind: Kind) -> tuple[Session, Device]:
        """Let a request in. Returns its session and its device."""
        _CORS.let_read(request, self.gate.authenticator.verifier)
        admitted = await self.gate.authenticate_request(
            request, _codec(request), kind, self.limits.frame_bytes
        )
        self.traffic.messages_in += 1
        return admitted

    async def _body(self, request: web.Request, session: Session, device: Device) -> bytes:
        """Read the body, charge its bytes and its time as those of a message, and check the token again.

        A body may come slowly, so the device may have been revoked since its headers came.
        """
        body = await _read_within(request, self.limits.body_s)
        await self.loop.scheduler.within_share(device.key[0], device)
        with self._charging(device):
            inflating = _inflating_text(request, session.codec, body)
            try:
                next(inflating)
            except StopIteration as done:
                return self._whole(done.value, len(body), session, device)
        whole = await self._in_steps(inflating, device, request)
        return self._whole(whole, len(body), session, device)

    def _whole(self, body: bytes, sent_bytes: int, session: Session, device: Device) -> bytes:
        device.bucket.weigh(len(body))
        minute = self.counts.minutes.of(device.key[0])
        minute.bytes_in += len(body)
        minute.bytes_saved_compression += len(body) - sent_bytes
        self.gate.authenticator.check_valid(session)
        return body

    def _delay_us(self, request: web.Request, begun_s: float) -> int:
        """Return the most that a request may have been under way, whose headers came at ``begun_s``.

        A proxy asks when it has the whole request, and says how long that took.
        """
        said = request.headers.getall(REQUEST_SECONDS, ())
        proxied_s = request_seconds(request.remote, said, self.trusted_proxies)
        return math.ceil((self.loop.clock.monotonic_s() - begun_s + proxied_s + _CONNECTING_S) * 1_000_000)

    async def _worked(
        self, steps: Generator[None, None, _Result], body: bytes, device: Device, request: web.Request
    ) -> _Result:
        """Run work on a message: at once, or in turns of the loop if its body is large."""
        if len(body) >= LARGE_BYTES:
            return await self._in_steps(steps, device, request)
        with self._charging(device):
            return run_steps(steps)

    async def _in_steps(
        self, steps: Generator[None, None, _Result], device: Device, request: web.Request
    ) -> _Result:
        """Run work on a large message in turns of the loop, and charge each step."""
        spent_s = 0.0

        def charge(step_s: float, now_s: float) -> None:
            nonlocal spent_s
            spent_s += step_s
            self._charge(device, request, step_s, now_s)

        try:
            return await self.loop.scheduler.handled(device.key[0], steps, charge)
        finally:
            device.bucket.charge(spent_s)

    @contextmanager
    def _charging(self, device: Device) -> Iterator[None]:
        """Count an expensive message as several, also if it is refused.

        Its share of the loop is charged with the whole request (``handlers/http/loop/metering.py``).
        """
        clock_s = self.loop.clock.monotonic_s
        begun_s = clock_s()
        try:
            yield
        finally:
            device.bucket.charge(clock_s() - begun_s)

    def _charge(self, device: Device, request: web.Request, spent_s: float, now_s: float) -> None:
        self.loop.charge(device, f"{request.method} {request.path}", spent_s, now_s)

    async def _settled(self, work: Work, device: Device) -> Outcome:
        """Have a job committed, also when the client is gone. Raises SyncError in times of overload."""
        # The body may have come slowly, and many may have come at the same time.
        self.gate.draining.check_staying()
        self.admission.check("body", work.tenant_id, device, self.loop.clock.monotonic_s())
        return await self.committer.commit(work, partial(self.loop.charge_planning, device))


def _codec(request: web.Request) -> Codec:
    """Return the encoding: that of the body; without a body that of ``Accept``; else JSON."""
    if not request.body_exists:
        return MSGPACK if prefers_msgpack(request.headers) else JSON
    said = media_type(request)
    for codec in (JSON, MSGPACK):
        if said in (codec.content_type, ""):
            return codec
    raise SyncError(
        "invalid_message", f"Content-Type: {JSON.content_type} or {MSGPACK.content_type} is required"
    )


async def _read_within(request: web.Request, most_s: float) -> bytes:
    try:
        async with asyncio.timeout(most_s):
            return await request.read()
    except TimeoutError:
        give_up(request)
        request[BODY_LATE] = True
        sentence = f"the body did not come within {most_s:g} s: send less at once"
        raise SyncError("unavailable", sentence, retry_after_ms=retry_soon_ms()) from None


def _inflating_text(request: web.Request, codec: Codec, body: bytes) -> Generator[None, None, bytes]:
    """Inflate a body in steps, up to the largest frame, and check that it is UTF-8."""
    coding = content_coding(request.headers)
    if coding in _WINDOW_BITS:
        body = yield from _inflating(body, _WINDOW_BITS[coding], request.client_max_size)
    elif coding:
        raise SyncError("invalid_message", "Content-Encoding: only gzip and deflate are accepted")
    if not codec.binary and not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise SyncError("malformed", "not UTF-8") from None
    return body


def _inflating(body: bytes, window_bits: int, most_bytes: int) -> Generator[None, None, bytes]:
    inflate = zlib.decompressobj(window_bits)
    try:
        inflated = inflate.decompress(body, min(LARGE_BYTES, most_bytes))
        if inflate.unconsumed_tail or not inflate.eof:
            yield
            inflated += inflate.decompress(inflate.unconsumed_tail, most_bytes + 1 - len(inflated))
    except zlib.error:
        inflated = b""
    if len(inflated) > most_bytes:
        raise SyncError("too_large", f"the body: the limit is {most_bytes} bytes")
    if not inflate.eof:
        raise SyncError("malformed", "the body does not match its Content-Encoding")
    return inflated


def _decode(codec: Codec, body: bytes, wanted: type[_Message]) -> _Message:
    return _checked(codec.decode(body), wanted)


def _decoding(codec: Codec, body: bytes, wanted: type[_Message]) -> Generator[None, None, _Message]:
    return _checked((yield from codec.decode_steps(body)), wanted)


def _checked(message: Request, wanted: type[_Message]) -> _Message:
    if not isinstance(message, wanted):
        tag = wanted.__struct_config__.tag
        raise SyncError("invalid_message", f"type: {tag} is required here")
    return message


def _from_query(request: web.Request, tag: str, wanted: type[_Message]) -> _Message:
    """Return the message of a query: lists are separated by commas, empty parameters are missing."""
    request[REQUEST_ID] = None
    fields: dict[str, Any] = {name: value for name, value in request.query.items() if value}
    if "limit" in fields and fields["limit"].isascii() and fields["limit"].isdecimal():
        fields["limit"] = int(fields["limit"][:9])
    if "domains" in fields:
        fields["domains"] = [name for name in fields["domains"].split(",") if name]
    return _decode(JSON, msgspec.json.encode({**fields, "type": tag, "id": "-"}), wanted)


def _completing(
    request: web.Request, codec: Codec, body: bytes, wanted: type[_Message], named: dict[str, str]
) -> Generator[None, None, _Message]:
    """Decode a body, completed by the values of its path, which it need not repeat."""
    completed = yield from _completed(request, codec, body, str(wanted.__struct_config__.tag), named)
    yield
    return _decode(codec, completed, wanted)


def _completed(
    request: web.Request, codec: Codec, body: bytes, tag: str, named: dict[str, str]
) -> Generator[None, None, bytes]:
    yield from codec.check_depth_steps(body)
    try:
        fields: Any = codec.any.decode(body)
    except msgspec.ValidationError as error:  # a number that no record can hold
        raise SyncError("invalid_message", sentence(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = None
    if not isinstance(fields, dict):
        return body
    own_id = fields.get("id")
    request[REQUEST_ID] = own_id if isinstance(own_id, str) else None
    encode = msgspec.msgpack.encode if codec.binary else msgspec.json.encode
    yield
    try:
        return encode({"type": tag, "id": "-", **fields, **named})
    except (OverflowError, RecursionError, TypeError, ValueError):
        raise SyncError("invalid_message", "a value that no message can hold") from None


def _response(request: web.Request, codec: Codec, body: bytes) -> web.Response:
    response = web.Response(
        body=body,
        content_type=codec.content_type,
        headers={"Vary": f"{VARY}, Accept, Accept-Encoding"},
        zlib_executor_size=1 << 16,
    )
    if len(body) >= _COMPRESS_FROM_BYTES and takes_gzip(request.headers):
        response.enable_compression(web.ContentCoding.gzip)
    return response
