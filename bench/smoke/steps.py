"""The steps of a smoke session, in order, each with what to look at if it fails."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import ClientSession

from bench.client import messages
from bench.client.messages import ConflictList, Result
from bench.smoke.phone import NotAdmittedError, Phone, SmokeError, now, reach
from engine.wire.messages import DomainInfo, Resolved

#: The same ids in each run: a tenant that is kept for this does not grow.
FORM, NOTE, SKETCH = RECORDS = ("smoke-1", "smoke-2", "smoke-3")
_MISSING: Final = "smoke-missing"
_DOMAIN: Final = "task"
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_CHUNK_BYTES: Final = 128 * 1024
_CHUNKS: Final = 4
_JPEG: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00"
#: Servers notice a new tenant within a second.
_ADMITTED_S: Final = 5.0
_AGAIN_S: Final = 0.2

#: By policy: what an edit of another field on an old base may come to, and whether the record then has it.
_OUTCOMES: Final[dict[str, tuple[frozenset[str], bool]]] = {
    "field_merge": (frozenset({"client", "merged"}), True),
    "client_wins": (frozenset({"client"}), True),
    "most_recent_wins": (frozenset({"client"}), True),
    "preserve_escalation": (frozenset({"client", "merged"}), True),
    "server_wins": (frozenset({"server"}), False),
    "manual": (frozenset({"held"}), True),
}

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Smoke:
    """One session: what two devices of a tenant know of it.

    Args:
        session: What they connect by.
        url: The server, without a slash at the end.
        trusted: The certificates of authorities.
        tokens: The tokens of the two devices.
        new_tenant: Whether the tenant was added just now.
    """

    def __init__(
        self,
        session: ClientSession,
        url: str,
        trusted: ssl.SSLContext,
        tokens: tuple[str, str],
        *,
        new_tenant: bool,
    ) -> None:
        self._session = session
        self._trusted = trusted
        self._url = url
        self._new_tenant = new_tenant
        self.first, self.second = (Phone(session, url, token) for token in tokens)
        self._domain, self._rules = _DOMAIN, DomainInfo(kind="record", required=[], status={})
        self._versions: dict[str, int | None] = dict.fromkeys(RECORDS)
        self._cursor = ""
        self._pushed: tuple[str, list[bytes], list[Result]] = "", [], []
        self._upload: str | None = None
        self._file = _JPEG + os.urandom(_CHUNKS * _CHUNK_BYTES - len(_JPEG))

    async def reach(self) -> str:
        """Ask whether anything answers."""
        return await reach(self._session, self._url, self._trusted)

    async def connect(self) -> str:
        """Connect both devices."""
        until_s = time.monotonic() + _ADMITTED_S
        while True:
            try:
                welcome = await self.first.connect()
                break
            except NotAdmittedError as error:
                if not (self._new_tenant and error.status == 403 and time.monotonic() < until_s):
                    raise
                await asyncio.sleep(_AGAIN_S)
        if (await self.second.connect()).epoch != welcome.epoch:
            raise SmokeError("the devices met two epochs: two databases serve at this address")
        return f"two WebSockets, epoch {welcome.epoch[:8]}"

    async def rules(self) -> str:
        """Ask for the rules of domains, and choose one of records."""
        found = {
            name: rules for name, rules in (await self.first.domains()).items() if rules.kind == "record"
        }
        if not found:
            raise SmokeError("no domain has records")
        self._domain = _DOMAIN if _DOMAIN in found else min(found)
        self._rules = found[self._domain]
        changes, _ = await self.first.pull(None, self._domain)
        self._versions |= {one.id: one.version for one in changes if one.id in self._versions}
        return f"domain {self._domain}, policy {self._rules.policy}"

    async def push(self) -> str:
        """Push three records in one message."""
        items = [self._item(name, "put", self._versions[name], self._record(name)) for name in RECORDS]
        key = uuid.uuid4().hex
        results = (await self.first.push(key, items)).results
        self._pushed = key, items, results
        for name, result in zip(RECORDS, results, strict=True):
            self._versions[name] = _applied(result)
        return f"{len(items)} records stored"

    async def replay(self) -> str:
        """Send the same message again, over HTTP: nothing may be stored a second time."""
        key, items, first = self._pushed
        again = await self.first.push_http(key, items)
        if not again.replayed:
            raise SmokeError("the message was taken for a new one: it was applied twice")
        if [(one.version, one.seq) for one in again.results] != [(one.version, one.seq) for one in first]:
            raise SmokeError("the kept answer is another one than the first")
        return "answered from what was kept"

    async def pull(self) -> str:
        """Have the other device pull."""
        changes, self._cursor = await self.second.pull(None, self._domain)
        found = {one.id: one for one in changes}
        for name in RECORDS:
            if name not in found or found[name].version != self._versions[name]:
                raise SmokeError(f"the other device does not find {name} as it was stored")
            if _decode(found[name].data) != self._record(name):
                raise SmokeError(f"{name} has other data than were pushed")
        return f"{len(changes)} records read"

    async def live(self) -> str:
        """Have the other device follow, and tell it of a change."""
        await self.second.subscribe(self._cursor, self._domain)
        version = await self._patched(FORM, {"place": "gate"})
        began_s = time.monotonic()
        change = await self.second.told(FORM, version)
        if _decode(change.data)["place"] != "gate":
            raise SmokeError("the live page has other data than were pushed")
        return f"told {1000 * (time.monotonic() - began_s):.0f} ms after the answer"

    async def conflict(self) -> str:
        """Have both devices change another field of the same version."""
        base = self._versions[NOTE]
        await self._patched(NOTE, {"place": "gate"})
        item = self._item(NOTE, "patch", base, {"note": "second"})
        [result] = (await self.second.push(uuid.uuid4().hex, [item])).results
        policy = str(self._rules.policy)
        winners, has_note = _OUTCOMES[policy]
        outcome = {"resolved": str(result.winner), "conflict": "held"}.get(result.status, result.status)
        if outcome not in winners:
            raise SmokeError(f"the outcome is {outcome}, and policy {policy} says {' or '.join(winners)}")
        if outcome == "held":
            await self._settle("client")
        changes, _ = await self.first.pull(None, self._domain)
        record = next(one for one in changes if one.id == NOTE)
        self._versions[NOTE] = record.version
        data = _decode(record.data)
        if (data.get("place"), data.get("note") == "second") != ("gate", has_note):
            raise SmokeError(f"after the conflict the record is {data}")
        return f"settled as policy {policy} says: {outcome}"

    async def refused(self) -> str:
        """Have an item refused, in a message that stores all or nothing: it leaves nothing behind."""
        good = self._item(SKETCH, "patch", self._versions[SKETCH], {"place": "never"})
        bad = self._item(_MISSING, "patch", 1, {"place": "never"})
        results = (await self.first.push_http(uuid.uuid4().hex, [good, bad], atomic=True)).results
        codes = [None if one.error is None else one.error.code for one in results]
        if codes != ["batch_aborted", "unknown_base"]:
            raise SmokeError(f"the items were answered with {[one.status for one in results]}, {codes}")
        return "unknown_base, and nothing stored"

    async def upload(self) -> str:
        """Upload a file in chunks, and wait until the other device is told of it."""
        names = {"filename": "smoke.jpg", "filetype": "image/jpeg", "domain": self._domain, "record_id": FORM}
        metadata = ",".join(
            f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in names.items()
        )
        created = await self.first.request(
            "POST",
            "/v1/uploads",
            {**_TUS, "Upload-Length": str(len(self._file)), "Upload-Metadata": metadata},
        )
        self._upload = created.required(201).headers["Location"].rpartition("/")[2]
        for offset in range(0, len(self._file), _CHUNK_BYTES):
            await self._send_chunk(offset)
        change = await self.second.told(FORM, self._versions[FORM] or 0, with_file=True)
        if _digest(self._file) not in bytes(change.attachments).decode():
            raise SmokeError("the feed tells another SHA-256 of the file")
        return f"{len(self._file) // 1024} KiB in {_CHUNKS} chunks"

    async def _send_chunk(self, offset: int) -> None:
        """Send a chunk, and ask how far the upload is. Raises SmokeError."""
        path, chunk = f"/v1/uploads/{self._upload}", self._file[offset : offset + _CHUNK_BYTES]
        checksum = base64.b64encode(hashlib.sha256(chunk).digest()).decode()
        headers = {
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {checksum}",
        }
        reply = (await self.first.request("PATCH", path, headers, chunk)).required(204)
        reached = [reply.headers.get("Upload-Offset")]
        if offset + len(chunk) < len(self._file):
            head = (await self.first.request("HEAD", path, _TUS)).required(200)
            reached.append(head.headers.get("Upload-Offset"))
        if any(one != str(offset + len(chunk)) for one in reached):
            raise SmokeError(f"after {offset + len(chunk)} bytes the upload stands at {reached}")

    async def download(self) -> str:
        """Have the other device read the file."""
        reply = (await self.second.request("GET", f"/v1/files/{self._upload}", {})).required(200)
        digest = _digest(self._file)
        if _digest(reply.body) != digest or digest not in reply.headers.get("ETag", ""):
            raise SmokeError("the file has another SHA-256 than was sent")
        return f"SHA-256 {digest[:12]} equal"

    async def clean_up(self) -> str:
        """Delete what the steps stored, whatever step was the last, and close both connections."""
        try:
            if self._upload is not None:
                reply = await self.first.request("DELETE", f"/v1/uploads/{self._upload}", _TUS)
                reply.required(204, 404)
            if any(self._versions.values()):
                await self._settle("server")
                changes, _ = await self.first.pull(None, self._domain)
                here = {one.id: one.version for one in changes if one.id in RECORDS and not one.deleted}
                items = [self._item(name, "delete", version) for name, version in here.items()]
                if items:
                    for result in (await self.first.push(uuid.uuid4().hex, items)).results:
                        _applied(result)
        finally:
            await self.first.close()
            await self.second.close()
        return "records and file deleted"

    async def _settle(self, choice: str) -> None:
        """Settle what waits for a person of the second device's edits."""
        for held in (await self.second.ask("conflicts", ConflictList, limit=50)).conflicts:
            if held.record_id in RECORDS:
                seen = {"conflict_id": held.conflict_id, "version": held.server.version}
                await self.second.ask("resolve", Resolved, choice=choice, **seen)

    async def _patched(self, name: str, fields: dict[str, Any]) -> int:
        item = self._item(name, "patch", self._versions[name], fields)
        [result] = (await self.first.push(uuid.uuid4().hex, [item])).results
        self._versions[name] = version = _applied(result)
        return version

    def _item(self, name: str, op: str, base: int | None, data: dict[str, Any] | None = None) -> bytes:
        return messages.item(self._domain, name, op, base, now(), {} if data is None else {"data": data})

    def _record(self, name: str) -> dict[str, Any]:
        """Return a record that the rules of the domain take."""
        return dict.fromkeys(self._rules.required, "smoke") | {"title": name, "place": "north"}


