"""The example device in JavaScript and the reference device in Python edit the same records, and agree."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from bench.client.device import Decision, Device
from bench.client.edits import Settled
from bench.client.store import Store
from bench.load.proxy import Chances, proxied
from storage.embedded.servers import Services
from storage.stores.epoch import PostgresEpoch
from tests.harness.in_process_server import ON_SHARED, Running, new_tenants
from tests.harness.js_device import JsDevice
from tests.harness.server_process import ServerProcess
from tests.harness.services import execute, rows
from tests.harness.uploads.tus_uploader import Uploader, photo
from tests.harness.ws_device import token

pytestmark = ON_SHARED

#: One of each policy: field_merge, preserve_escalation, client_wins, server_wins, manual.
DOMAINS = ("task", "ticket", "journal", "attendance", "note")
RECORDS = [(domain, f"r{number}") for domain in DOMAINS for number in range(3)]
EDITS = 25
_PATIENCE_S = 60
State = dict[str, tuple[int, Any]]
Nothing = Callable[[], Awaitable[None]]


class Pair:
    """A phone in Python and a tablet in JavaScript, with an account of what both were told."""

    def __init__(
        self, url: str, dsn: str, tenant: str, home: Path, node: Path, session: ClientSession, seed: int
    ) -> None:
        self._url, self._dsn, self._tenant = url, dsn, tenant
        self._home = home
        self._random = random.Random(seed)
        self._session = session
        self._made = 0
        self._phone_told: list[Any] = []
        self._resolved = 0
        self._running: asyncio.Task[None] | None = None
        self.tablet = JsDevice(node, url, home / "tablet.json", [token(tenant, "tablet")])
        self.store = Store(home / "phone.sqlite", "phone", durability="NORMAL")
        self.phone = Device(
            self.store,
            url,
            lambda: token(tenant, "phone"),
            session,
            unit=self._random.random,
            on_settled=self._settled,
        )

    def _settled(self, settled: Settled) -> None:
        self._phone_told.append((settled.result.status, settled.result.winner, settled.result.version))

    async def end(self) -> None:
        """Leave nothing but the files."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        self.store.close()
        await self.tablet.kill()

    async def online(self) -> None:
        """Connect both."""
        self._running = asyncio.create_task(self.phone.run())
        await self.tablet.call("start")

    async def offline(self) -> None:
        """Drop both connections."""
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait([self._running])
        await self.tablet.call("stop")

    async def edit(self) -> None:
        """Let both make edits of the same records, of which they show what they know."""
        for _ in range(EDITS):
            where = self._random.choice(RECORDS)
            self.phone.edit(*where, *self._drawn("phone", self.store.record(*where).data))
            where = self._random.choice(RECORDS)
            shown = (await self.tablet.call("record", *where))["data"]
            await self.tablet.call("edit", *where, *self._drawn("tablet", shown))

    def _drawn(self, who: str, shown: Any) -> tuple[Any, Any, Any]:
        """Draw an edit: no two have the same content."""
        self._made += 1
        tag, chance = f"{who} {self._made}", self._random.random()
        field = self._random.choice(["note", "place", "count"])
        if shown is None:
            return "put", {"title": "Check the pump", field: tag}, None
        if chance < 0.1:
            return "delete", None, None
        if chance < 0.4:
            return "put", {**shown, field: tag}, [field]
        return "patch", {field: None if chance < 0.5 else {"by": tag}}, None

    async def settled(self) -> None:
        """Wait until every edit of both is answered."""
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(self.phone.settled(), self.tablet.call("settled"))

    async def agreed(self) -> State:
        """Wait until both hold what the database has. Returns it."""
        async with asyncio.timeout(_PATIENCE_S):
            while not (
                (stored := self._stored()) == await self.tablet.records() and stored == self._of_phone()
            ):
                await self.tablet.call("changed")
        return stored

    def _stored(self) -> State:
        found: list[Any] = rows(
            self._dsn,
            "SELECT r.domain, r.id, r.version, r.data::text FROM records AS r JOIN tenants USING (tenant_id)"
            f" WHERE name = '{self._tenant}'",
        )
        return {f"{domain}/{name}": (version, _read(data)) for domain, name, version, data in found}

    def _of_phone(self) -> State:
        replica = self.store.replica()
        return {f"{domain}/{name}": (version, _read(data)) for domain, name, version, data in replica}

    async def resolve(self) -> None:
        """Let a person on each device settle what waits, one way or another."""
        choices = [Decision("server"), Decision("client"), Decision("merged", {"title": "as both say"})]
        self._resolved += await self.phone.resolve(lambda _: self._random.choice(choices))
        while listed := await self.tablet.call("conflicts"):
            for one in listed:
                choice, data = self._random.choice(choices)
                self._resolved += await self.tablet.call("resolve", one, choice, data)

    def accounted(self, state: State) -> None:
        """Check that each version of each record is the outcome of one edit or decision."""
        told = [
            (event["result"]["status"], event["result"].get("winner"), event["result"].get("version"))
            for event in self.tablet.events
            if event["type"] == "settled"
        ]
        both = self._phone_told + told
        assert len(both) == self._made
        wrote = [1 for status, winner, _ in both if status == "applied" or winner in ("client", "merged")]
        assert sum(version for version, _ in state.values()) == len(wrote) + self._resolved
        assert {status for status, _, _ in both} >= {"applied", "resolved", "conflict"}

    async def exchange_files(self) -> None:
        """Upload a file on each device, and read it on the other one."""
        for seed, name in enumerate(("from-tablet.jpg", "from-phone.jpg")):
            (self._home / name).write_bytes(photo(300_000, seed))
        path = str(self._home / "from-tablet.jpg")
        await self.tablet.call("attach", "journal", "files", path, "from-tablet.jpg", "image/jpeg")
        phone = Uploader(self._session, self._url, token(self._tenant, "phone"))
        content = (self._home / "from-phone.jpg").read_bytes()
        where = {"domain": "journal", "record_id": "files", "filename": "from-phone.jpg"}
        await phone.uploaded(content, filetype="image/jpeg", **where)
        self.phone.edit("journal", "files", "put", {"text": "two files"})
        self._made += 1
        async with asyncio.timeout(_PATIENCE_S):
            while len(files := (await self.tablet.call("record", "journal", "files"))["files"]) < 2:
                await self.tablet.call("changed")
            while len(seen := self.store.attachments("journal", "files")) < 2:
                await self.tablet.call("changed")
        of = {file["filename"]: file for file in files}
        await self.tablet.call("save", of["from-phone.jpg"], str(self._home / "got.jpg"))
        assert (self._home / "got.jpg").read_bytes() == content
        [file_id] = [file.file_id for file in seen if file.filename == "from-tablet.jpg"]
        assert await phone.file(f"/v1/uploads/{file_id}") == (self._home / "from-tablet.jpg").read_bytes()

    async def meet_live(self) -> None:
        """Make an edit on each while both are online: the other one shows it without asking."""
        self.phone.edit("journal", "live", "put", {"by": "phone"})
        async with asyncio.timeout(_PATIENCE_S):
            while (await self.tablet.call("record", "journal", "live"))["data"] != {"by": "phone"}:
                await self.tablet.call("changed")
            await self.tablet.call("edit", "journal", "live", "patch", {"and": "tablet"})
            while self.store.record("journal", "live").data != {"by": "phone", "and": "tablet"}:
                await self.tablet.call("changed")
        self._made += 2


