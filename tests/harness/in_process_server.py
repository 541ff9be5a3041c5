"""A whole server in the test's own process, on a fresh database."""

from __future__ import annotations

import asyncio
import io
import signal
import tomllib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg2
import pytest
import pytest_asyncio
from aiohttp import ClientResponse, ClientSession
from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

from compose.server import Server
from engine.runtime.setting_layers import Layer, settings
from engine.runtime.settings import Settings
from handlers.http.tokens import Key, KeySet, secret_key
from handlers.http.unauthenticated import UnauthenticatedConnections, UnauthenticatedLimits
from storage.embedded.servers import Services
from tests.harness.services import Databases, deployed, execute, run
from tests.harness.ws_device import SECRET, Device, Json, connected, token

#: For modules of tests on the server that they share.
ON_SHARED = pytest.mark.asyncio(loop_scope="session")

#: Of the pages that may have what the shared server gives.
ORIGIN = "https://page.example.org"

#: Domains of every kind of policy, so that no test on the shared server needs to set one first.
SHARED: Json = {
    "server": {"origins": [ORIGIN]},
    "domains": {
        "note": {"policy": "manual"},
        "form": {"policy": "field_merge"},
        "form_manual": {"policy": "field_merge", "fallback": "manual"},
        "form_server": {"policy": "field_merge", "fallback": "server_wins"},
        "form_client": {"policy": "field_merge", "fallback": "client_wins"},
        "form_escalation": {"policy": "field_merge", "fallback": "preserve_escalation"},
        "report": {"policy": "most_recent_wins"},
        "visit": {"policy": "client_wins", "required": ["place"]},
    },
}

#: Keys of the shared server beside its secret, by ``kid``. A test may add its own.
SHARED_KEYS: dict[str, Key] = {}

_DEFAULTS = Path(__file__).parents[2] / "config.toml"


def settings_with(**sections: Mapping[str, Any]) -> Settings:
    """The defaults on a free port, with some sections' keys replaced."""
    defaults = Layer("config.toml", tomllib.loads(_DEFAULTS.read_text()))
    return settings([defaults, Layer("test", {"server": {"port": 0}}), Layer("test", sections)])


def unbounded() -> UnauthenticatedConnections:
    """UnauthenticatedConnections for a server of a test's own, which refuse nobody."""
    return UnauthenticatedConnections(
        UnauthenticatedLimits(
            head_s=60, head_bytes=1 << 20, address_connections=1_000_000, write_patience_s=60, trusted=()
        )
    )


