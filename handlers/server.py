"""The aiohttp application of one process, listening and drained."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from aiohttp import web, web_response
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler
from anyio import sleep_forever

from engine.cache.devices import DeviceCache
from engine.cache.minutes import Minutes
from engine.cache.tenants import TenantCache
from engine.commit.committer import Committer
from engine.feed.feed import Feed
from engine.model.minutes import NO_TENANT
from engine.runtime.open_requests import OpenRequests
from engine.runtime.services import Service
from engine.wire.errors import SyncError
from handlers.http.authenticate import TENANT_ID, TICKET
from handlers.http.caching import no_store
from handlers.http.counters import Traffic
from handlers.http.edge_protocol import EdgeProtocol
from handlers.http.errors import as_sync_error, error_body, http_status
from handlers.http.expect import refuse_other_expectations
from handlers.http.loop.watch import LoopWatch
from handlers.http.refusals import Refusals
from handlers.http.response_headers import FOR_BROWSERS, with_headers
from handlers.http.unauthenticated import UnauthenticatedConnections
from handlers.http.unread_body import close_if_body_unread, close_without_answer
from handlers.sync.connections import Connections
from handlers.sync.http_api import REQUEST_ID
from handlers.sync.push_counts import PushCounts
from handlers.sync.websocket import without_context_takeover
from handlers.uploads.body import is_gone

#: Handshakes of sockets, and pushes over HTTP.
SYNC_PATH = "/v1/sync"
_BACKLOG = 4096
_KEEP_ALIVE_S = 75.0
_SHUTDOWN_S = 2.0
_MOST_FIELD_BYTES = 32_768
#: The library sends this with every answer, also to requests that it cannot parse. Its own text has versions.
web_response.SERVER_SOFTWARE = "Tidemark"  # type: ignore[attr-defined]
_HTTP_CODES = {404: "not_found", 413: "too_large", 401: "unauthenticated", 403: "forbidden"}


def application(
    routes: Iterable[web.RouteDef],
    traffic: Traffic,
    open_requests: OpenRequests | None = None,
    body_bytes: int = 1 << 20,
    counts: PushCounts | None = None,
    refusals: Refusals | None = None,
) -> web.Application:
    """Build an application.

    Args:
        routes: All its routes.
        traffic: Counts the errors that are sent.
        open_requests: Counts requests while they are open.
        body_bytes: The largest body of a message.
        counts: Counts the syncs and handshakes that the service refuses.
        refusals: Notes the requests that are refused for security.
    """
    app = web.Application(
        middlewares=[no_store, _errors(traffic, open_requests, counts, refusals)], client_max_size=body_bytes
    )
    app.on_response_prepare.append(without_context_takeover)
    app.on_response_prepare.append(with_headers)
    app.on_response_prepare.append(close_if_body_unread)
    app.router.add_routes(routes)
    return app


def _errors(
    traffic: Traffic,
    open_requests: OpenRequests | None,
    counts: PushCounts | None,
    refusals: Refusals | None,
) -> Middleware:
    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every failure with the contract's error body."""
        headers = {}
        try:
            try:
                return await handler(request)
            finally:
                if open_requests is not None and (ticket := request.get(TICKET)):
                    open_requests.leave(ticket)
        except web.HTTPMethodNotAllowed as refusal:
            # A traceback that is kept holds this frame, and that the request, until the next collection: a
            # thousand of them, each with its headers.
            refusal.__traceback__ = None
            headers["Allow"] = allowed = ", ".join(sorted(refusal.allowed_methods))
            error = SyncError("method_not_allowed", f"{request.method}: this path takes {allowed}")
            status = refusal.status
        except web.HTTPException as refusal:
            if refusal.status < 400:
                raise
            refusal.__traceback__ = None
            code = _HTTP_CODES.get(refusal.status, "malformed")
            error, status = SyncError(code, refusal.reason), refusal.status
        except Exception as failure:
            if isinstance(failure, ConnectionError) and is_gone(request):
                return close_without_answer(request)
            error = as_sync_error(failure, path=request.path).with_traceback(None)
            status = http_status(error)
        traffic.error(error.code)
        if refusals is not None:
            refusals.request(request, error)
        if counts is not None and request.path == SYNC_PATH:
            counts.refused(request.get(TENANT_ID, NO_TENANT), error.code)
        told_id = error.details.pop("id", None)
        request_id = request.get(REQUEST_ID, told_id)
        body = error_body(error, request_id if isinstance(request_id, str) else None)
        if isinstance(wait_ms := error.details.get("retry_after_ms"), int):
            headers["Retry-After"] = str(-(-wait_ms // 1000))  # for clients that know HTTP alone
        headers = FOR_BROWSERS | headers  # `with_headers` does not see a refusal that comes before the route
        return web.Response(body=body, status=status, content_type="application/json", headers=headers)

    return errors


class EdgeRunner(web.AppRunner):
    """Runs an application behind ``UnauthenticatedConnections``."""

    __slots__ = ("_unauthenticated",)

    def __init__(
        self, app: web.Application, unauthenticated: UnauthenticatedConnections, **options: Any
    ) -> None:
        super().__init__(app, **options)
        self._unauthenticated = unauthenticated

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        unauthenticated = self._unauthenticated

        class EdgeServer(type(server)):  # type: ignore[misc]  # that of the library, whichever it is
            def __call__(self) -> RequestHandler:
                return EdgeProtocol(self, unauthenticated, loop=self._loop, **self._kwargs)

        server.__class__ = EdgeServer
        return server


class ListenError(Exception):
    """An address cannot be listened on; one sentence names the remedy."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        if error.errno is None or isinstance(error, socket.gaierror):
            reason = error.strerror or str(error)
        else:  # without the text that the loop adds
            reason = os.strerror(error.errno)
        super().__init__(
            f"cannot listen on {host}:{port} ({reason}): end what listens there,"
            " or choose another --host or --port"
        )


@contextmanager
def reserve_ports(host: str, ports: Iterable[int]) -> Iterator[list[int]]:
    """Reserve ports for processes that share them (SO_REUSEPORT).

    No other program can listen there, not even while none of these processes listens.

    Yields:
        The ports; for port 0 the one that the system chose.

    Raises:
        ListenError: A port is not free, even if its owner would share it.
    """
    with ExitStack() as stack:
        yield [_reserve(host, port, stack) for port in ports]


def _reserve(host: str, port: int, stack: ExitStack) -> int:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, (address, _, *scope) in found:
            for holds in (False, True):
                held = stack.enter_context(socket.socket(family, kind, protocol))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if holds:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                held.bind((address, port, *scope))
                if holds:
                    # It is only needed against earlier connections. Left on, others could take the port.
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                    port = int(held.getsockname()[1])
                else:
                    held.close()
    except (OSError, OverflowError) as error:
        refused = error if isinstance(error, OSError) else OSError(str(error))
        raise ListenError(host, port, refused) from None
    return port


class Listener(NamedTuple):
    """A listening socket. ``close`` stops accepting; open connections stay."""

    port: int
    close: Callable[[], Awaitable[None]]


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    own_port: int | None = None,
    *,
    unauthenticated: UnauthenticatedConnections,
    shared: bool = False,
) -> AsyncIterator[Listener]:
    """Accept connections.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 lets the system choose.
        own_port: A second port of this worker alone; None without one.
        unauthenticated: Counts connections without a valid token, and bounds them.
        shared: Whether other processes may listen on the same ports, such as the worker that replaces this
        one.

    Raises:
        ListenError: A port is taken.
    """
    runner = EdgeRunner(
        app,
        unauthenticated,
        access_log=None,
        # A file name of 10,000 characters is refused with an error, not by closing the connection.
        max_field_size=_MOST_FIELD_BYTES,
        auto_decompress=False,  # bodies are inflated after admission, bounded: handlers/sync/http_api.py
        handle_signals=False,
        keepalive_timeout=_KEEP_ALIVE_S,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    assert runner.server is not None
    refuse_other_expectations(runner.server, app.middlewares)
    ports = [port] if own_port is None else [port, own_port]
    try:
        sites = [
            web.TCPSite(runner, host, one, backlog=_BACKLOG, reuse_address=True, reuse_port=shared)
            for one in ports
        ]
        for site, one in zip(sites, ports, strict=True):
            try:
                await site.start()
            except OSError as error:
                raise ListenError(host, one, error) from None

        async def close() -> None:
            for site in sites:
                await site.stop()

        yield Listener(int(runner.addresses[0][1]), close)
    finally:
        await runner.cleanup()


def services(
    *,
    connections: Connections,
    committer: Committer,
    feed: Feed,
    tenants: TenantCache,
    devices: DeviceCache,
    minutes: Minutes,
    watch: LoopWatch,
) -> list[Service]:
    """List what has to run, in the order in which it is drained.

    The goodbye comes first; then all accepted work is committed and answered; then the connections close.
    """
    return [
        Service("goodbye", sleep_forever, connections.say_goodbye),
        Service("committer", committer.run, committer.drain),
        Service("connections", connections.run, connections.close_all),
        Service("feed", feed.run),
        Service("policies", tenants.run),
        Service("devices", devices.run, devices.drain),
        Service("minutes", minutes.run, minutes.drain),
        Service("loop watch", watch.run),
    ]