def _read(data: bytes | str | None) -> Any:
    return None if data is None else json.loads(data)


async def converge(pair: Pair, disturb: Nothing) -> None:
    """Work offline, meet, work offline again and be disturbed while both send; then all must agree."""
    await pair.tablet.boot()
    await pair.edit()
    await pair.online()
    await pair.settled()
    await pair.agreed()
    await pair.offline()
    await pair.edit()
    await pair.online()
    await disturb()
    await pair.settled()
    await pair.resolve()
    await pair.exchange_files()
    await pair.meet_live()
    pair.accounted(await pair.agreed())


@asynccontextmanager
async def pairs(url: str, dsn: str, tenant: str, home: Path, node: Path) -> AsyncIterator[Pair]:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")  # noqa: T201  # to run it again
    async with ClientSession() as session:
        pair = Pair(url, dsn, tenant, home, node, session, seed)
        try:
            yield pair
        finally:
            await pair.end()


async def test_js_and_python_device_agree_over_a_line_that_loses_answers(
    shared: Running, node_packages: Path, tmp_path: Path
) -> None:
    port = int(shared.url.rpartition(":")[2])
    async with (
        proxied("127.0.0.1", port, random.Random(1), Chances(lost=0.4)) as proxy,
        pairs(proxy.url, shared.dsn, shared.tenant(), tmp_path, node_packages) as pair,
    ):

        async def disturb() -> None:
            await pair.settled()
            proxy.chances.lost = 0.0

        await converge(pair, disturb)


@pytest.mark.slow
async def test_js_and_python_device_agree_after_a_kill_of_the_server_and_a_new_epoch(
    services: Services, dsn: str, node_packages: Path, tmp_path: Path
) -> None:
    execute(dsn, new_tenants("acme"))
    home = tmp_path / "server"
    home.mkdir()
    server = ServerProcess(dsn, services.redis_url, home, TIDEMARK__DOMAINS__NOTE__POLICY="manual")
    await server.start()
    try:
        async with pairs(server.url, dsn, "acme", tmp_path, node_packages) as pair:

            async def disturb() -> None:
                told = len(pair.tablet.events)
                async with asyncio.timeout(_PATIENCE_S):
                    while len(pair.tablet.events) == told and not pair.phone.online:
                        await pair.tablet.call("changed")
                await server.kill()
                await asyncio.to_thread(PostgresEpoch(dsn).renew)
                await server.start()

            await converge(pair, disturb)
            state = await pair.tablet.call("state")
            assert (state["sweep"], state["sweeping"]) == (1, False), "it pulled afresh"
    finally:
        await server.stop()