def _applied(result: Result) -> int:
    if result.status != "applied" or result.version is None:
        why = "" if result.error is None else f": {result.error.message}"
        raise SmokeError(f"{result.id} was {result.status} instead of applied{why}")
    return result.version


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Step(NamedTuple):
    """A step, and what to look at if it fails."""

    name: str
    run: Callable[[Smoke], Awaitable[str]]
    look: str


STEPS: Final = (
    Step(
        "reach",
        Smoke.reach,
        "the address, the name in DNS, nginx, the certificate (--ca for one of your own)",
    ),
    Step(
        "connect",
        Smoke.connect,
        "the log event handshake_refused (the token, the tenant, the clock), and whether each proxy passes"
        " the header Upgrade on",
    ),
    Step("rules", Smoke.rules, "/readyz of each worker, and the settings of [domains]"),
    Step("push", Smoke.push, "/readyz of each worker, and `run.py doctor`: the database"),
    Step("replay", Smoke.replay, "whether all workers use one database (postgres.dsn)"),
    Step("pull", Smoke.pull, "whether all workers use one database, and the primary (postgres.dsn)"),
    Step("live", Smoke.live, "the log event bus_lost, redis.url, and whether all workers use one Redis"),
    Step("conflict", Smoke.conflict, "`run.py policy list`, and the clocks of all hosts"),
    Step("refused", Smoke.refused, "the log, by the request's X-Request-ID"),
    Step(
        "upload",
        Smoke.upload,
        "data.dir or [s3]: the same for all workers, with space left; no proxy may collect the request first",
    ),
    Step("download", Smoke.download, "data.dir or [s3]: whether all workers read the same files"),
)
#: It follows the last step that was taken.
CLEANING: Final = Step(
    "clean up", Smoke.clean_up, "the records smoke-1 to smoke-3 of the tenant: the next run deletes them"
)