class Reply(NamedTuple):
    """What an HTTP request was answered; ``body`` is unpacked if it came compressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> Json:
        """The body as a JSON object."""
        return msgspec.json.decode(self.body, type=Json)

    @property
    def verdict(self) -> tuple[int, str]:
        """The status and, for an error, its code."""
        return self.status, self.message["code"]


class Running:
    """A server that is up, and a test's clients of it, which ``stack`` closes.

    ``suffix`` tells this test's tenants from those of others on the same server.
    """

    def __init__(
        self, dsn: str, url: str, task: asyncio.Task[None], stack: AsyncExitStack, suffix: str = ""
    ) -> None:
        self.dsn = dsn
        self.url = url
        self.task = task
        self._stack = stack
        self.suffix = suffix
        self.http = ClientSession()
        stack.push_async_callback(self.http.close)

    def tenant(self, name: str = "acme") -> str:
        """The name of a tenant in the database."""
        return name + self.suffix

    def token(self, device: str | None = "phone", tenant: str = "acme", **claims: Any) -> str:
        """Sign a device's token."""
        return token(self.tenant(tenant), device, **claims)

    async def device(self, name: str = "phone", tenant: str = "acme", **options: Any) -> Device:
        """Connect a device."""
        claims = {key: options.pop(key) for key in ("role", "exp", "iat", "jti", "sub") if key in options}
        signed = self.token(name, tenant, **claims)
        return await self._stack.enter_async_context(connected(self.url, self.http, signed=signed, **options))

    def headers(self, name: str = "phone", tenant: str = "acme", **claims: Any) -> dict[str, str]:
        """The headers of an HTTP request."""
        return {"Authorization": f"Bearer {self.token(name, tenant, **claims)}"}

    async def get(self, path: str, device: str = "phone", tenant: str = "acme", **options: Any) -> Reply:
        """Send a GET request as a device; ``options`` are aiohttp's, ``headers`` go beside the token."""
        return await self._request("GET", path, device, tenant, options)

    async def post(
        self, path: str, body: bytes | Json, device: str = "phone", tenant: str = "acme", **options: Any
    ) -> Reply:
        """Send a POST request as a device; a body that is no bytes travels as JSON."""
        options["data"] = io.BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
        options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        return await self._request("POST", path, device, tenant, options)

    async def half_sent_sync(self, device: str) -> tuple[asyncio.Event, asyncio.Task[ClientResponse]]:
        """Send half of the first message's body over HTTP, and wait until the server has its headers.

        Returns:
            An event that has the rest sent, and the request.
        """
        go = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'{"type":"sync","key":"k",'
            await go.wait()
            yield b'"items":[]}'

        headers = {"Content-Type": "application/json"} | self.headers(device)
        sending = asyncio.create_task(self.http.post(self.url + "/v1/sync", data=body(), headers=headers))
        async with asyncio.timeout(10):
            while "tidemark_messages_received_total 1.0" not in (await self.get("/metrics")).body.decode():  # noqa: ASYNC110  # a scrape tells nobody
                await asyncio.sleep(0.02)
        return go, sending

    async def _request(self, method: str, path: str, device: str, tenant: str, options: Json) -> Reply:
        role = options.pop("role", None)
        headers = self.headers(device, tenant, role=role) | options.pop("headers", {})
        async with self.http.request(method, self.url + path, headers=headers, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def drained(self) -> None:
        """Tell the server to drain, as a supervisor of processes would, and wait for its end."""
        signal.raise_signal(signal.SIGTERM)
        await self.task


class _Started:
    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def started(self, value: int | None = None) -> None:
        assert value is not None
        self.port.set_result(value)


async def start_server(
    at: Services, stack: AsyncExitStack, sections: Mapping[str, Any], by_id: Mapping[str, Key] | None = None
) -> Running:
    """Start a server, which ``stack`` stops."""
    started = _Started()
    server = Server(settings_with(**sections), at, KeySet(secret_key(SECRET), {} if by_id is None else by_id))
    task = asyncio.create_task(server.run(task_status=started))
    stack.push_async_callback(_stopped, task)
    both: set[asyncio.Future[Any]] = {task, started.port}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    return Running(at.owner, f"http://127.0.0.1:{started.port.result()}", task, stack)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def new_tenants(*names: str) -> str:
    """Give the statement that adds tenants."""
    values = ", ".join(f"('{name}')" for name in names)
    return (
        f"WITH added AS (INSERT INTO tenants (name) VALUES {values} RETURNING tenant_id)"
        " INSERT INTO tenant_counters SELECT tenant_id FROM added"
    )


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(services: Services, dsn: str, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers with some settings replaced; all on one database with the tenants acme and globex.

    They meet on the tests' Redis, or on that of ``redis_url``; ``at`` is another way to the database.
    """
    execute(dsn, new_tenants("acme", "globex"))
    async with AsyncExitStack() as stack:

        async def start(
            redis_url: str = services.redis_url, at: str = dsn, **sections: Mapping[str, Any]
        ) -> Running:
            sections = {"data": {"dir": str(tmp_path)}} | sections
            return await start_server(deployed(at, redis_url), stack, sections)

        yield start


@pytest.fixture
async def server(serve: Serve) -> Running:
    """A server with the default settings."""
    return await serve()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _shared(
    services: Services, databases: Databases, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    sections = SHARED | {"data": {"dir": str(tmp_path_factory.mktemp("data"))}}
    with databases.copy(template) as dsn:
        async with AsyncExitStack() as stack:
            yield await start_server(deployed(dsn, services.redis_url), stack, sections, SHARED_KEYS)


@pytest.fixture(scope="session")
def _shared_database(_shared: Running) -> Iterator[Connection]:
    with closing(psycopg2.connect(_shared.dsn)) as connection:
        yield connection


@pytest_asyncio.fixture(loop_scope="session")
async def shared(_shared: Running, _shared_database: Connection) -> AsyncIterator[Running]:
    """A server that tests share, with the tenants acme and globex of this test alone.

    It starts once, so that a test costs a tenth. Its tests run on the session's loop: they say
    ``pytestmark = ON_SHARED``.
    """
    suffix = f"-{uuid.uuid4().hex}"
    run(_shared_database, new_tenants(f"acme{suffix}", f"globex{suffix}"))
    async with AsyncExitStack() as stack:
        yield Running(_shared.dsn, _shared.url, _shared.task, stack, suffix)
