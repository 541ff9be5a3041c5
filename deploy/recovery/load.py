"""Real devices that work through a disaster, and note when each of their edits was acknowledged."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.client.crew import Crew, Member, Setting, crew
from bench.client.device import Device
from bench.client.edits import Settled, decode_item
from bench.harness.load_run import Target

#: Edits are records of a domain that nothing merges, so that each has a row of its own.
DOMAIN: Final = "journal"
TENANTS: Final = ("north", "south")
#: The tenant that is erased by mistake.
ERASED: Final = "south"
_DEVICES: Final = 2
_PAUSE_S: Final = 0.05
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PATIENCE_S: Final = 120.0


class Load:
    """Two devices of each tenant.

    ``made`` are the ids of all edits by their tenant; ``acknowledged`` has the times of those answered.
    """

    def __init__(self, working: Crew, sign: Callable[[str, str], str], url: str) -> None:
        self.made: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
        self.acknowledged: dict[str, float] = {}
        self._crew = working
        self._sign = sign
        self._url = url
        self._editing: list[asyncio.Task[None]] = []

    def note(self, settled: Settled) -> None:
        """Note an acknowledged edit. Events are none: they are in another table."""
        item = decode_item(settled.item)
        if item.domain == DOMAIN:
            self.acknowledged[item.id] = time.time()

    async def begin(self) -> None:
        """Connect, and begin to edit."""
        await self._crew.catch_up(_PATIENCE_S)
        for member in self._crew.members:
            self._editing.append(asyncio.create_task(self._edit(member)))

    async def _edit(self, member: Member) -> None:
        while True:
            self._edit_once(member)
            await asyncio.sleep(_PAUSE_S)

    def _edit_once(self, member: Member) -> None:
        name, tenant = f"{member.name}-{member.made}", member.setting.tenant
        member.made += 1
        member.device.edit(DOMAIN, name, "put", {"text": f"edit {member.made}", "tenant": tenant})
        self.made[tenant].append(name)

    async def acknowledge_more(self, count: int) -> None:
        """Wait until so many more edits are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(_PATIENCE_S):
            while len(self.acknowledged) < wanted:  # noqa: ASYNC110  # the reference device tells no other way
                await asyncio.sleep(_PAUSE_S)

    async def speak(self) -> None:
        """Have a device of each tenant send personal data, which is sealed."""
        for member in self._crew.members[::_DEVICES]:
            data = {"verification_id": "v1", "timestamp": "2026-01-01T00:00:00Z", "verified": True}
            member.made += 1
            member.device.edit("voice", f"{member.name}-voice", "append", data)

    async def stop_editing(self) -> None:
        """Make no more edits; what was not acknowledged stays in the devices."""
        for task in self._editing:
            task.cancel()
        await asyncio.gather(*self._editing, return_exceptions=True)

    async def come_back(self, more: int) -> bool:
        """Connect anew, as apps that are opened: one device of each tenant first, which makes so many edits.

        With more edits than were lost the feed passes the cursor of the other device. Nothing but the epoch
        then tells that device that its cursor is of other changes.

        Returns:
            Whether every edit was answered and every replica equals what the server has.
        """
        members = self._crew.members
        for member in members:
            await member.go_offline()
        for member in members[::_DEVICES]:
            member.go_online()
            for _ in range(more):
                self._edit_once(member)
                await asyncio.sleep(0)
        async with asyncio.timeout(_PATIENCE_S):
            for member in members[::_DEVICES]:
                await member.device.settled()
        for member in members:
            member.go_online()
        return await self._crew.converge(_PATIENCE_S)

    # -- files -------------------------------------------------------------------------------

    async def upload(self, tenant: str, record: str, content: bytes, *, whole: bool = True) -> str:
        """Upload a text for a record. Returns its id."""
        about = {"filename": "a.txt", "filetype": "text/plain", "domain": DOMAIN, "record_id": record}
        coded = ",".join(f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in about.items())
        session, headers = self._crew.session, self._headers(tenant)
        length = {"Upload-Length": str(len(content)), "Upload-Metadata": coded}
        async with session.post(
            f"{self._url}/v1/uploads", headers=headers | length, raise_for_status=True
        ) as made:
            address = made.headers["Location"]
        body = content if whole else content[: len(content) // 2]
        more = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        async with session.patch(
            f"{self._url}{address}", headers=headers | more, data=body, raise_for_status=True
        ):
            return address.rpartition("/")[2]

    async def download(self, tenant: str, file_id: str) -> tuple[int, bytes]:
        """Return the status and the content of a file."""
        url = f"{self._url}/v1/files/{file_id}"
        async with self._crew.session.get(url, headers=self._headers(tenant)) as answer:
            return answer.status, await answer.read()

    async def resume(self, tenant: str, file_id: str, rest: bytes) -> int:
        """Go on with an upload where the server says that it is. Returns the status of the last answer."""
        url, headers = f"{self._url}/v1/uploads/{file_id}", self._headers(tenant)
        async with self._crew.session.head(url, headers=headers) as told:
            if told.status != 200:
                return told.status
            offset = {"Upload-Offset": told.headers["Upload-Offset"]}
        more = {**offset, "Content-Type": "application/offset+octet-stream"}
        async with self._crew.session.patch(url, headers=headers | more, data=rest) as answer:
            return answer.status

    def _headers(self, tenant: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._sign(tenant, f'{tenant}-1')}", **_TUS}


@asynccontextmanager
async def devices(home: Path, port: int, secret: Callable[[], str]) -> AsyncIterator[Load]:
    """Open the devices; their stores are in a directory."""
    url = f"http://127.0.0.1:{port}"

    def sign(tenant: str, device: str) -> str:
        return Target(port=port, secret=secret(), tenants=TENANTS).token(tenant, device)

    heard: list[Callable[[Settled], None]] = []

    def make(*given: Any, on_settled: Callable[[Settled], None], **more: Any) -> Device:
        def settle(settled: Settled) -> None:
            heard[0](settled)
            on_settled(settled)

        return Device(*given, on_settled=settle, **more)

    def setting(tenant: str) -> Setting:
        return Setting(
            url=url,
            sign=partial(sign, tenant),
            home=home,
            seed=1,
            domains=(DOMAIN,),
            pool=1,
            edits_per_minute=1,
            tenant=tenant,
            make=make,
        )

    settings = {f"{one}-{number + 1}": setting(one) for one in TENANTS for number in range(_DEVICES)}
    async with crew(settings) as working:
        load = Load(working, sign, url)
        heard.append(load.note)
        try:
            yield load
        finally:
            await load.stop_editing()
